"""A Ray of the cluster's own: its settings, its start, and ending every process of it.

Owns the environment and the command line of `ray start`, and finding our processes again. Somebody else's Ray
(`--ray ADDRESS`) is used as it is and never stopped.

[Note: a quiet Ray on loopback] It listens on 127.0.0.1 only (Ray turns that address into the machine's own
unless it is told not to look for other nodes), wants a token of every connection, phones nobody, draws no
dashboard, keeps a small object store (only control messages go through it), and kills nobody over memory: the
streamed models live in RAM by design. Its ports are free ones that the system chooses, so several clusters
live side by side.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import superpipe_cluster
from superpipe_cluster.errors import StartFailed
from superpipe_cluster.head.home import Home, RayPlace, write_private
from superpipe_cluster.machine import processes

#: Every process of a cluster has the cluster's home directory under this name in its environment.
MARK = "SPCLUSTER_CLUSTER"
#: Bytes of Ray's object store: its minimum is about 75 MiB.
_OBJECT_STORE_BYTES = 100_000_000
#: In its folder Ray makes sockets with names of up to this many bytes, in paths that the kernel limits to
#: 107.
_SOCKET_NAME_BYTES = 68
_LONGEST_TEMP_DIR = 107 - _SOCKET_NAME_BYTES
#: Ray opens its folder to everybody, so it gets one inside a folder that is ours alone.
_INNER = "r"
_START_TIMEOUT_S = 90.0
_ANSWER_TIMEOUT_S = 5.0
#: Wait for the end of processes that were killed outright.
_END_GRACE_S = 0.0


def environment(home: Home, base: Mapping[str, str]) -> dict[str, str]:
    """The settings of our own Ray, for its processes and for those that connect to it."""
    env = {
        name: value
        for name, value in base.items()
        # The URL of Redis may hold a password, and jobs inherit this.
        if not name.startswith("RAY_") and name != "SPCLUSTER_REDIS_URL"
    }
    env |= {
        # What planning learns of devices and programs belongs to this cluster's home, whatever the caller's default is.
        "SPCLUSTER_HOME": str(home.root),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.ray_token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        # Otherwise Ray hides all GPUs from actors that ask it for none; ours are the ledger's to give.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    return with_package(env)


def with_package(env: dict[str, str]) -> dict[str, str]:
    """`env` in which a Python finds this package, also when it runs from a checkout that is not installed."""
    root = str(Path(superpipe_cluster.__file__).parent.parent)
    if root in (*site.getsitepackages(), site.getusersitepackages()):
        return env  # put in front, it would shadow the standard library
    inherited = [env["PYTHONPATH"]] if env.get("PYTHONPATH") else []
    return {**env, "PYTHONPATH": os.pathsep.join([root, *inherited])}


def start(home: Home) -> RayPlace:
    """Start Ray.

    Raises:
        StartFailed: it did not come up; the message has its last words.
    """
    if not home.ray_token.exists():
        write_private(home.ray_token, secrets.token_hex(32))
    temp_dir = _temp_dir(home)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
        "--node-ip-address=127.0.0.1",
        "--port=0",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--dashboard-agent-listen-port=0",
        "--include-dashboard=false",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        "--num-cpus=0",
        "--num-gpus=0",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--temp-dir={temp_dir / _INNER}",
    ]
    launcher = subprocess.Popen(
        command,
        env={**environment(home, os.environ), MARK: str(home.root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # all of Ray's processes stay in it, which is how they are found again
    )
    try:
        words, _ = launcher.communicate(timeout=_START_TIMEOUT_S)
        address = (
            (temp_dir / _INNER / "ray_current_cluster").read_text().strip()
            if launcher.returncode == 0
            else ""
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        launcher.kill()
        launcher.wait()
        words, address = str(error), ""
    except BaseException:
        launcher.kill()
        raise
    if not address:
        stop(home, RayPlace("", str(temp_dir), launcher.pid))
        last = " / ".join(line.strip() for line in words.strip().splitlines()[-3:])
        raise StartFailed(f"Ray did not start: {last}", hint="`spcluster doctor` checks this machine")
    return RayPlace(address, str(temp_dir), launcher.pid)


def is_running(home: Home) -> bool:
    """Whether the two processes that everything hangs on are there."""
    titles = [processes.title(pid).split(" ", 1)[0] for pid in processes.marked(MARK, str(home.root))]
    return all(any(title.endswith(part) for title in titles) for part in ("/gcs_server", "/raylet"))


def answers(address: str) -> bool:
    """Whether something listens where a Ray is said to be; True for addresses that only Ray can read."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_TIMEOUT_S).close()
    except (OSError, OverflowError):
        return False
    return True


def stop(home: Home, place: RayPlace | None) -> list[int]:
    """End every process of the cluster but Redis, at once; pids that are left even so.

    The head goes before its workers can tell it that they were killed, and Ray's own before they can restart
    anything: all are found first and then killed in this order, and what comes after is found again.
    """
    session = place.session if place is not None else None
    found = find(home, session)
    # A process that is being killed loses its title and its environment first, and its open ports last.
    known = [born for pid in (*found, *_head_of(home)) if (born := processes.birth(pid)) is not None]

    def left_of_it() -> list[int]:
        return sorted({*find(home, session), *(born.pid for born in known if processes.is_alive(born))})

    first = [
        pid for pid in found if processes.title(pid).split(" ", 1)[0].endswith(("/raylet", "/gcs_server"))
    ]
    processes.send([*first, *_head_of(home), *found], signal.SIGKILL)
    left = processes.end(left_of_it, _END_GRACE_S)
    if place is not None and place.temp_dir is not None:
        shutil.rmtree(place.temp_dir, ignore_errors=True)
    return left


def find(home: Home, session: int | None) -> list[int]:
    """Pids of the cluster's processes, by their mark; those of Ray's that hide theirs, by their session."""
    marked = set(processes.marked(MARK, str(home.root)))
    table = processes.all_processes()
    sessions = {entry.session for entry in table if entry.pid in marked and _is_rays(entry.pid)}
    if session is not None:
        sessions.add(session)
    # Ray's Python processes write their title over their environment.
    untitled = {
        entry.pid
        for entry in table
        if entry.session in sessions and processes.title(entry.pid).startswith("ray::")
    }
    return sorted((marked | untitled) - {os.getpid()})


def _is_rays(pid: int) -> bool:
    return "/ray/" in processes.title(pid).split(" -", 1)[0]


def _head_of(home: Home) -> list[int]:
    try:
        pid, started = home.head_pid.read_text().split()
    except (OSError, ValueError):
        return []
    return [int(pid)] if processes.is_alive(processes.Birth(int(pid), int(started))) else []


def _temp_dir(home: Home) -> Path:
    """Ray's folder: in the home directory, or a short private one when that path is too long for sockets."""
    if len(os.fsencode(home.ray)) <= _LONGEST_TEMP_DIR:
        shutil.rmtree(home.ray, ignore_errors=True)
        home.ray.mkdir(mode=0o700)
        return home.ray
    return Path(tempfile.mkdtemp(prefix="spcluster-", dir="/tmp"))
