"""What the head knows of its workers beyond the store: whom it started, whom it heard, whom to kill.

Owns memory that may be lost: a new head begins with none of it, and finds out again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

from superpipe_cluster.execution.interface import Worker


class Presence:
    """Safe to use from the tick and from the threads that take reports.

    Args:
        monotonic: a clock of seconds that never goes back.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._mutex = threading.Lock()
        self._placed: set[Worker] = set()
        self._heard_s: dict[Worker, float] = {}
        self._forced: set[Worker] = set()
        self._told: dict[Worker, Hashable] = {}

    def placed(self, worker: Worker) -> None:
        """This head gave the worker its bytes, and has not asked the executor for it yet."""
        with self._mutex:
            self._placed.add(worker)

    def was_placed(self, worker: Worker) -> bool:
        """Whether it was this head that gave the worker its bytes."""
        with self._mutex:
            return worker in self._placed

    def launched(self, worker: Worker) -> None:
        """This head asked the executor for the worker."""
        with self._mutex:
            self._heard_s.setdefault(worker, self._monotonic())

    def was_there(self, worker: Worker) -> bool:
        """Whether this head asked for the worker, or found it alive."""
        with self._mutex:
            return worker in self._heard_s

    def heard(self, worker: Worker) -> None:
        """The worker has reported."""
        with self._mutex:
            self._heard_s[worker] = self._monotonic()

    def adopt(self, worker: Worker) -> bool:
        """Begin to expect reports of a worker that lives already; False when it was known before."""
        with self._mutex:
            if worker in self._heard_s:
                return False
            self._heard_s[worker] = self._monotonic()
            return True

    def silence_s(self, worker: Worker) -> float:
        """Seconds since the worker was last heard of."""
        with self._mutex:
            return self._monotonic() - self._heard_s.get(worker, self._monotonic())

    def force(self, worker: Worker) -> None:
        """Have the worker kill its child without grace."""
        with self._mutex:
            self._forced.add(worker)

    def is_forced(self, worker: Worker) -> bool:
        """Whether the worker is to kill its child without grace."""
        with self._mutex:
            return worker in self._forced

    def is_news(self, worker: Worker, orders: Hashable) -> bool:
        """Whether `orders` are others than those that the worker was hurried for last."""
        with self._mutex:
            return self._told.get(worker) != orders

    def hurried(self, worker: Worker, orders: Hashable) -> None:
        """The worker was asked to come for these orders."""
        with self._mutex:
            self._told[worker] = orders

    def forget_all_but(self, workers: frozenset[Worker]) -> None:
        """Drop what is known of workers whose attempts are over."""
        with self._mutex:
            self._placed &= workers
            self._forced &= workers
            self._heard_s = {worker: at for worker, at in self._heard_s.items() if worker in workers}
            self._told = {worker: orders for worker, orders in self._told.items() if worker in workers}
