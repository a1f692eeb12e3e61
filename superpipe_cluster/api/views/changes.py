"""What may be asked of a job that is there, on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from superpipe_cluster.api.views.base import Request
from superpipe_cluster.spec.fields import Duration, Memory, Moment, WindowName


class CancelRequest(Request):
    """How to stop a job."""

    force: bool = Field(False, description="Kill it now instead of letting it save first.")


class ChangeRequest(Request):
    """New values for what a job asked for. What is left out stays; null takes back what may be absent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"priority": "high", "gpu_memory": "6GiB..20GiB", "time_limit": None}]
        }
    )

    priority: Annotated[
        Literal["low", "normal", "high", "interactive"], Field(description="Its class in the queue.")
    ] = "normal"
    gpu_memory: Memory = Field("auto", description="`6GiB..20GiB`, `12GiB` or `auto`; also of a running job.")
    time_limit: Duration | None = Field(None, description="`8h`; null for none.")
    not_before: Moment | None = Field(
        None, description="ISO time before which it does not start; null for none."
    )
    window: WindowName | None = Field(None, description="The window it may run in; null for any time.")
    at_window_end: Literal["shrink", "pause", "requeue"] = "shrink"
