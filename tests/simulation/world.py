"""One simulated cluster: what there is in it, and the order of a run.

Owns the putting together. Same seed, same trace: randomness comes from the seed alone, time from `Loop`, and nothing
else is asked.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from simulation.climate import CLIMATES
from simulation.cluster import Cluster
from simulation.faults import HeadKilled
from simulation.head import TROUBLE, Head
from simulation.loop import Loop
from simulation.misfortunes import Misfortunes
from simulation.programs import Folder
from simulation.users import GIB, Users, Wish
from simulation.wire import Wire
from simulation.witness import Broken, Witness
from superpipe_cluster.execution.interface import Worker
from superpipe_cluster.head.home import Home
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.machine import Device, parse_device
from superpipe_cluster.scheduling.policy import DEFAULT, Policy
from superpipe_cluster.store.memory_store import MemoryStore

#: Between two rounds after one that failed.
TRY_AGAIN_S = 0.5
#: After the last fault everything must have ended within so many events and seconds.
QUIET_EVENTS, QUIET_S = 20_000, 40_000.0
#: In the quiet, owners look after their jobs every so many events.
LOOK_EVERY = 50
HOST_BYTES = 48 * GIB

Plant = Callable[["World"], None]


class World:
    """Everything there is in one simulation.

    Args:
        seed: decides everything.
        root: an empty folder for the cluster's home.
        listen: gets every line of the trace.
        plant: puts a bug in.

    Attributes:
        pace: stretches the seconds between reports and between rounds, so that a thousand events reach further.
        is_safe: nothing goes wrong any more.
        is_fenced: False for a planted bug.
        make_head: makes a head; another class for a planted bug.
    """

    def __init__(
        self, seed: int, root: Path, listen: Callable[[str], None] | None = None, plant: Plant | None = None
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.climate = CLIMATES[seed % len(CLIMATES)]
        self.pace = rng.choice((1.0, 4.0, 10.0))
        self.policy = self._make_policy()
        self.loop = Loop()
        self.store = MemoryStore(self.loop.wall)
        self.home = Home(root)
        self.home.create()
        self.devices = self._make_devices()
        self.foreign: dict[str, int] = {}
        self.host_bytes = HOST_BYTES
        self.is_safe = False
        self.is_fenced = True
        self.make_head: type[Head] = Head
        self.head: Head | None = None
        self._listen = listen
        self._hash = hashlib.sha256()
        self._folders: dict[str, Folder] = {}
        self._by_path: dict[Path, Folder] = {}
        self._depth = 0
        self._round_token = 0
        self._woken = False
        self._is_lifted = False
        is_calm = self.climate.name == "calm"
        self.witness = Witness(
            self.devices, HOST_BYTES, self._folders, self.pace, self.loop.monotonic, self._applied
        )
        self.witness.is_calm = is_calm
        names = ["ada"] if is_calm and rng.random() < 0.7 else ["ada", "bob", "eve"][: rng.randint(2, 3)]
        largest = max(device.capacity_bytes for device in self.devices)
        self.users = Users(rng, names, largest, self.pace**0.5, is_calm, self._expect)
        wire = Wire(self)
        self.cluster = Cluster(
            self.loop, rng, self.climate, self.pace, self._by_path.__getitem__, wire.tell, wire.stray
        )
        if plant is not None:
            plant(self)
        self.note(f"seed {seed}: {self.climate.name}, pace {self.pace:g}, {len(self.devices)} devices")
        misfortunes = Misfortunes(self)
        if not is_calm:
            misfortunes.admins_set()
        self._new_head()
        misfortunes.begin()

    def _make_policy(self) -> Policy:
        """Some seeds have a scheduler in a hurry, so that a thousand events see what takes it minutes."""
        if self.rng.random() < 0.5:
            return DEFAULT
        hurry = {"ageing_s": 120.0, "min_runtime_s": 20.0, "grow_hold_s": 5.0, "entry_s": 20.0}
        return replace(DEFAULT, half_life_s=300.0, **hurry)

    def _make_devices(self) -> list[Device]:
        rng = self.rng
        sizes = [rng.choice((8, 16, 24)) for _ in range(rng.choice((1, 1, 2)))]
        return [parse_device(f"cpu:{size}GiB@1GB/s", index) for index, size in enumerate(sizes)]

    # ---- running ---------------------------------------------------------------------------------------

    def run(self, events: int) -> None:
        """Let so many events happen, then let everything come to its end.

        Raises:
            Broken: an invariant does not hold.
        """
        while self.loop.done < events and self.loop.next_up is not None:
            self._next()
        self._calm_down()
        until_s = self.loop.now_s + QUIET_S
        while waiting := self._unended():
            too_long = self.loop.done > events + QUIET_EVENTS or self.loop.now_s > until_s
            if too_long or self.loop.next_up is None:
                raise Broken(f"these wait for ever: {'; '.join(waiting)}")
            self._next()
            if self.loop.done % LOOK_EVERY == 0:
                self._let_go()
        self._compare_with_store()

    def _next(self) -> None:
        what = self.loop.next_up
        self.loop.run_next()
        self.note(what or "")
        self.witness.check_held(self.cluster.holders())

    def meanwhile(self) -> None:
        """Something else happens in the middle of a call of the head."""
        if self._depth > 1 or self.loop.next_up in (None, "round"):
            return
        self.note(f"  meanwhile: {self.loop.next_up}")
        with self.inside():
            self.loop.run_next()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """While the head does something."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @property
    def is_inside(self) -> bool:
        """Whether the head is doing something."""
        return self._depth > 0

    def note(self, line: str) -> None:
        """One line of the trace."""
        line = f"{self.loop.now_s:10.3f} {line}"
        self._hash.update(line.encode())
        if self._listen is not None:
            self._listen(line)

    @property
    def digest(self) -> str:
        """Of the trace so far."""
        return self._hash.hexdigest()[:16]

    # ---- the head --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """The next round comes at once."""
        self._woken = True
        self._schedule_round(0.01)

    def died(self, head: Head) -> None:
        """The head's process is gone; another one comes."""
        head.life.die()
        if self.head is head:
            self.head = None
            in_s = self.rng.uniform(0.5, 5.0) * self.pace
            self.loop.after(in_s, "the head comes back", self._new_head)

    def ask(self, what: str, question: Callable[[Head], str]) -> None:
        """Somebody asks the head for something; `question` says what came of it."""
        head = self.head
        if head is None:
            return
        try:
            with self.inside():
                self.note(f"  {what}: {question(head)}")
        except HeadKilled:
            self.died(head)
        except TROUBLE as error:
            self.note(f"  {what}: {error}")
        self.wake()

    def submit(self, head: Head) -> str:
        """A new job, or many; and those once more that nobody has answered for."""
        unanswered, self.users.unanswered = self.users.unanswered, []
        wishes = unanswered if self.is_safe else [*unanswered, *self.users.new_wishes()]
        for number, wish in enumerate(wishes):
            try:
                self.users.submit(head.store, wish)
            except BaseException:
                self.users.unanswered += wishes[number + 1 :]
                raise
        return f"{len(wishes)} jobs"

    def _new_head(self) -> None:
        self.head = self.make_head(self)
        self.note("a new head")
        self.wake()

    def _schedule_round(self, seconds: float) -> None:
        self._round_token += 1
        token = self._round_token
        self.loop.after(seconds, "round", lambda: self._round(token))

    def _round(self, token: int) -> None:
        head = self.head
        if token != self._round_token or head is None:
            return
        if not self.is_inside:
            self.witness.foreign = dict(self.foreign)
        woken, self._woken = self._woken, False
        seconds = TRY_AGAIN_S
        try:
            with self.inside():
                seconds = head.go_round(woken=woken)
        except HeadKilled:
            self.died(head)
        except TROUBLE as error:
            self.note(f"  round: {error}")
        if self.head is head:
            self._schedule_round(0.01 if self._woken else seconds * self.pace)

    # ---- the quiet end ---------------------------------------------------------------------------------

    def set_foreign(self, device: Device, size_bytes: int) -> None:
        """From now on processes that are not ours hold so much of the device."""
        self.foreign[device.id] = size_bytes
        (self.home.root / f"foreign-{device.id}.json").write_text(f'{{"bytes": {size_bytes}}}')
        self.note(f"  foreign processes hold {size_bytes} bytes of {device.id}")

    def _calm_down(self) -> None:
        self.note("from here on nothing goes wrong")
        self.is_safe = self.cluster.is_safe = True
        for device in self.devices:
            if self.foreign.get(device.id):
                self.set_foreign(device, 0)
        if self.head is not None:
            self.head.life.is_safe = True
        self.cluster.wake_all()
        self._let_go()

    def _let_go(self) -> None:
        """Nobody holds anything back any more."""
        if self.head is None:
            return
        if not self._is_lifted:
            self.ask("admin", self._lift)
        if self.users.unanswered:
            self.ask("submit again", self.submit)
        self.users.let_go(self.head.store, self.head.changes)

    def _lift(self, head: Head) -> str:
        """Nothing is forbidden any more."""
        for user in sorted(self.witness.limits):
            head.store.put_setting(f"quota:{user}", None)
        always = {"days": "daily", "start": "00:00", "end": "00:00", "timezone": "UTC"}
        head.store.put_setting("window:morning", always)
        self.witness.limits.clear()
        self._is_lifted = True
        return "quotas and windows are lifted"

    def _unended(self) -> list[str]:
        unanswered = [f"{wish.name} (unanswered)" for wish in self.users.unanswered]
        records = (book.record for book in self.witness.books.values())
        return unanswered + [
            f"job {record.id} ({record.state}, {record.reason}: {record.message})"
            for record in records
            if not record.state.is_terminal
        ]

    def _compare_with_store(self) -> None:
        """The books, the store, its events and the head's own memory agree."""
        books = {job_id: book.record for job_id, book in self.witness.books.items()}
        stored = {record.id: record for record in self.store.list_jobs()}
        if books != stored:
            raise Broken("the books and the store differ")
        seen = stored if self.head is None else {one.id: one for one in self.head.store.list_jobs()}
        for job_id, record in stored.items():
            self.witness.check_history(record, [one.happened for one in self.store.events(job_id)])
            if seen.get(job_id) != record:
                raise Broken(f"job {job_id}: the head remembers {seen.get(job_id)}, the store holds {record}")

    def _applied(self, worker: Worker) -> int | None:
        actor = self.cluster.actors.get(worker)
        return None if actor is None else actor.child.applied_revision

    def _expect(self, job_id: str, wish: Wish) -> JobRecord:
        """The record of a job that is about to be submitted, and its folder."""
        files = self.home.job(job_id)
        folder = Folder(job_id, files, wish.program, self._break, self.is_fenced)
        self._folders[job_id] = self._by_path[files.root] = folder
        fields = {"kind": "train", "worker": "train_lm", "output": str(files.output), **wish.fields}
        return JobRecord(id=job_id, name=wish.name, user=wish.user, **fields)

    def _break(self, sentence: str) -> None:
        raise Broken(sentence)
