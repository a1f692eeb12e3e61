"""Users and the parts of the cluster, on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from superpipe_cluster.api.views.base import Request, View
from superpipe_cluster.spec.fields import NAME_PATTERN


class UserRequest(Request):
    """A person to let in."""

    name: str = Field(pattern=NAME_PATTERN, examples=["alice"])
    role: Literal["user", "admin"] = "user"


class UserView(View):
    """Somebody with a token."""

    name: str
    role: str


class NewUserView(UserView):
    """A new user, with the token that is shown this once."""

    token: str


class UserList(View):
    """Everybody with a token."""

    users: tuple[UserView, ...]


class HealthView(View):
    """Whether the head works; for health checks, no token needed."""

    status: Literal["ok", "degraded"]
    version: str
    trouble: str | None = Field(None, description="What is wrong when degraded.")


class ClusterView(View):
    """The parts of the cluster, for `spcluster doctor`."""

    version: str
    url: str
    pid: int = Field(description="Process of the head.")
    started_at: float = Field(description="Unix seconds at which this head started.")
    ticked_at: float | None = Field(None, description="Unix seconds of the last finished tick of its loop.")
    store: str = Field(description="Where Redis is; never with a password.")
    store_embedded: bool = False
    ray: str = Field(description="Address of the Ray cluster.")
    jobs: dict[str, int] = Field({}, description="Number of jobs by state.")
