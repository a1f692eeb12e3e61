"""What happens in the cluster, on the wire."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from superpipe_cluster.api.views.base import JsonObject, View


class ClusterEventView(View):
    """One thing that happened, to some job. Of other people's jobs `data` is empty."""

    seq: str = Field(description="Grows from event to event; what `after` takes.")
    at: float = Field(description="Unix seconds.")
    job_id: str
    kind: str
    data: JsonObject = Field(default={})


class EventsView(View):
    """News, oldest first. Ask again from `next`: nothing is missed and nothing comes twice."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {"seq": "1763733600000-0", "at": 1763733600.0, "job_id": "7", "kind": "started"}
                    ],
                    "next": "1763733600000-0",
                }
            ]
        }
    )

    events: tuple[ClusterEventView, ...] = ()
    next: str = Field(description="What to give as `after` to get what comes later.")
