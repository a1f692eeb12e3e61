"""The wire format: what the API says about jobs, devices, use, rules, users and the cluster, and what it takes.

Owns the models, one file per subject, and how a job record becomes one of them. The client parses answers with these
same models, so what is read is lenient (a newer head may say more); what is taken from the network is strict. Nothing
here knows of HTTP.
"""

from __future__ import annotations

from superpipe_cluster.api.views.base import MAX_BODY_BYTES, JsonObject, Metric, Request, View
from superpipe_cluster.api.views.changes import CancelRequest, ChangeRequest
from superpipe_cluster.api.views.cluster import (
    ClusterView,
    HealthView,
    NewUserView,
    UserList,
    UserRequest,
    UserView,
)
from superpipe_cluster.api.views.devices import (
    DeviceJobView,
    DevicesView,
    DeviceView,
    HostView,
    TopDeviceView,
    TopJobView,
    TopView,
)
from superpipe_cluster.api.views.events import ClusterEventView, EventsView
from superpipe_cluster.api.views.jobs import (
    PROGRAM_NAME_PATTERN,
    CodeUpload,
    EventView,
    FileUpload,
    JobDetail,
    JobList,
    JobView,
    LogView,
    SubmitRequest,
    job_detail,
    job_view,
)
from superpipe_cluster.api.views.rules import (
    QuotaList,
    QuotaRequest,
    QuotaView,
    WindowList,
    WindowRequest,
    WindowView,
)
from superpipe_cluster.api.views.usage import JobUsageView, UsageView, UserUsageView

__all__ = [
    "MAX_BODY_BYTES",
    "PROGRAM_NAME_PATTERN",
    "CancelRequest",
    "ChangeRequest",
    "ClusterEventView",
    "ClusterView",
    "CodeUpload",
    "DeviceJobView",
    "DeviceView",
    "DevicesView",
    "EventView",
    "EventsView",
    "FileUpload",
    "HealthView",
    "HostView",
    "JobDetail",
    "JobList",
    "JobUsageView",
    "JobView",
    "JsonObject",
    "LogView",
    "Metric",
    "NewUserView",
    "QuotaList",
    "QuotaRequest",
    "QuotaView",
    "Request",
    "SubmitRequest",
    "TopDeviceView",
    "TopJobView",
    "TopView",
    "UsageView",
    "UserList",
    "UserRequest",
    "UserUsageView",
    "UserView",
    "View",
    "WindowList",
    "WindowRequest",
    "WindowView",
    "job_detail",
    "job_view",
]
