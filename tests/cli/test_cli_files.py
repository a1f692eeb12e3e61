"""The verbs that need no cluster: examples, cp, schema, doctor; and the users."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from commands import spcluster
from serving import Head
from superpipe_cluster import bundled


def test_examples_are_what_lies_in_jobs() -> None:
    said = spcluster("examples", "-o", "json")
    assert said.returncode == 0
    assert [each["name"] for each in json.loads(said.stdout)] == [each.name for each in bundled.jobs()]
    assert all(len(line) <= 80 for line in spcluster("examples").stdout.splitlines())


def test_cp_copies_and_replaces_only_when_told(tmp_path: Path) -> None:
    name = bundled.jobs()[0].name
    said = spcluster("cp", name, str(tmp_path))
    assert said.returncode == 0
    copy = Path(said.stdout.strip())
    assert copy.read_bytes() == bundled.job_path(name).read_bytes()
    copy.write_text("mine", encoding="utf-8")
    refused = spcluster("cp", name, str(copy))
    assert refused.returncode == 3
    assert "--force" in refused.stderr
    assert copy.read_text(encoding="utf-8") == "mine"
    assert spcluster("cp", f"jobs:{name}", str(copy), "--force").returncode == 0
    assert copy.read_bytes() == bundled.job_path(name).read_bytes()


def test_cp_takes_the_jobs_program_along(tmp_path: Path) -> None:
    copy = Path(spcluster("cp", "sweep", str(tmp_path / "mine.yaml")).stdout.strip())
    assert (tmp_path / "sweep.py").read_bytes() == bundled.job_path("sweep").with_suffix(".py").read_bytes()
    assert spcluster("submit", str(copy), "--dry-run").returncode == 0
    copy.unlink()
    assert spcluster("cp", "sweep", str(tmp_path)).returncode == 3  # the program is there already
    assert not (tmp_path / "sweep.yaml").exists()


@pytest.mark.parametrize("name", ["nope", "../pyproject", "/etc/passwd"])
def test_cp_of_what_is_not_there(tmp_path: Path, name: str) -> None:
    assert spcluster("cp", name, str(tmp_path)).returncode == 3
    assert list(tmp_path.iterdir()) == []


def test_cp_to_where_nothing_can_be_written(tmp_path: Path) -> None:
    said = spcluster("cp", bundled.jobs()[0].name, str(tmp_path / "no" / "folder.yaml"))
    assert said.returncode == 2
    assert "cannot write" in said.stderr


def test_schema_is_json() -> None:
    schema = json.loads(spcluster("schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")


def checks(said: str) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(said)}


def test_doctor_on_a_machine_without_a_cluster(tmp_path: Path) -> None:
    said = spcluster("doctor", "-o", "json", SPCLUSTER_HOME=str(tmp_path / "new"))
    assert said.returncode == 0
    found = checks(said.stdout)
    assert found["python"]["status"] == found["packages"]["status"] == found["home"]["status"] == "ok"
    assert found["cluster"]["status"] == "warn"
    assert "spcluster up" in found["cluster"]["hint"]
    assert not (tmp_path / "new").exists()


def test_doctor_fails_on_an_open_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    said = spcluster("doctor", "-o", "json", SPCLUSTER_HOME=str(home))
    assert said.returncode == 1
    assert checks(said.stdout)["home"]["hint"] == f"chmod 700 {home}"


def test_doctor_fails_on_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        address = {"SPCLUSTER_URL": f"http://127.0.0.1:{port}", "SPCLUSTER_TOKEN": "token"}
        said = spcluster("doctor", "-o", "json", "--port", str(port), **address)
    assert said.returncode == 1
    found = checks(said.stdout)
    assert found["cluster"]["status"] == "fail"
    assert found["port"]["status"] == "warn"


def test_doctor_of_a_running_cluster(head: Head) -> None:
    admin = checks(spcluster("doctor", "-o", "json", **head.environment("admin")).stdout)
    assert admin["cluster"]["status"] == admin["head"]["status"] == admin["versions"]["status"] == "ok"
    user = checks(spcluster("doctor", "-o", "json", **head.environment("alice")).stdout)
    assert user["cluster"]["status"] == "ok"
    assert "head" not in user
    stranger = spcluster("doctor", "-o", "json", SPCLUSTER_URL=head.url, SPCLUSTER_TOKEN="x")
    assert stranger.returncode == 1


def test_users_are_added_and_listed(head: Head) -> None:
    admin = head.environment("admin")
    added = spcluster("user", "add", "carol", **admin)
    assert added.returncode == 0
    token = added.stdout.strip()
    assert spcluster("queue", SPCLUSTER_URL=head.url, SPCLUSTER_TOKEN=token).returncode == 0
    boss = json.loads(spcluster("user", "add", "boss", "--admin", "-o", "json", **admin).stdout)
    assert boss["role"] == "admin"
    names = [user["name"] for user in json.loads(spcluster("user", "list", "-o", "json", **admin).stdout)]
    assert {"carol", "boss"} <= set(names)
    assert "carol" in spcluster("user", "list", **admin).stdout
    assert spcluster("user", "add", "carol", **admin).returncode == 3
    assert spcluster("user", "add", "Carol Jr", **admin).returncode == 2
    assert spcluster("user", "list", **head.environment("alice")).returncode == 6
