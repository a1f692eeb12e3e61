"""Devices, their ledgers and their loads, on the wire."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from superpipe_cluster.api.views.base import Metric, View


class DeviceJobView(View):
    """A job that holds bytes of a device."""

    id: str
    name: str
    user: str
    budget_bytes: int
    held_bytes: int = 0


class DeviceView(View):
    """One device and its ledger: `used_bytes` is the sum of what was promised."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "cpu:0",
                    "name": "virtual device",
                    "kind": "virtual",
                    "capacity_bytes": 3221225472,
                    "used_bytes": 1610612736,
                    "free_bytes": 1610612736,
                    "link_bytes_per_s": 2000000000,
                    "jobs": [{"id": "7", "name": "llama-notes", "user": "alice", "budget_bytes": 1610612736}],
                }
            ]
        }
    )

    id: str = Field(description="`cpu:N` for a virtual device, the NVML UUID for a GPU.")
    name: str
    kind: str = Field(description="virtual or cuda")
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    link_bytes_per_s: int
    jobs: tuple[DeviceJobView, ...] = ()


class HostView(View):
    """The RAM of the machine, within the limits of its cgroup."""

    total_bytes: int
    available_bytes: int
    used_by_jobs_bytes: int = Field(
        0, description="What the jobs that hold a device have booked; shared copies once."
    )


class DevicesView(View):
    """All devices, and the host they hang on."""

    devices: tuple[DeviceView, ...]
    host: HostView


class TopJobView(View):
    """A job on a device, right now."""

    id: str
    name: str
    user: str
    state: str
    budget_bytes: int
    asked_bytes: int | None = Field(
        None, description="What it was asked to hold instead; null when nothing is."
    )
    held_bytes: int = 0
    k: int | None = None
    units: int | None = None
    step: int = 0
    steps: int | None = None
    step_s: Metric = Field(None, description="Seconds of a step, the median of the latest ones.")
    forecast_step_s: Metric = Field(None, description="The same as forecast for its budget.")
    link_bytes_per_s: float = Field(0.0, description="What it moves over the link.")


class TopDeviceView(View):
    """A device right now."""

    id: str
    name: str
    capacity_bytes: int = Field(description="All of it, `foreign_bytes` included.")
    foreign_bytes: int = Field(0, description="What processes hold that are not the cluster's.")
    used_bytes: int = Field(0, description="What is promised to its jobs.")
    link_bytes_per_s: int = 0
    link_used_bytes_per_s: float = 0.0
    jobs: tuple[TopJobView, ...] = ()


class TopView(View):
    """The devices right now, the host, and how many jobs wait."""

    at: float = Field(description="Unix seconds.")
    devices: tuple[TopDeviceView, ...]
    queued: int = 0
    host: HostView
