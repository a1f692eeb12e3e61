"""Carrying a child's news to the head and the head's orders to the child, for as long as it takes.

Owns the loop and what happens while the head is away: the newest news and the end are kept, and told to the
next head. Knows nothing of Ray: how the head is reached is an argument.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from superpipe_cluster.execution.interface import Orders, Report
from superpipe_cluster.execution.supervisor import Supervisor
from superpipe_cluster.lifecycle.states import EndReason

#: Seconds between two reports, and between the first ones, until the program is known to run.
REPORT_EVERY_S = 0.5
FIRST_EVERY_S = 0.1


def report_to_the_end(
    supervisor: Supervisor,
    tell: Callable[[Report], Orders],
    *,
    every_s: float = REPORT_EVERY_S,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Report until the head has heard of the child's end, or that nobody wants to hear of it.

    Args:
        supervisor: the child.
        tell: brings one report to the head; raises, whatever it raises, when it did not get there.
        every_s: seconds between reports; an end, an acknowledgement and what the head hurries for are told at once.
        pause: waits that long while the head is away.
    """
    runs = False
    while True:
        end = supervisor.wait_for_news(every_s if runs else min(every_s, FIRST_EVERY_S))
        progress = supervisor.take_progress()
        if supervisor.has_progress:
            end = None  # told after all that came before it
        try:
            orders = tell({"progress": progress, "end": asdict(end) if end else None})
        except Exception:  # no head, a dying one, one without its store: all mean "later"
            supervisor.give_back(progress)
            pause(every_s)
            continue
        runs = runs or bool(progress.get("running"))
        if orders.stale:
            supervisor.stop(EndReason.WORKER_LOST, force=True)
            supervisor.wait()
            return
        if end is not None:
            return
        _pass_on(orders, supervisor)


def _pass_on(orders: Orders, supervisor: Supervisor) -> None:
    if orders.stop is not None:
        supervisor.stop(orders.stop, force=orders.force)
    if orders.budget_bytes is not None:
        supervisor.ask_budget(orders.budget_bytes, orders.budget_revision)
    supervisor.ask_pause(orders.pause)
