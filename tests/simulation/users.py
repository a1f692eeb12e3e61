"""Simulated users: they submit, flood, change their minds, and come back when the head did not answer.

Owns what people ask for. Every request goes to the head that is there, as over HTTP, and may fail with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from simulation.loop import BEGINNING
from simulation.programs import Program
from superpipe_cluster.api.views import ChangeRequest
from superpipe_cluster.errors import Conflict, NotFound, StaleWrite
from superpipe_cluster.head.changes import Changes
from superpipe_cluster.lifecycle.events import Changed
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.store.interface import JobStore
from superpipe_cluster.store.writes import advance

GIB = 2**30

#: What people do to jobs. They resume more often than they pause, or nothing would move for long.
_THOUGHTS = ("cancel", "hold", "release", "pause", "resume", "resume", "requeue", "memory", "priority")


@dataclass(frozen=True, slots=True)
class Wish:
    """A job as somebody wants it, before it has an id. `name` is its idempotency key."""

    name: str
    user: str
    program: Program
    fields: dict[str, Any]


class Users:
    """Everybody with a job to run.

    Args:
        rng: of the seed.
        names: of the users.
        device_bytes: of the largest device.
        stretch: of the seconds of a step.
        is_plain: jobs that compete for bytes and nothing else.
        knows: makes the folder of a job that is about to be submitted.
    """

    def __init__(
        self,
        rng: random.Random,
        names: list[str],
        device_bytes: int,
        stretch: float,
        is_plain: bool,
        knows: Callable[[str, Wish], JobRecord],
    ) -> None:
        self._rng = rng
        self.names = names
        self._device_bytes = device_bytes
        self._stretch = stretch
        self._is_plain = is_plain
        self._knows = knows
        self._made = 0
        #: Submitted without an answer: to be tried again.
        self.unanswered: list[Wish] = []
        self.ids: list[str] = []

    # ---- submitting ------------------------------------------------------------------------------------

    def new_wishes(self) -> list[Wish]:
        """What the next one who comes wants."""
        return self.flood() if self._rng.random() < 0.12 else [self.wish()]

    def flood(self) -> list[Wish]:
        """Many jobs of one user at once; often the tasks of an array."""
        rng = self._rng
        user = rng.choice(self.names)
        wishes = [self.wish(user) for _ in range(rng.randint(3, 7))]
        if not self._is_plain and rng.random() < 0.5:
            limit = rng.randint(1, 3)
            for number, wish in enumerate(wishes):
                wish.fields.update(array=wishes[0].name, array_index=number, array_limit=limit)
        return wishes

    def wish(self, user: str | None = None) -> Wish:
        """A new job that somebody wants."""
        rng = self._rng
        self._made += 1
        user = user or rng.choice(self.names)
        whole = int(rng.choice((0.1, 0.2, 0.3, 0.5, 0.8, 1.0)) * self._device_bytes) - rng.randint(0, 999)
        is_elastic = rng.random() < 0.7
        low = max(1, int(whole * rng.uniform(0.25, 0.9))) if is_elastic else whole
        whole_s = rng.uniform(0.3, 1.5) * self._stretch
        slowest = rng.uniform(1.2, 3.0)
        weights = 2 * whole
        curve = (
            ((low, whole_s * slowest, weights), (whole, whole_s, 0))
            if low < whole
            else ((whole, whole_s, 0),)
        )
        steps = rng.randint(3, 12) if rng.random() < 0.7 else rng.randint(12, 40)
        program = Program(
            key=rng.getrandbits(60),
            steps=steps,
            save_every=rng.randint(1, 5),
            floor_bytes=low if rng.random() < 0.9 else max(1, int(low * 0.8)),
            curve=curve,
            boots_s=rng.uniform(0.2, 3.0) * self._stretch,
            raises_at=rng.randint(1, steps) if rng.random() < 0.05 and not self._is_plain else None,
            streams=rng.random() < 0.85,
            heeds=rng.random() < 0.9,
        )
        fields: dict[str, Any] = {
            "steps": steps,
            "budget_min_bytes": low,
            "budget_max_bytes": whole,
            "may_shrink": rng.random() < 0.85,
            "may_grow": rng.random() < 0.85,
            "curve": curve,
            "max_attempts": rng.randint(2, 6),
            "model_bytes": whole,
        }
        if not self._is_plain:
            fields.update(self._conditions(low))
        return Wish(f"wish-{self._made}", user, program, fields)

    def _conditions(self, low: int) -> dict[str, Any]:
        """What else a job may ask for."""
        rng = self._rng
        fields: dict[str, Any] = {"priority": rng.choice((-1, 0, 0, 0, 1, 2))}
        if rng.random() < 0.3:
            fields["host_bytes"] = rng.randint(1, 20) * GIB
            if rng.random() < 0.5:
                copy, size = rng.choice((("llama", 8 * GIB), ("gpt", 3 * GIB)))
                fields["host_bytes"] += size
                fields |= {"shared_copy": copy, "shared_bytes": size}
        if rng.random() < 0.15 and self.ids:
            way = rng.choice(("after", "after_any", "after_fail"))
            fields[way] = (rng.choice(self.ids),)
        if rng.random() < 0.1:
            fields["time_limit_s"] = rng.uniform(5, 60) * self._stretch
        if rng.random() < 0.1:
            fields["state"] = "HELD"
        if rng.random() < 0.15:
            fields.update(window="morning", at_window_end=rng.choice(("shrink", "pause", "requeue")))
        if rng.random() < 0.1:
            fields["begin_at"] = BEGINNING + rng.uniform(0, 200)
        if rng.random() < 0.15:
            fields["link_min_bytes_per_s"] = rng.randint(1, 6) * 10**8
        return fields

    def submit(self, store: JobStore, wish: Wish) -> None:
        """One try; a wish without an answer is kept, and tried again under the same key."""
        try:
            record = self._knows(store.next_job_id(), wish)
            stored = store.submit(record, idempotency_key=wish.name)
        except BaseException:
            self.unanswered.append(wish)
            raise
        self.ids.append(stored.id)

    # ---- second thoughts -------------------------------------------------------------------------------

    def change_mind(self, store: JobStore, changes: Changes) -> str:
        """Somebody does something to a job; what, in a few words."""
        rng = self._rng
        if not self.ids:
            return "nobody has a job"
        job_id = rng.choice(self.ids[-12:])
        thought = rng.choice(_THOUGHTS)
        try:
            self._do(thought, job_id, store, changes)
        except (Conflict, StaleWrite, NotFound) as refusal:
            return f"{thought} {job_id}: refused ({type(refusal).__name__})"
        return f"{thought} {job_id}"

    def _do(self, thought: str, job_id: str, store: JobStore, changes: Changes) -> None:
        rng = self._rng
        match thought:
            case "cancel":
                if rng.random() < 0.4:
                    changes.cancel(job_id, force=rng.random() < 0.3)
            case "memory":
                record = store.get(job_id)
                top = min(self._device_bytes, int(record.budget_max_bytes * rng.uniform(0.7, 1.5)))
                wanted = {"budget_max_bytes": max(record.budget_min_bytes, top)}
                advance(
                    store, job_id, Changed(wanted)
                )  # `Changes` would plan it anew, which takes a real program
            case "priority":
                if not self._is_plain:
                    wish = {"priority": rng.choice(("low", "normal", "high", "interactive"))}
                    changes.change(job_id, ChangeRequest.model_validate(wish))
            case _:
                changes.act(job_id, thought)  # type: ignore[arg-type]

    def let_go(self, store: JobStore, changes: Changes) -> None:
        """Nobody holds a job back any more."""
        for record in store.list_jobs(active_only=True):
            with suppress(Conflict, StaleWrite, NotFound):
                if record.state is JobState.HELD:
                    changes.act(record.id, "release")
                elif record.pause_asked == "owner":
                    changes.act(record.id, "resume")
