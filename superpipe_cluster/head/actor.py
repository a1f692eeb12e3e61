"""The head's actor: the tick's thread, the HTTP server's thread, and the calls of the workers.

Owns putting the parts together and keeping them going. Ray restarts it when it dies; whatever it needs is in
the home directory and the store.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from pathlib import Path

import uvicorn

from superpipe_cluster.api.app import build_app
from superpipe_cluster.errors import SpclusterError
from superpipe_cluster.execution.interface import Orders, Report
from superpipe_cluster.execution.layout import note_birth
from superpipe_cluster.execution.ray_executor import RayExecutor
from superpipe_cluster.head.garbage import leave_alone_what_stays
from superpipe_cluster.head.home import ClusterFile, Home
from superpipe_cluster.head.neighbours import Neighbours
from superpipe_cluster.head.outlook import Outlook
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.head.reports import Reports
from superpipe_cluster.head.rhythm import Rhythm
from superpipe_cluster.head.service import HeadService, Pulse
from superpipe_cluster.head.steady_clock import SteadyClock, SteadyStore
from superpipe_cluster.head.tick import Drain, Tick
from superpipe_cluster.machine import host_memory
from superpipe_cluster.planning import plan_job
from superpipe_cluster.store.redis_store import RedisStore

_log = logging.getLogger(__name__)

#: Seconds between two tries to listen on the API's port, which a dying predecessor may still hold.
_BIND_EVERY_S = 0.2


class HeadActor:
    """The head. See the modules of this package for what it does."""

    def __init__(self, home: str) -> None:
        self._home = Home(Path(home))
        _log_to(self._home.head_log)
        cluster = self._home.read_cluster()
        note_birth(self._home.head_pid, os.getpid())
        self._wake = threading.Event()
        self._pulse = Pulse()
        self._listening = threading.Event()
        self._idle = threading.Event()
        redis = RedisStore(cluster.redis_url)
        store = SteadyStore(redis, SteadyClock(redis.now, time.monotonic, self._home.clock))
        presence = Presence(time.monotonic)
        outlook = Outlook()
        total_bytes = host_memory().total_bytes
        self._reports = Reports(store, presence, self._wake.set)
        self._tick = Tick(
            store,
            RayExecutor(),
            presence,
            self._home,
            cluster.devices,
            lambda: total_bytes,
            foreign=Neighbours(self._home),
            outlook=outlook,
        )
        service = HeadService(
            store,
            self._home,
            cluster,
            presence,
            self._pulse,
            plan_job,
            host_memory,
            started_at=time.time(),
            wake=self._wake.set,
            outlook=outlook,
            foreign=Neighbours(self._home),
        )
        threading.Thread(target=self._loop, name="tick", daemon=True).start()
        threading.Thread(target=self._serve, args=(cluster, service), name="http", daemon=True).start()
        _log.info("head %d started for %s", os.getpid(), cluster.url)

    def report(self, job_id: str, epoch: int, report: Report) -> Orders:
        """A worker's report, see `Reports.take`."""
        return self._reports.take(job_id, epoch, report)

    def ready(self, timeout_s: float) -> str | None:
        """Wait until the API answers and the loop has gone round; None then, else what is missing."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self._listening.is_set() and self._pulse.trouble is None:
                return None
            time.sleep(0.02)
        return self._pulse.trouble if self._listening.is_set() else "it could not listen on its port"

    def drain(self, how: str | None, timeout_s: float) -> bool:
        """Start no more jobs, and let those that hold a device leave it as `how` (a `Drain`) says; None: go on as ever.

        Returns whether no device is held any more. To be asked again until then, also of a head that was restarted in
        the meantime: it has forgotten.
        """
        _log.info("jobs are started" if how is None else f"no job is started from now on ({how})")
        self._idle.clear()
        self._tick.drain(None if how is None else Drain(how))
        self._wake.set()
        return self._idle.wait(timeout_s)

    # ---- threads ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        rhythm, woken, is_first = Rhythm(time.monotonic), True, True
        while True:
            began_s = time.monotonic()
            try:
                if woken or rhythm.is_due or self._tick.watch():
                    holders = self._tick.run()
                    if not holders:
                        self._idle.set()
                    if is_first:
                        leave_alone_what_stays()
                        is_first = False
                    time.sleep(rhythm.went_round(began_s, has_workers=bool(holders)))
                self._pulse.ticked_at = time.time()
                self._set_trouble(None)
            except SpclusterError as error:
                rhythm.failed()
                self._set_trouble(error.message)
            except Exception as error:  # the loop outlives everything; what it cannot do now, it tries again
                rhythm.failed()
                _log.exception("this round of the loop failed")
                self._set_trouble(f"the head's loop failed ({type(error).__name__}); see its log")
            woken = self._wake.wait(rhythm.wait_s())
            self._wake.clear()

    def _set_trouble(self, trouble: str | None) -> None:
        if trouble != self._pulse.trouble:
            _log.log(logging.WARNING if trouble else logging.INFO, "%s", trouble or "all is well")
        self._pulse.trouble = trouble

    def _serve(self, cluster: ClusterFile, service: HeadService) -> None:
        listener = listen(cluster.host, cluster.port)
        self._listening.set()
        config = uvicorn.Config(build_app(service), log_config=None, access_log=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """The API's port, as soon as nobody else has it."""
    told = False
    while True:
        try:
            listener = socket.create_server((host, port), backlog=128)
        except OSError as error:
            if not told:
                _log.warning("cannot listen on %s port %d yet: %s", host, port, error)
            told = True
            time.sleep(_BIND_EVERY_S)
            continue
        # For all its connections. An answer is written in two pieces, head and body; otherwise the second one waits
        # until the client has acknowledged the first, which it puts off for 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("superpipe_cluster", "uvicorn"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if name == "superpipe_cluster" else logging.WARNING)
        logger.addHandler(handler)
        logger.propagate = False
