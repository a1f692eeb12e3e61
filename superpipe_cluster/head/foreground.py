"""A cluster that lives as long as one process: `spcluster up --foreground`, for containers and service managers.

Owns the waiting, for a signal or for the cluster's death, and what follows either. Head and workers are Ray's
processes as ever, and Ray restarts the head; dead is what does not come back by itself. How the parts start
and stop is `cluster`'s.
"""

from __future__ import annotations

import http.client
import os
import select
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from superpipe_cluster.errors import NotRunning, SpclusterError, StartFailed
from superpipe_cluster.head import own_ray
from superpipe_cluster.head.cluster import Started, UpOptions, alone, down, up
from superpipe_cluster.head.home import ClusterFile, Home
from superpipe_cluster.machine import processes

#: Seconds that a part may be away: Ray needs some to restart the head, and a person who lets `up` follow on
#: `down --head-only` needs more.
PATIENCE_S = 60.0
_LOOK_EVERY_S = 1.0
_ANSWER_TIMEOUT_S = 5.0


def run(
    options: UpOptions,
    announce: Callable[[Started], None],
    say: Callable[[str], None] = lambda _: None,
    *,
    patience_s: float = PATIENCE_S,
) -> None:
    """Start the cluster, stay until SIGTERM or SIGINT, stop it.

    Returns as well when somebody else has stopped the cluster. Only for the main thread, which gets signals.

    Args:
        options: what to start, as `up` takes them.
        announce: told what was started, once.
        say: told in a few words what is being done.
        patience_s: how long a part that may come back can be away.

    Raises:
        SpclusterError: the cluster has died; what was left of it is stopped. Also all that `up` and `down` raise.
    """
    home = Home(options.home)
    with _signals() as told:
        try:
            announce(up(options, say))
        except StartFailed:
            if told(0):  # Ctrl-C reaches the processes that `up` runs too, and then they are what failed
                return
            raise
        try:
            is_ours = _stay(home, told, patience_s)
        except SpclusterError:
            with suppress(SpclusterError):  # the death is the error to show
                down(home.root, say=say)
            raise
        if is_ours:
            down(home.root, say=say)


def _stay(home: Home, told: Callable[[float], bool], patience_s: float) -> bool:
    """Wait for a signal; False when the cluster that was started is not there any more, but was stopped.

    Raises:
        SpclusterError: it has died.
    """
    started_at = home.read_cluster().started_at
    well_at_s = time.monotonic()
    while not told(_LOOK_EVERY_S):
        try:
            with alone(home):  # an `up` or `down` that is at work would look like a death
                cluster = home.read_cluster()
                trouble = _trouble(cluster)
                ray_ended = cluster.ray.session is not None and not own_ray.is_running(home)
        except (NotRunning, FileNotFoundError):
            return False
        if cluster.started_at != started_at:
            return False
        if ray_ended:
            raise _died(home, "Ray has ended")
        if trouble is None:
            well_at_s = time.monotonic()
        elif time.monotonic() - well_at_s > patience_s:
            raise _died(home, trouble)
    return True


def _trouble(cluster: ClusterFile) -> str | None:
    """What is missing now, and may come back."""
    if not own_ray.answers(cluster.ray.address):
        return f"Ray at {cluster.ray.address} does not answer"
    if cluster.redis_pid is not None and processes.process(cluster.redis_pid) is None:
        return "Redis has ended"
    return None if _is_healthy(cluster) else f"the head does not answer at {cluster.url}"


def _is_healthy(cluster: ClusterFile) -> bool:
    connection = http.client.HTTPConnection(
        cluster.url.removeprefix("http://").rpartition(":")[0], cluster.port, timeout=_ANSWER_TIMEOUT_S
    )
    try:
        connection.request("GET", "/v1/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _died(home: Home, why: str) -> SpclusterError:
    return SpclusterError(
        f"the cluster has died: {why}",
        hint=f"the head's log is {home.head_log}; `spcluster up` takes unfinished jobs up again",
    )


@contextmanager
def _signals() -> Generator[Callable[[float], bool]]:
    """SIGTERM and SIGINT are noted from now on; yields a wait for one, of so many seconds.

    Noted, and not raised as exceptions: a start that is interrupted anywhere could leave a process that nobody
    knows of.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {
        number: signal.signal(number, lambda *_: os.write(writing, b"!"))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda timeout_s: bool(select.select([reading], [], [], timeout_s)[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)
