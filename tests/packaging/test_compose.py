"""docker-compose.yml and Dockerfile: what they must hold, and their commands with stand-ins for the programs."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from command_lines import parse_arguments
from commands import ROOT
from superpipe_cluster.execution.ray_executor import DEVICES_LABEL
from waiting import wait_until

COMPOSE = ROOT / "docker-compose.yml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


# ---- what it must hold ---------------------------------------------------------------------------------


def test_there_are_redis_a_head_and_a_gpu_node(services: dict[str, Any]) -> None:
    assert set(services) == {"redis", "head", "gpu"}


def test_every_service_has_a_healthcheck_and_comes_back(services: dict[str, Any]) -> None:
    for name, service in services.items():
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL"), name
        assert {"interval", "timeout", "retries"} <= set(check), name
        assert service["restart"] == "unless-stopped", name


def test_each_service_waits_until_what_it_needs_is_healthy(services: dict[str, Any]) -> None:
    assert services["head"]["depends_on"]["redis"]["condition"] == "service_healthy"
    assert services["gpu"]["depends_on"]["head"]["condition"] == "service_healthy"


def test_only_the_api_is_published_and_only_on_loopback(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"head": ["127.0.0.1:7077:7077"]}
    assert all(service.get("network_mode") != "host" for service in services.values())


def test_the_gpu_is_reserved_for_both_nodes(services: dict[str, Any]) -> None:
    # A worker may run on either: [Note: one set of namespaces] in the file.
    for name in ("head", "gpu"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
        assert services[name]["shm_size"] == "8gb"
        assert services[name]["ulimits"]["memlock"] == -1


def test_the_gpu_node_shares_network_and_processes_with_the_head(services: dict[str, Any]) -> None:
    gpu = services["gpu"]
    assert gpu["network_mode"] == gpu["pid"] == "service:head"
    assert services["head"]["init"] is True
    assert "ports" not in gpu  # compose refuses ports in somebody else's network


def test_the_home_directory_is_shared_and_kept(compose: dict[str, Any], services: dict[str, Any]) -> None:
    home = "home:/var/lib/spcluster"
    assert home in services["head"]["volumes"]
    assert home in services["gpu"]["volumes"]
    assert {"home", "redis"} <= set(compose["volumes"])
    assert "SPCLUSTER_HOME=/var/lib/spcluster" in (ROOT / "Dockerfile").read_text()


def test_redis_keeps_everything_and_forgets_nothing(services: dict[str, Any]) -> None:
    script = services["redis"]["command"][-1]
    for setting in ("appendonly yes", "maxmemory-policy noeviction", "dir /data", "requirepass"):
        assert setting in script
    assert "redis:/data" in services["redis"]["volumes"]


# ---- secrets -------------------------------------------------------------------------------------------


def test_secrets_come_from_files_outside_the_image(compose: dict[str, Any], services: dict[str, Any]) -> None:
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    used = {name for service in services.values() for name in service.get("secrets", [])}
    assert used == set(compose["secrets"])
    for name, service in services.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET", key):
                assert value in {f"/run/secrets/{secret}" for secret in service["secrets"]}, (name, key)


def test_the_gpu_node_does_not_get_the_redis_password(services: dict[str, Any]) -> None:
    assert services["gpu"]["secrets"] == ["ray_token"]
    assert "REDIS_PASSWORD_FILE" not in services["gpu"]["environment"]


def test_the_image_is_built_from_named_folders_and_runs_without_root() -> None:
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines() if line]
    copied = {source for line in lines if line[0] == "COPY" for source in line[1:-1]}
    assert lines[-1][0] == "CMD"
    assert ["USER", "spcluster"] in lines
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


# ---- the commands, run ---------------------------------------------------------------------------------


class Stage:
    """A folder of stand-ins for the programs of the image; each notes how it was called."""

    def __init__(self, folder: Path, compose: dict[str, Any]) -> None:
        self.folder = folder
        self._services = compose["services"]
        self._bin = folder / "bin"
        self._bin.mkdir()
        (folder / "redis_password").write_text("opensesame\n")
        self.program("ray", "")
        self.program(
            "spcluster", f'echo "$SPCLUSTER_REDIS_URL $SPCLUSTER_RAY_ADDRESS" > {folder}/connections'
        )
        self.program("redis-server", f"cat > {folder}/redis.conf")

    def program(self, name: str, does: str) -> None:
        path = self._bin / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {self.folder}/calls\n{does}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def start(self, service: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        described = self._services[service]
        environment = {
            **described.get("environment", {}),
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SPCLUSTER_HOME": str(self.folder),
            "REDIS_PASSWORD_FILE": str(self.folder / "redis_password"),
        }
        command = [word.replace("$$", "$") for word in described["command"]]
        return subprocess.Popen(command, env=environment, stdin=stdin, start_new_session=True)


@pytest.fixture
def stage(tmp_path: Path, compose: dict[str, Any]) -> Stage:
    return Stage(tmp_path, compose)


def ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(timeout=20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_redis_gets_its_password_by_standard_input(stage: Stage) -> None:
    assert ended(stage.start("redis")) == 0
    assert stage.calls == ["redis-server -"]
    assert "requirepass opensesame\n" in (stage.folder / "redis.conf").read_text()


def test_the_head_starts_ray_then_becomes_the_cluster_in_the_foreground(stage: Stage) -> None:
    (stage.folder / "cluster.json").write_text("of an earlier container")
    assert ended(stage.start("head")) == 0
    assert not (stage.folder / "cluster.json").exists()
    ray, spcluster = stage.calls
    redis_url, ray_address = (stage.folder / "connections").read_text().split()
    assert ray.startswith("ray start --head ")
    assert f" --port={ray_address.rpartition(':')[2]} " in ray
    assert "--block" not in ray
    assert redis_url == "redis://:opensesame@redis:6379/0"
    assert not any("opensesame" in call for call in stage.calls)

    program, *words = spcluster.split()
    assert program == "spcluster"
    options = parse_arguments(words).params
    assert (options["stay"], options["host"]) == (True, "0.0.0.0")


def test_signals_reach_the_cluster_itself(stage: Stage) -> None:
    stage.program(
        "spcluster", f"trap 'touch {stage.folder}/told; exit 0' TERM\ntouch {stage.folder}/up\nread _"
    )
    with stage.start("head", stdin=subprocess.PIPE) as head:
        try:
            wait_until((stage.folder / "up").exists, "`spcluster up` is called", 20)
        finally:
            head.send_signal(signal.SIGTERM)
        assert ended(head) == 0
    assert (stage.folder / "told").exists()


@pytest.mark.parametrize("failing", ["ray", "spcluster"])
def test_the_head_ends_when_ray_or_the_cluster_does(stage: Stage, failing: str) -> None:
    stage.program(failing, "exit 3")
    assert ended(stage.start("head")) == 3


def test_the_gpu_node_joins_the_heads_ray_with_the_same_options(stage: Stage) -> None:
    assert ended(stage.start("gpu")) == 0
    (call,) = stage.calls
    assert call.startswith("ray start --address=127.0.0.1:6380 ")
    assert f" --labels={DEVICES_LABEL}=" in call
    assert " --num-cpus=0 --num-gpus=0 " in call
    assert call.endswith(" --temp-dir=/var/lib/spcluster/ray --block")
