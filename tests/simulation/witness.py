"""What must hold after every write and every event, whatever happens: the invariants.

Owns a second set of books, kept from the writes that the store really took. `Broken` is no `Exception`, so that no code
under test can swallow it.

[Note: the invariants]
1. The sum of what is promised on a device is at most its capacity; what grows or starts fits beside foreign bytes, too.
2. What workers really hold is at most what their record promises, and belongs to the epoch that the record names. None
   is given up for lost that lives, and no budget counts as in force before it is.
3. At most one epoch writes checkpoints: none commits after a newer one has begun (`programs.Folder`).
4. A job ends once, for a reason that exists: errors only where the program raised, cancels only where somebody asked.
5. A job that has succeeded has left the bits of an undisturbed run.
6. The events replay to the record, in every field that `REPLAYED_FIELDS` names, after every single event.
7. What a job is charged is its promise times the seconds it held it, counted here a second time.
8. No quota is exceeded by a start or by growth.
9. Nobody overtakes: a start does not put off the first in line, as far as steps and seconds are known.
10. Who was asked to stop, or to change, hears of it as soon as reports get through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulation.books import Books
from simulation.overtaking import put_off
from simulation.programs import Folder
from superpipe_cluster.execution.interface import Orders, Worker
from superpipe_cluster.lifecycle import step as lifecycle_step
from superpipe_cluster.lifecycle.events import (
    Event,
    Lost,
    Placed,
    ResizeAsked,
    Resized,
    Started,
    StopAsked,
    from_stored,
)
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState
from superpipe_cluster.lifecycle.step import REPLAYED_FIELDS, begin, stored_data
from superpipe_cluster.machine import Device

#: Reports that get through before a worker that hears nothing of an order is one that was forgotten.
PATIENCE_REPORTS = 3
#: Seconds by which the true ends may differ from those that were forecast, times the pace, in a calm simulation.
OVERTAKEN_S = 2.0


class Broken(BaseException):
    """An invariant does not hold."""


class Witness:
    """Keeps the books of one simulation.

    Args:
        devices: of the cluster.
        host_bytes: what all host copies may take.
        folders: by job id.
        pace: stretches the seconds of reports and rounds.
        monotonic: the true seconds.
        applied: number of the newest budget that a living worker has put in force, in truth; None for one that does
            not live.

    Attributes:
        foreign: foreign bytes as the head read them last, by device.
        limits: most bytes that a user may hold, by name.
        books: by job id.
        is_calm: whether nothing goes wrong, so that waits can be judged by the second.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        host_bytes: int,
        folders: Mapping[str, Folder],
        pace: float,
        monotonic: Callable[[], float],
        applied: Callable[[Worker], int | None],
    ) -> None:
        self.capacities = {device.id: device.capacity_bytes for device in devices}
        self.links = {device.id: device.link_bytes_per_s for device in devices}
        self.host_bytes = host_bytes
        self.folders = folders
        self.pace = pace
        self.monotonic = monotonic
        self.applied = applied
        self.foreign: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.books: dict[str, Books] = {}
        self.is_calm = False

    # ---- writes ----------------------------------------------------------------------------------------

    def wrote(self, call: str, args: tuple[Any, ...], result: Any) -> None:
        """A call to the store has had its effect."""
        if call == "submit_all":
            for record in result:
                self._submitted(record)
        elif call == "transition":
            self._transitioned(args[0], result, args[2])
        elif call == "amend":
            self._amended(result)

    def _submitted(self, record: JobRecord) -> None:
        if record.id in self.books:
            return  # a repeated submit found its first job
        if any(book.record.name == record.name for book in self.books.values()):
            self._break(f"{record.name} was submitted twice")
        _, event = begin(record.model_copy(update={"revision": 0}), record.submitted_at)
        data = stored_data(event, record)
        replayed = lifecycle_step.replay([lifecycle_step.Happened(record.submitted_at, event.kind, data)])
        self.books[record.id] = Books(record, replayed, record)

    def _amended(self, after: JobRecord) -> None:
        book = self.books[after.id]
        before = book.record
        if (before.state, before.epoch) != (after.state, after.epoch):
            self._break(
                f"job {after.id} went from {before.state} {before.epoch} to {after.state} {after.epoch} unseen"
            )
        book.record = after

    def _transitioned(self, before: JobRecord, after: JobRecord, event: Event) -> None:
        book = self.books[after.id]
        stood = book.record
        if (stood.state, stood.epoch, stood.revision) != (before.state, before.epoch, before.revision):
            self._break(
                f"job {after.id}: {event.kind} was written over {stood.state}, revision {stood.revision}"
            )
        if stood.state.is_terminal:
            self._break(f"job {after.id} had ended ({stood.state}) when {event.kind} came")
        self._count(book, after.changed_at)
        book.record = after
        self._replays(book, event, after)
        self._judge(book, before, after, event)
        if not after.state.holds_device:
            book.counted_at = None
        elif book.counted_at is None:
            book.counted_at = after.changed_at
        if after.state.is_terminal:
            self._ended(book, after)
        self._sums()

    def _judge(self, book: Books, before: JobRecord, after: JobRecord, event: Event) -> None:
        """What must be true in the simulated world for this event to be right."""
        applied = self.applied(Worker(before.id, before.epoch))
        match event:
            case Started():
                book.running_since_s = self.monotonic()
            case StopAsked(why=why):
                book.unheard = 0
                book.cancels += why == EndReason.CANCELLED
                ran_s, limit_s = self.monotonic() - book.running_since_s, after.time_limit_s or 0.0
                is_early = why == EndReason.TIME_LIMIT and ran_s < 0.98 * limit_s - 1.0
                self._need(not is_early, after, f"ran for {ran_s:.1f} s of {limit_s:.1f} s")
            case Resized(revision=revision) if applied is not None and revision > applied:
                self._break(
                    f"job {after.id}: budget {revision} counts as in force, its worker is at {applied}"
                )
            case Lost() if applied is not None:
                self._break(f"job {after.id} was given up for lost, its worker of epoch {before.epoch} lives")
            case Placed():
                late = put_off(self.books, self.folders, self.capacities, after) if self.is_calm else None
                if late is not None and late.by_s > OVERTAKEN_S * self.pace:
                    self._break(f"job {after.id} starts {late.sentence}")
                self._granted(after, event)
            case ResizeAsked():
                book.unheard = 0
                if self._promise(after) > self._promise(before):
                    self._granted(after, event)
            case _:
                pass

    def _replays(self, book: Books, event: Event, after: JobRecord) -> None:
        again = from_stored(event.kind, stored_data(event, after))
        assert again is not None
        book.replayed = lifecycle_step.step(book.replayed, again, after.changed_at)
        self._same(after, book.replayed)

    def check_history(self, record: JobRecord, history: Sequence[lifecycle_step.Happened]) -> None:
        """The events as stored lead to the record."""
        self._same(record, lifecycle_step.replay(history))

    def _same(self, record: JobRecord, replayed: JobRecord) -> None:
        for name in REPLAYED_FIELDS:
            found, led_to = getattr(record, name), getattr(replayed, name)
            if found != led_to:
                self._break(f"job {record.id}: {name} is {found!r}, and its events lead to {led_to!r}")

    def _count(self, book: Books, now: float) -> None:
        if book.counted_at is not None:
            held_s = max(0.0, now - book.counted_at)
            book.charged_byte_s += self._promise(book.record) * held_s
            book.counted_at = max(now, book.counted_at)

    def _ended(self, book: Books, after: JobRecord) -> None:
        book.ends += 1
        if book.ends > 1:
            self._break(f"job {after.id} ended {book.ends} times")
        if abs(book.charged_byte_s - after.used_byte_s) > 1.0 + 1e-9 * book.charged_byte_s:
            self._break(
                f"job {after.id} was charged {after.used_byte_s} byte-seconds and held {book.charged_byte_s}"
            )
        folder = self.folders[after.id]
        program = folder.program
        match after.reason:
            case EndReason.OK:
                if folder.result != program.result():
                    self._break(
                        f"job {after.id} succeeded with {folder.result}, an undisturbed run has {program.result()}"
                    )
            case EndReason.ERROR:
                self._need(program.raises_at is not None, after, "its program never raises")
            case EndReason.CANCELLED:
                self._need(book.cancels > 0, after, "nobody cancelled it")
            case EndReason.WORKER_LOST:
                self._need(
                    after.losses >= after.max_attempts, after, f"lost {after.losses} of {after.max_attempts}"
                )
            case EndReason.TIME_LIMIT:
                self._need(after.time_limit_s is not None, after, "it has no limit")
            case EndReason.DEPENDENCY_FAILED:
                self._need(
                    bool(after.after or after.after_any or after.after_fail), after, "it depends on nothing"
                )
            case _:
                self._break(f"job {after.id} ended for {after.reason}: {after.message}")

    def _need(self, holds: bool, record: JobRecord, otherwise: str) -> None:
        if not holds:
            self._break(f"job {record.id} ended for {record.reason}, and {otherwise}")

    # ---- bytes -----------------------------------------------------------------------------------------

    def _promise(self, record: JobRecord) -> int:
        """The promise by this book's own arithmetic, which a bug in the product cannot change."""
        return max(record.charged_bytes, record.budget_bytes or 0, record.budget_asked_bytes or 0)

    def _sums(self) -> None:
        promised = dict.fromkeys(self.capacities, 0)
        for book in self.books.values():
            if book.record.state.holds_device and book.record.device is not None:
                promised[book.record.device] += self._promise(book.record)
        for device, total in promised.items():
            if total > self.capacities[device]:
                self._break(f"{total} bytes are promised on {device}, which has {self.capacities[device]}")

    def _granted(self, record: JobRecord, event: Event) -> None:
        on_device = of_user = 0
        for book in self.books.values():
            if book.record.state.holds_device:
                on_device += self._promise(book.record) if book.record.device == record.device else 0
                of_user += self._promise(book.record) if book.record.user == record.user else 0
        device = record.device or ""
        usable = self.capacities[device] - self.foreign.get(device, 0)
        if on_device > usable:
            self._break(
                f"{event.kind} of job {record.id} brings {device} to {on_device} bytes, {usable} are usable"
            )
        if isinstance(event, Placed):
            self._fits_beside(record)
        limit = self.limits.get(record.user)
        if limit is not None and of_user > limit:
            self._break(f"{event.kind} of job {record.id} brings {record.user} to {of_user} bytes of {limit}")

    def _fits_beside(self, record: JobRecord) -> None:
        """Host memory, link and array limit hold for the job that was just placed."""
        held = [book.record for book in self.books.values() if book.record.state.holds_device]
        copies = {one.shared_copy: one.shared_bytes for one in held if one.shared_copy is not None}
        host = sum(one.host_bytes - one.shared_bytes for one in held) + sum(copies.values())
        if host > self.host_bytes:
            self._break(f"job {record.id} brings the host copies to {host} bytes of {self.host_bytes}")
        link = sum(one.link_min_bytes_per_s for one in held if one.device == record.device)
        if record.link_min_bytes_per_s and link > self.links[record.device or ""]:
            self._break(
                f"job {record.id} brings the promises on the link of {record.device} to {link} bytes/s"
            )
        tasks = sum(one.array == record.array for one in held)
        if record.array is not None and record.array_limit is not None and tasks > record.array_limit:
            self._break(f"{tasks} tasks of array {record.array} hold a device, {record.array_limit} may")

    def check_held(self, holders: list[tuple[Worker, str, int]]) -> None:
        """Compare what is really held with what is promised."""
        total = dict.fromkeys(self.capacities, 0)
        for worker, device, held_bytes in holders:
            record = self.books[worker.job_id].record
            total[device] += held_bytes
            if not record.state.holds_device or record.epoch != worker.epoch:
                self._break(
                    f"{worker.name} holds {held_bytes} bytes, and its job is {record.state} in epoch {record.epoch}"
                )
            if held_bytes > self._promise(record):
                self._break(
                    f"{worker.name} holds {held_bytes} bytes and was promised {self._promise(record)}"
                )
        for device, held_bytes in total.items():
            if held_bytes > self.capacities[device]:
                self._break(f"{held_bytes} bytes are held on {device}, which has {self.capacities[device]}")

    # ---- orders ----------------------------------------------------------------------------------------

    def is_old(self, worker: Worker) -> bool:
        """Whether the worker's epoch is over."""
        return worker.epoch < self.books[worker.job_id].record.epoch

    def answered(self, worker: Worker, orders: Orders) -> None:
        """A worker has heard `orders`."""
        book = self.books[worker.job_id]
        record = book.record
        if record.epoch != worker.epoch:
            return
        stop_owed = record.state is JobState.STOPPING and orders.stop is None
        budget_owed = (
            record.budget_asked_bytes is not None and orders.budget_revision != record.budget_revision
        )
        if (stop_owed or budget_owed) and not orders.stale and record.state.holds_device:
            book.unheard += 1
            if book.unheard > PATIENCE_REPORTS:
                what = "stop" if stop_owed else f"change to {record.budget_asked_bytes} bytes"
                self._break(f"{worker.name} reports and is not told to {what}")
        else:
            book.unheard = 0

    def _break(self, sentence: str) -> None:
        raise Broken(sentence)
