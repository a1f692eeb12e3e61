"""What can be asked of the cluster as a whole: its devices, its use, its events, its rules, its users.

Owns these routes; those about one job are in `jobs.py`, which joins the two to the `Client`.
"""

from __future__ import annotations

import re
from typing import Any

from superpipe_cluster.api.views import (
    ClusterView,
    DevicesView,
    EventsView,
    HealthView,
    NewUserView,
    QuotaList,
    QuotaView,
    TopView,
    UsageView,
    UserList,
    UserView,
    WindowList,
    WindowView,
)
from superpipe_cluster.client.exchange import Exchange
from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec.fields import NAME_PATTERN


class ClusterCalls:
    """The part of `Client` that is about no single job."""

    _exchange: Exchange

    def devices(self) -> DevicesView:
        """The devices and who holds how much of them."""
        return DevicesView.model_validate_json(self._exchange.ask("GET", "/v1/devices"))

    def top(self) -> TopView:
        """The devices right now: bytes, links, and how fast the jobs on them are."""
        return TopView.model_validate_json(self._exchange.ask("GET", "/v1/top"))

    def usage(self, *, user: str | None = None, since: float | None = None) -> UsageView:
        """Who has used how much, by all jobs or by those that had not ended by `since` (unix seconds)."""
        params: dict[str, Any] = {} if user is None else {"user": user_name(user)}
        if since is not None:
            params["since"] = since
        return UsageView.model_validate_json(self._exchange.ask("GET", "/v1/usage", params=params))

    def events(
        self,
        *,
        after: str | None = None,
        last: int | None = None,
        limit: int = 500,
        wait_s: float = 0.0,
        following: bool = False,
    ) -> EventsView:
        """What happened in the cluster, and where to go on.

        Args:
            after: `next` of the answer before; None for the beginning, as far back as it is known.
            last: begin with this many of the latest instead.
            limit: most events to answer with.
            wait_s: how long the head may wait for news when there are none, seconds.
            following: outlast a restart, as followers do.
        """
        params: dict[str, Any] = {"limit": limit, "wait_s": wait_s}
        params |= {} if after is None else {"after": after}
        params |= {} if last is None else {"last": last}
        answer = self._exchange.ask("GET", "/v1/events", params=params, following=following)
        return EventsView.model_validate_json(answer)

    # ---- rules ------------------------------------------------------------------------------------

    def quotas(self) -> list[QuotaView]:
        """Who may hold how much, by user."""
        return list(QuotaList.model_validate_json(self._exchange.ask("GET", "/v1/quotas")).quotas)

    def set_quota(
        self, user: str, *, guaranteed: str = "0B", limit: str | None = None, weight: float = 1.0
    ) -> QuotaView:
        """Set or replace a user's quota; for admins.

        Args:
            user: whose.
            guaranteed: bytes they get back from borrowers, `8GiB`.
            limit: bytes that their jobs together may hold; None for all there are.
            weight: their share beside others'.

        Raises:
            BadInput: a size or a combination that cannot be.
            NotFound: no such user.
            Forbidden: we are no admin.
        """
        body = {"guaranteed": guaranteed, "limit": limit, "weight": weight}
        answer = self._exchange.ask("PUT", f"/v1/quotas/{user_name(user)}", json=body)
        return QuotaView.model_validate_json(answer)

    def remove_quota(self, user: str) -> None:
        """Take a user's quota away; for admins.

        Raises:
            NotFound: they have none.
            Forbidden: we are no admin.
        """
        self._exchange.ask("DELETE", f"/v1/quotas/{user_name(user)}", repeatable=False)

    def windows(self) -> list[WindowView]:
        """The windows, and when each opens and closes next."""
        return list(WindowList.model_validate_json(self._exchange.ask("GET", "/v1/windows")).windows)

    def set_window(
        self,
        name: str,
        *,
        days: str,
        start: str,
        end: str,
        timezone: str,
        interactive_floor: str | None = None,
    ) -> WindowView:
        """Set or replace a window; for admins.

        Args:
            name: as jobs name it.
            days: the days it starts on, `mon-fri`.
            start: when it opens, `22:00`.
            end: when it closes, `07:00`; on the next day if that is not after `start`.
            timezone: whose clock is meant, `Europe/Berlin`.
            interactive_floor: bytes of each device that only interactive jobs may take while it is closed.

        Raises:
            BadInput: a value cannot be used.
            Forbidden: we are no admin.
        """
        body = {
            "days": days,
            "start": start,
            "end": end,
            "timezone": timezone,
            "interactive_floor": interactive_floor,
        }
        answer = self._exchange.ask("PUT", f"/v1/windows/{_window_name(name)}", json=body)
        return WindowView.model_validate_json(answer)

    def remove_window(self, name: str) -> None:
        """Take a window away; for admins.

        Raises:
            NotFound: there is none of this name.
            Conflict: jobs that have not ended are to run in it.
            Forbidden: we are no admin.
        """
        self._exchange.ask("DELETE", f"/v1/windows/{_window_name(name)}", repeatable=False)

    # ---- the parts --------------------------------------------------------------------------------

    def health(self) -> HealthView:
        """Whether the head works; raises like all methods when it does not answer."""
        return HealthView.model_validate_json(self._exchange.ask("GET", "/v1/health"))

    def cluster(self) -> ClusterView:
        """The parts of the cluster; for admins.

        Raises:
            Forbidden: we are no admin.
        """
        return ClusterView.model_validate_json(self._exchange.ask("GET", "/v1/cluster"))

    def add_user(self, name: str, *, role: str = "user") -> NewUserView:
        """Let somebody in; their token is in the answer and nowhere else. For admins.

        Raises:
            Conflict: the name is taken.
            Forbidden: we are no admin.
        """
        # Not repeatable: were the first answer lost, the second would say "taken" and the token be gone.
        body = {"name": user_name(name), "role": role}
        return NewUserView.model_validate_json(
            self._exchange.ask("POST", "/v1/users", json=body, repeatable=False)
        )

    def users(self) -> list[UserView]:
        """Everybody with a token; for admins.

        Raises:
            Forbidden: we are no admin.
        """
        return list(UserList.model_validate_json(self._exchange.ask("GET", "/v1/users")).users)


def user_name(name: str) -> str:
    """The name as it is; raise `BadInput` if nobody can have it."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise BadInput(
            f"`{name}` cannot be a user's name",
            hint="lower-case letters, digits, dots, dashes: `alice`, `j.doe`",
        )
    return name


def _window_name(name: str) -> str:
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise BadInput(
            f"`{name}` cannot be a window's name", hint="lower-case letters, digits, dashes: `night`"
        )
    return name
