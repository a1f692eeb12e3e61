"""What goes wrong, and how often: the kinds of trouble a seed can bring.

Owns the probabilities. Where a fault strikes is decided by who asks: `faults` at calls of the head, `wire` between
workers and head, `workers` inside a program.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Climate:
    """Probabilities of trouble.

    Attributes:
        name: for the trace.
        store: a call to the store fails, before its effect or after it.
        executor: so does a call to the executor.
        head: the head dies at a call, before or after its effect.
        between: something else happens while a round of the head waits for the store.
        wire: a report is lost, or its answer is, or it comes twice, or late and out of order.
        workers: a program dies, hangs, freezes or fails, at one of its steps.
        lingering: what is dead keeps its device bytes for a while, and may wake up once more to write.
        machine: per second, foreign processes take device bytes, and clocks are set.
        users: per second, somebody changes their mind about a job.
    """

    name: str
    store: float = 0.0
    executor: float = 0.0
    head: float = 0.0
    between: float = 0.0
    wire: float = 0.0
    workers: float = 0.0
    lingering: float = 0.3
    machine: float = 0.0
    users: float = 0.05


CLIMATES: tuple[Climate, ...] = (
    Climate("calm"),
    Climate("busy", between=0.15, users=0.4),
    Climate("bad store", store=0.02, between=0.05),
    Climate("bad executor", executor=0.06, between=0.05, workers=0.02),
    Climate("dying head", head=0.01, between=0.05, users=0.1),
    Climate("bad wire", wire=0.25, between=0.05, users=0.2),
    Climate("mortal workers", workers=0.08, lingering=0.7, between=0.05),
    Climate("strange machine", machine=0.05, between=0.05, users=0.1),
    Climate(
        "storm", store=0.01, executor=0.02, head=0.004, between=0.1, wire=0.1, workers=0.03, lingering=0.6,
        machine=0.03, users=0.2,
    ),
)  # fmt: skip
