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
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.scheduling.queued import Flags, Floats, Integers
from superpipe_cluster.scheduling.snapshot import Quota, Snapshot, waits_for

_NOBODYS = Quota("")


def in_line(eligible: Integers, holding: Iterable[JobRecord], snapshot: Snapshot) -> Integers:
    """Put queued jobs in line.

    A job that was lost or preempted goes back to the place it had: its age counts from when it was submitted. The
    number decides between jobs of the same moment, so that the order is total.

    Args:
        eligible: the places in `snapshot.queued` of those to put in line, oldest first.
        holding: those that have a device now.
        snapshot: the moment.

    Returns:
        Their places in `snapshot.queued`, first in line first.
    """
    queued = snapshot.queued
    rank = -queued.column("priority")[eligible] - _lift(eligible, snapshot)
    # All sorts are stable, and the oldest come first: age decides where nothing else does.
    by_age = np.argsort(rank, kind="stable")
    ordered = eligible[by_age]
    charged, beyond = _charges(
        queued.column("user")[ordered], queued.column("needs")[ordered], holding, snapshot
    )
    return ordered[np.lexsort((charged, 2 * rank[by_age] + beyond))]


def _lift(eligible: Integers, snapshot: Snapshot) -> Integers:
    """By how many classes waiting lifts each job. See [Note: ageing].

    Waiting for other jobs, or for a date, is not waiting in line.
    """
    ageing_s = snapshot.policy.ageing_s
    since = snapshot.queued.column("since")[eligible]
    is_gated = snapshot.queued.column("is_gated")[eligible]
    ended_at: dict[str, float] | None = None
    for row in np.flatnonzero(is_gated & (snapshot.now - since >= ageing_s)):
        if ended_at is None:
            ended_at = {one.id: one.ended_at for one in snapshot.others if one.ended_at is not None}
        named = waits_for(snapshot.queued.jobs[int(eligible[row])])
        since[row] = max([since[row], *(ended_at[job_id] for job_id in named if job_id in ended_at)])
    return np.maximum((snapshot.now - since) / ageing_s, 0.0).astype(np.int64)


def _charges(
    user: Integers, needs: Integers, holding: Iterable[JobRecord], snapshot: Snapshot
) -> tuple[Floats, Flags]:
    """What each job's user has used and is charged for the jobs before it, see [Note: entry penalty].

    What a user is charged does not depend on anybody else's jobs, so these are sums over each user's jobs, in order.

    Args:
        user: the jobs' users, by class and age of the jobs.
        needs: their guaranteed bytes.
        holding: those that have a device now.
        snapshot: the moment.

    Returns:
        Byte-seconds over weight; and whether the job would take its user beyond what they are guaranteed.
    """
    entry_s = snapshot.policy.entry_s
    used = dict(snapshot.usage)
    held: dict[str, int] = {}
    for job in holding:
        promised = job.promised_bytes
        held[job.user] = held.get(job.user, 0) + promised
        if job.placed_at is not None and snapshot.now - job.placed_at < entry_s:
            rest_s = entry_s - max(snapshot.now - job.placed_at, 0.0)
            used[job.user] = used.get(job.user, 0.0) + promised * rest_s
    users = snapshot.queued.users
    quotas = [snapshot.quotas.get(user, _NOBODYS) for user in users]
    weight = np.array([max(quota.weight, 1e-9) for quota in quotas], np.float64)
    used_before = np.array([used.get(user, 0.0) for user in users], np.float64)
    held_before = np.array([held.get(user, 0) for user in users], np.int64)
    guaranteed = np.array([quota.guaranteed_bytes for quota in quotas], np.int64)

    mine = np.argsort(user, kind="stable")  # the jobs of each user together
    first = np.flatnonzero(np.diff(user[mine], prepend=-1))
    counted = np.maximum(needs, 1).astype(np.float64)
    sums = np.cumsum(counted[mine]) - counted[mine]
    before = np.empty(len(user), np.float64)
    before[mine] = sums - np.repeat(sums[first], np.diff(first, append=len(user)))
    charged = (used_before[user] + entry_s * before) / weight[user]
    beyond = held_before[user] + before + counted > guaranteed[user]
    return charged, beyond
