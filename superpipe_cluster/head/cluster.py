"""Starting and stopping the whole cluster: `up` and `down`.

Owns the order of the parts (Redis, Ray, head; backwards on the way down), and that a start which fails takes
everything back. The parts themselves are `store.embedded`, `own_ray` and, asked through `driver`, the head.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from superpipe_cluster.errors import AlreadyRunning, Conflict, SpclusterError, StartFailed
from superpipe_cluster.execution import remains
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.head import own_ray
from superpipe_cluster.head.home import ClusterFile, Home, RayPlace, write_private
from superpipe_cluster.machine import Device, discover
from superpipe_cluster.spec.fields import NAME_PATTERN
from superpipe_cluster.store import embedded
from superpipe_cluster.store.interface import hash_token
from superpipe_cluster.store.redis_store import RedisStore

DEFAULT_PORT = 7077
LOOPBACK = "127.0.0.1"

#: Longer than anything the driver waits for itself.
_DRIVER_TIMEOUT_S = 150.0
_REMAINS_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What to start.

    Attributes:
        home: the cluster's directory.
        port: of the HTTP API.
        devices: as `machine.discover` takes them; none for what the machine has.
        redis: URL of a Redis to use; None to start our own.
        ray: address of a Ray to use; None to start our own.
        host: address that the HTTP API listens on.
    """

    home: Path
    port: int = DEFAULT_PORT
    devices: tuple[str, ...] = ()
    redis: str | None = None
    ray: str | None = None
    host: str = LOOPBACK


@dataclass(frozen=True, slots=True)
class Started:
    """What runs now. `adopted`: the head came (back) to parts and jobs that were running already."""

    url: str
    devices: tuple[Device, ...]
    token_path: Path
    redis_embedded: bool
    ray_embedded: bool
    adopted: bool


def up(options: UpOptions, say: Callable[[str], None] = lambda _: None) -> Started:
    """Start what does not run yet: everything, or the head over Redis, Ray and jobs that go on.

    Args:
        options: what to start. When only the head is missing, the other parts stay as they are.
        say: told in a few words what is being done.

    Raises:
        AlreadyRunning: all of it runs.
        BadInput: a device cannot be used.
        StartFailed: a part did not start; everything that this call started is stopped again.
        StoreUnavailable: the Redis of `options.redis` does not answer.
    """
    home = Home(options.home)
    home.create()
    with alone(home):
        running = _running(home)
        if running is not None:
            return _come_back(home, running, say)
        own_ray.stop(home, _last_place(home))  # what a cluster that was killed in parts has left
        return _start_all(home, options, say)


def down(
    root: Path,
    *,
    head_only: bool = False,
    drain: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Stop the cluster. Its jobs save, and are back in the queue for the next `up`.

    Args:
        root: the home directory.
        head_only: stop only the head; jobs run on, and the next `up` adopts them.
        drain: first let the jobs that run come to their end, however long that takes; no others start.
        say: told in a few words what is being done.

    Raises:
        NotRunning: there is nothing to stop.
        SpclusterError: some process could not be ended.
    """
    home = Home(root)
    home.read_cluster()  # no lock is made where there is no cluster
    with alone(home):
        cluster = home.read_cluster()
        is_own = cluster.ray.session is not None
        if head_only:
            say("stopping the head; jobs go on")
            answer = _ask(home, cluster, "stop-head")
            if "unreachable" in answer:
                raise SpclusterError(
                    f"the head could not be stopped: {answer['unreachable']}",
                    hint="`spcluster down` stops everything, without asking",
                )
            return
        if drain:
            _let_finish(home, cluster, say)
        if not is_own or own_ray.is_running(home):
            say("waiting for running jobs to save")
            _ask(home, cluster, "drain")
        say("stopping the head, the workers and Ray")
        if not is_own:
            _ask(home, cluster, "stop-all")
        left = own_ray.stop(home, cluster.ray if is_own else None)
        _clear_jobs(home)
        if cluster.redis_pid is not None:
            say("stopping Redis")
            embedded.stop(cluster.redis_url, cluster.redis_pid)
        home.cluster.unlink(missing_ok=True)
        home.head_pid.unlink(missing_ok=True)
        if left:
            raise SpclusterError(
                f"these processes could not be ended: {', '.join(map(str, left))}",
                hint="`ps` shows what they wait for; end them by hand",
            )


# ---- what runs -----------------------------------------------------------------------------------------


def _running(home: Home) -> ClusterFile | None:
    """What runs, if the part that jobs live in does; None when all has to be started."""
    if not home.cluster.exists():
        return None
    cluster = home.read_cluster()
    if cluster.ray.session is not None:
        return cluster if own_ray.is_running(home) else None
    return None if "unreachable" in _ask(home, cluster, "has-head") else cluster


def _last_place(home: Home) -> RayPlace | None:
    return home.read_cluster().ray if home.cluster.exists() else None


def _come_back(home: Home, cluster: ClusterFile, say: Callable[[str], None]) -> Started:
    """Start what is missing beside a Ray that runs: the head, our own Redis, or nothing."""
    repaired = False
    if cluster.redis_pid is not None:
        redis = embedded.start(home.redis)
        repaired = redis.pid != cluster.redis_pid
        cluster = replace(cluster, redis_url=redis.url, redis_pid=redis.pid)
        write_private(home.cluster, cluster.to_json())
    if _is_free(cluster.host, cluster.port):
        say("starting the head over the jobs that run")
        existed = _start_head(home, cluster)
    else:
        existed = bool(_ask(home, cluster, "has-head").get("head"))
        if not existed:
            _require_free(cluster.host, cluster.port)
    if existed and not repaired:
        raise AlreadyRunning(
            f"a cluster of {home.root} runs already, at {cluster.url}",
            hint="use it, or `spcluster down` first; SPCLUSTER_HOME names another home for a second one",
        )
    if repaired:
        say("Redis was gone and is back")
    return _started(home, cluster, adopted=True)


# ---- the start -----------------------------------------------------------------------------------------


def _start_all(home: Home, options: UpOptions, say: Callable[[str], None]) -> Started:
    devices = tuple(discover(options.devices))
    _require_free(options.host, options.port)
    undo: list[Callable[[], object]] = []
    try:
        redis_url, redis_pid = options.redis, None
        if redis_url is None:
            say("starting Redis")
            redis = embedded.start(home.redis)
            redis_url, redis_pid = redis.url, redis.pid
            undo.append(lambda: embedded.stop(redis.url, redis.pid))
        store = RedisStore(redis_url)
        store.ping()
        if options.ray is None:
            say("starting Ray")
            place = own_ray.start(home)
        else:
            place = RayPlace(options.ray)
        undo.append(lambda: own_ray.stop(home, place if options.ray is None else None))
        reachable = LOOPBACK if options.host in ("0.0.0.0", "::") else options.host
        cluster = ClusterFile(
            url=f"http://{reachable}:{options.port}",
            host=options.host,
            port=options.port,
            redis_url=redis_url,
            redis_pid=redis_pid,
            ray=place,
            devices=devices,
            started_at=time.time(),
        )
        undo.append(lambda: home.cluster.unlink(missing_ok=True))
        write_private(home.cluster, cluster.to_json())
        say("starting the head")
        _start_head(home, cluster)
        _ensure_admin(home, store)
        store.close()
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    return _started(home, cluster, adopted=False)


def _start_head(home: Home, cluster: ClusterFile) -> bool:
    """Start the head unless there is one; whether there was."""
    answer = _ask(home, cluster, "start-head")
    trouble = answer.get("unreachable") or answer.get("trouble")
    if trouble is not None:
        raise StartFailed(f"the head did not start: {trouble}", hint=f"its log is {home.head_log}")
    return bool(answer.get("existed"))


def _started(home: Home, cluster: ClusterFile, *, adopted: bool) -> Started:
    return Started(
        url=cluster.url,
        devices=cluster.devices,
        token_path=home.token,
        redis_embedded=cluster.redis_pid is not None,
        ray_embedded=cluster.ray.session is not None,
        adopted=adopted,
    )


def _is_free(host: str, port: int) -> bool:
    try:
        _require_free(host, port)
    except StartFailed:
        return False
    return True


def _require_free(host: str, port: int) -> None:
    try:
        # With the option that servers set, so that a port which merely rests after its last use counts as
        # free.
        socket.create_server((host, port)).close()
    except OSError as error:
        raise StartFailed(
            f"port {port} on {host} cannot be used: {error.strerror}",
            hint=f"take another one: spcluster up --port {port + 1 if port < 65535 else 7077}",
        ) from None


def _ensure_admin(home: Home, store: RedisStore) -> None:
    """Have the token file hold the token of an admin of this store."""
    if home.token.exists() and store.user_by_token(hash_token(home.token.read_text().strip())) is not None:
        return
    token = secrets.token_urlsafe(32)
    login = _login()
    # A store that was used before may know the name; its token is gone, so the new one needs another name.
    for name in (login, *(f"{login}-{number}" for number in range(2, 1000))):
        try:
            store.add_user(name, "admin", hash_token(token))
        except Conflict:
            continue
        write_private(home.token, token)
        return


def _login() -> str:
    try:
        name = getpass.getuser().lower()
    except (KeyError, OSError):  # a container's user without a name
        return "admin"
    return name if re.match(NAME_PATTERN, name) and len(name) < 58 else "admin"


# ---- asking Ray ----------------------------------------------------------------------------------------


def _ask(home: Home, cluster: ClusterFile, question: str) -> dict[str, Any]:
    """Put a question to Ray. See [Note: Ray in a process of its own]."""
    if not own_ray.answers(cluster.ray.address):  # it would be tried for minutes
        return {"unreachable": f"nothing listens at Ray's address {cluster.ray.address}"}
    if cluster.ray.session is not None:
        env = own_ray.environment(home, os.environ)
    else:
        env = own_ray.with_package(dict(os.environ))  # somebody else's Ray: their settings are in it
    command = [sys.executable, "-m", "superpipe_cluster.head.driver", str(home.root), question]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"unreachable": f"Ray at {cluster.ray.address} does not answer"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        return {"unreachable": f"Ray at {cluster.ray.address}: {last}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


# ---- the end -------------------------------------------------------------------------------------------


def _let_finish(home: Home, cluster: ClusterFile, say: Callable[[str], None]) -> None:
    """Return when no job runs any more, or nobody can tell. Interrupted, the head goes on as before."""
    say("waiting for running jobs to end; no others start")
    try:
        while True:
            answer = _ask(home, cluster, "let-finish")
            if answer.get("drained") or not answer.get("head"):
                return
    except KeyboardInterrupt:
        _ask(home, cluster, "go-on")
        raise


def _clear_jobs(home: Home) -> None:
    """End what the jobs' children have left behind and that carries no mark of ours."""
    folders = [JobFolder(path) for path in home.jobs.iterdir()] if home.jobs.is_dir() else []
    deadline_s = time.monotonic() + _REMAINS_PATIENCE_S
    while (folders := [each for each in folders if not remains.clear(each, None)]) and (
        time.monotonic() < deadline_s
    ):
        time.sleep(0.02)


@contextmanager
def alone(home: Home) -> Generator[None]:
    """Keep every `up` and `down` of this home waiting."""
    handle = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
