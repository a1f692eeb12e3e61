"""Quotas and windows: setting them, and what they may be.

Owns the checks. How they are read from the settings for a decision is `picture`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from superpipe_cluster.api.views import QuotaRequest, QuotaView, WindowRequest, WindowView
from superpipe_cluster.errors import BadInput, Conflict, NotFound
from superpipe_cluster.head import picture
from superpipe_cluster.machine import Device
from superpipe_cluster.scheduling.snapshot import Quota
from superpipe_cluster.scheduling.windows import Window
from superpipe_cluster.spec.units import format_bytes
from superpipe_cluster.store.interface import JobStore

_QUOTA, _WINDOW = "quota:", "window:"


class Rules:
    """Reads and sets them.

    Args:
        store: where they are.
        devices: of this cluster.
    """

    def __init__(self, store: JobStore, devices: Sequence[Device]) -> None:
        self._store = store
        self._devices = devices

    def quotas(self) -> dict[str, Quota]:
        """By user."""
        return picture.quotas(self._store.settings())

    def windows(self) -> dict[str, Window]:
        """By name."""
        return picture.windows(self._store.settings())

    def put_quota(self, user: str, wish: QuotaRequest | None) -> None:
        """See `Service.put_quota`."""
        quotas = self.quotas()
        if wish is None:
            if user not in quotas:
                raise NotFound(f"{user} has no quota", hint="`spcluster quota list` shows who has one")
            self._store.put_setting(f"{_QUOTA}{user}", None)
            return
        if user not in {known.name for known in self._store.users()}:
            raise NotFound(f"there is no user {user}", hint="`spcluster user list` lists them")
        if wish.limit is not None and wish.limit < wish.guaranteed:
            raise BadInput(
                f"{user} cannot be guaranteed {format_bytes(wish.guaranteed)} "
                f"and limited to {format_bytes(wish.limit)}",
                hint="the limit is the larger of the two, or null",
            )
        others = sum(quota.guaranteed_bytes for quota in quotas.values() if quota.user != user)
        capacity = sum(device.capacity_bytes for device in self._devices)
        if wish.guaranteed and others + wish.guaranteed > capacity:
            raise BadInput(
                f"others are guaranteed {format_bytes(others)} of the devices' {format_bytes(capacity)} already, which "
                f"leaves {format_bytes(max(capacity - others, 0))} to guarantee",
                hint="`spcluster quota list` shows who has what",
            )
        quota = Quota(user, wish.guaranteed, wish.limit, wish.weight)
        self._store.put_setting(f"{_QUOTA}{user}", asdict(quota))

    def put_window(self, name: str, wish: WindowRequest | None) -> None:
        """See `Service.put_window`."""
        if wish is not None:
            floor = wish.interactive_floor or 0
            window = Window(name, wish.days, wish.start, wish.end, wish.timezone, floor)
            self._store.put_setting(f"{_WINDOW}{name}", window.to_json())
            return
        if name not in self.windows():
            raise NotFound(f"there is no window {name}", hint="`spcluster windows list` lists them")
        waiting = [record.id for record in self._store.list_jobs(active_only=True) if record.window == name]
        if waiting:
            shown = ", ".join(waiting[:5]) + (" and others" if len(waiting) > 5 else "")
            raise Conflict(
                f"the window {name} cannot be removed: jobs are to run in it ({shown})",
                hint="cancel them, or `spcluster set ID window=null`",
            )
        self._store.put_setting(f"{_WINDOW}{name}", None)

    def require_window(self, name: str | None) -> None:
        """Refuse a window that is not there, in which a job would wait for ever.

        Raises:
            BadInput: it is not.
        """
        if name is None or name in (known := self.windows()):
            return
        raise BadInput(
            f"there is no window {name}",
            hint=f"the windows here: {', '.join(sorted(known))}"
            if known
            else "an admin makes one: `spcluster windows`",
        )


def quota_views(quotas: Mapping[str, Quota]) -> list[QuotaView]:
    """As the API shows them, by name."""
    return [QuotaView(**asdict(quotas[user])) for user in sorted(quotas)]


def window_views(windows: Mapping[str, Window], wall: float) -> list[WindowView]:
    """As the API shows them at `wall` (unix seconds by the wall clock), by name."""
    return [
        WindowView(
            **window.to_json(),
            is_open=window.is_open(wall),
            next_opening=window.next_opening(wall),
            next_closing=window.next_closing(wall),
        )
        for _, window in sorted(windows.items())
    ]
