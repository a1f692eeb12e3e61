"""Who comes before whom: the line.

Owns the order and nothing of what fits. By class; within a class, the jobs that their users' guarantees cover first,
then by what the users have used lately, in proportion to their weights, then by age.

[Note: entry penalty] A job in the line is charged to its user as if it had held its guaranteed bytes for `entry_s`
already, and the next one of the same user stands behind those of others who have used less than both. So a hundred
jobs of one user take turns with the jobs of everybody else, however fast they were submitted. Jobs that have just
started go on being charged that much until they have really used it.

[Note: ageing] Each `ageing_s` of waiting lifts a job by a class, without an end. So every job comes to the front at
last, whoever else arrives, since all who arrive start at their own class. The lift is a place in the line and nothing
more: nobody is preempted for it.

[Note: column by column] Ten thousand records are more than a processor's cache holds, and reading them is most of what
a long line costs. One field of all records at a time is a regular walk through memory, which the processor
prefetches; several fields of one record at a time are not, and take ten times as long. So what is needed of the jobs
in line is read field by field, into columns, and the records are not looked at again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import compress
from operator import eq, lt
from typing import NamedTuple

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.scheduling.snapshot import Quota, Snapshot, waits_for

_NOBODYS = Quota("")


class Queue(NamedTuple):
    """The queued jobs in columns, and the line. See [Note: column by column]."""

    jobs: list[JobRecord]
    ids: list[str]
    users: list[str]
    #: Their guaranteed bytes.
    needs: list[int]
    #: Of those in an array that bounds how many of its tasks run at once, that bound.
    limits: list[int | None]
    #: Their places in the columns, first in line first.
    line: list[int]

    def first_first(self) -> list[JobRecord]:
        """The jobs in line."""
        return [self.jobs[place] for place in self.line]


def in_line(queued: Iterable[JobRecord], holding: Iterable[JobRecord], snapshot: Snapshot) -> Queue:
    """Put the queued jobs in line.

    A job that was lost or preempted goes back to the place it had: its age counts from when it was submitted. The id
    decides between jobs of the same moment, so that the order is total.

    Args:
        queued: those to put in line.
        holding: those that have a device now.
        snapshot: the moment.
    """
    jobs = list(queued)
    queue = Queue(
        jobs,
        [job.id for job in jobs],
        [job.user for job in jobs],
        [job.budget_min_bytes for job in jobs],
        [job.array_limit for job in jobs],
        [],
    )
    ages = [job.submitted_at for job in jobs]
    ranks = [-job.priority for job in jobs]
    lift = _Lift(snapshot)
    for place, submitted_at in enumerate(ages):
        if submitted_at <= lift.earliest:
            ranks[place] -= lift.of(jobs[place])
    classes: dict[int, list[int]] = {rank: [] for rank in sorted(set(ranks))}
    for place in _by_age(ages, queue.ids):
        classes[ranks[place]].append(place)
    charges = _Charges(queue, holding, snapshot)
    for same in classes.values():
        queue.line.extend(charges.merged(same))
    return queue


def _by_age(ages: list[float], ids: list[str]) -> Iterable[int]:
    """The places of the oldest first. Most come in this order, and hardly two of the same moment."""
    if all(map(lt, ages, ages[1:])):
        return range(len(ages))
    places = sorted(range(len(ages)), key=ages.__getitem__)
    in_order = [ages[place] for place in places]
    for age in set(compress(in_order, map(eq, in_order, in_order[1:]))):
        same = slice(bisect_left(in_order, age), bisect_right(in_order, age))
        places[same] = sorted(places[same], key=lambda place: (len(ids[place]), ids[place]))
    return places


class _Charges:
    """What everybody has used, and is charged for the jobs that are in line already. See [Note: entry penalty]."""

    def __init__(self, queue: Queue, holding: Iterable[JobRecord], snapshot: Snapshot) -> None:
        entry_s = snapshot.policy.entry_s
        used = dict(snapshot.usage)
        held: dict[str, int] = {}
        for job in holding:
            promised = job.promised_bytes
            held[job.user] = held.get(job.user, 0) + promised
            if job.placed_at is not None and snapshot.now - job.placed_at < entry_s:
                rest_s = entry_s - max(snapshot.now - job.placed_at, 0.0)
                used[job.user] = used.get(job.user, 0.0) + promised * rest_s
        users = sorted(set(queue.users))
        number_of = {user: number for number, user in enumerate(users)}
        quotas = [snapshot.quotas.get(user, _NOBODYS) for user in users]
        weights = [max(quota.weight, 1e-9) for quota in quotas]
        # From here on users are numbers, by which the lists go.
        self._needs = queue.needs
        self._number = [number_of[user] for user in queue.users]
        self._used = [used.get(user, 0.0) / weight for user, weight in zip(users, weights, strict=True)]
        self._per_byte = [entry_s / weight for weight in weights]
        self._held = [held.get(user, 0) for user in users]
        self._guaranteed = [quota.guaranteed_bytes for quota in quotas]

    def merged(self, same: list[int]) -> list[int]:
        """The places of jobs of one class, which come by age, in line.

        What a job's user is charged before it does not depend on anybody else's jobs, so one sort does it.
        """
        number, needs, used, per_byte = self._number, self._needs, self._used, self._per_byte
        before: dict[int, float] = {}
        for place in same:
            user = number[place]
            before[place] = charged = used[user]
            used[user] = charged + per_byte[user] * (needs[place] or 1)
        line = sorted(same, key=before.__getitem__)
        if any(self._guaranteed):
            line.sort(key=self._beyond(same).__getitem__)
        return line

    def _beyond(self, same: list[int]) -> dict[int, bool]:
        """Whether each job, by its place, would take its user beyond what they are guaranteed."""
        held, guaranteed = self._held, self._guaranteed
        beyond: dict[int, bool] = {}
        for place in same:
            user = self._number[place]
            held[user] += self._needs[place]
            beyond[place] = held[user] > guaranteed[user]
        return beyond


class _Lift:
    """By how many classes waiting lifts a job. See [Note: ageing].

    Waiting for other jobs, or for a date, is not waiting in line.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._ended_at: dict[str, float] | None = None
        #: Who came after this is not lifted yet.
        self.earliest = snapshot.now - snapshot.policy.ageing_s

    def of(self, job: JobRecord) -> int:
        since = max(job.submitted_at, job.queued_at or 0.0, job.begin_at or 0.0)
        if job.after or job.after_any or job.after_fail:
            if self._ended_at is None:
                self._ended_at = {
                    one.id: one.ended_at for one in self._snapshot.jobs if one.ended_at is not None
                }
            since = max(since, *(self._ended_at.get(job_id, since) for job_id in waits_for(job)))
        return max(int((self._snapshot.now - since) / self._snapshot.policy.ageing_s), 0)
