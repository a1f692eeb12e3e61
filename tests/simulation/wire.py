"""The wire between workers and the head: it loses reports, loses answers, and brings things twice, late or never.

Owns the way of a report, and what the trace says of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation.faults import HeadKilled
from simulation.head import TROUBLE
from simulation.witness import Broken
from superpipe_cluster.execution.interface import Orders, Report, Worker

if TYPE_CHECKING:
    from simulation.world import World


class Wire:
    """Between the workers of one world and whatever head it has."""

    def __init__(self, world: World) -> None:
        self._world = world

    def tell(self, worker: Worker, report: Report) -> Orders:
        """Bring a report to the head, or do not; raises when its worker cannot know that it got there."""
        world = self._world
        chance = 1.0 if world.is_safe else world.rng.random()
        trouble = world.climate.wire
        if chance < trouble * 0.3:
            raise TimeoutError("the report is lost")
        if chance < trouble * 0.5:
            self._deliver(worker, report)
            raise TimeoutError("the answer is lost")
        if chance < trouble * 0.8:
            self._once_more_later(worker, report)
            if chance < trouble * 0.65:
                raise TimeoutError("the report is late")
        orders = self._deliver(worker, report)
        world.witness.answered(worker, orders)
        return orders

    def stray(self, worker: Worker, report: Report) -> None:
        """A report whose answer nobody waits for."""
        try:
            self._deliver(worker, report)
        except TROUBLE as error:
            self._world.note(f"  nobody hears {worker.name}: {error}")

    def _once_more_later(self, worker: Worker, report: Report) -> None:
        head = self._world.head

        def arrive() -> None:
            if self._world.head is head:  # what was on its way to a head dies with it
                self.stray(worker, report)

        in_s = self._world.rng.uniform(0.2, 20.0) * self._world.pace**0.5
        self._world.loop.after(in_s, f"a late report of {worker.name}", arrive)

    def _deliver(self, worker: Worker, report: Report) -> Orders:
        world = self._world
        head = world.head
        if head is None:
            raise ConnectionError("no head")
        is_old = world.witness.is_old(worker)
        try:
            with world.inside():
                orders = head.reports.take(worker.job_id, worker.epoch, report)
        except HeadKilled:
            world.died(head)
            raise ConnectionError("the head died") from None
        if is_old and not orders.stale:
            raise Broken(f"{worker.name} is of an old epoch, and was answered as if it were not")
        world.note(f"  {worker.name} says {report} and hears {_in_words(orders)}")
        return orders


def _in_words(orders: Orders) -> str:
    if orders.stale:
        return "that it is stale"
    words = [f"stop: {orders.stop}"] if orders.stop else []
    if orders.budget_bytes is not None:
        words.append(f"{orders.budget_bytes} bytes, revision {orders.budget_revision}")
    return ", ".join([*words, *(["pause"] if orders.pause else [])]) or "nothing"
