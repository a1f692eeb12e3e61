"""Who has used how much, on the wire."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from superpipe_cluster.api.views.base import Metric, View


class _Used(View):
    byte_s: float = Field(0.0, description="Device bytes promised, times seconds; what still runs up to now.")
    link_bytes: int = Field(0, description="Bytes moved between host and device, both ways.")
    waited_s: float = Field(0.0, description="Seconds in the queue.")
    ran_s: float = Field(0.0, description="Seconds running.")
    slowdown: Metric = Field(
        None,
        description="Measured seconds of a step over the forecast with the whole model on the device; of a user, the "
        "mean over the jobs where both are known. Null where none is.",
    )


class UserUsageView(_Used):
    """What one user's jobs have used."""

    user: str
    jobs: int = 0
    decayed_byte_s: float = Field(
        0.0, description="All that the user ever used, older hours counting less: what the queue goes by."
    )
    share: float = Field(0.0, description="The part of everybody's `decayed_byte_s`, 0 to 1.")


class JobUsageView(_Used):
    """What one job has used, over all its attempts."""

    id: str
    name: str
    user: str
    state: str


class UsageView(View):
    """By user, the heaviest first; and by job, the newest last."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "users": [{"user": "alice", "jobs": 1, "byte_s": 6.4e12, "ran_s": 3600.0, "share": 1.0}],
                    "jobs": [
                        {"id": "7", "name": "llama", "user": "alice", "state": "RUNNING", "byte_s": 6.4e12}
                    ],
                }
            ]
        }
    )

    users: tuple[UserUsageView, ...] = ()
    jobs: tuple[JobUsageView, ...] = ()
