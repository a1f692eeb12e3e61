"""Who may do what: the whole rule, without HTTP.

Everybody with a token sees the listing of all jobs and devices (a lab wants to know who holds the GPU), who has used
how much, the quotas and windows, and that something happened to a job, and may ask any model that is served. Only its
owner and admins read a job's spec, plan, events and log, or stop, hold, pause or change it. Only admins deal with
users, quotas, windows and the parts of the cluster. The ids of other people's jobs are in the listing, so a refusal
says whose job it is and does not pretend that there is none.
"""

from __future__ import annotations

from superpipe_cluster.errors import Forbidden
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.store.interface import User


def is_admin(user: User) -> bool:
    """Whether the user may touch everything."""
    return user.role == "admin"


def may_touch(user: User, record: JobRecord) -> bool:
    """Whether the user may read all of the job, stop it and change it."""
    return is_admin(user) or record.user == user.name


def require_touch(user: User, record: JobRecord) -> None:
    """Refuse other people's jobs.

    Raises:
        Forbidden: the job belongs to somebody else and the user is no admin.
    """
    if not may_touch(user, record):
        raise Forbidden(
            f"job {record.id} belongs to {record.user}, and you are {user.name}",
            hint="`spcluster queue` shows what everybody may see of it; the rest is for its owner and admins",
        )


def require_admin(user: User) -> None:
    """Refuse everybody but admins.

    Raises:
        Forbidden: the user is no admin.
    """
    if not is_admin(user):
        raise Forbidden(
            f"only an admin may do this, and {user.name} is not one",
            hint="ask whoever ran `spcluster up`",
        )
