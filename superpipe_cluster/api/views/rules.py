"""Quotas and windows, on the wire: rules that admins set for everybody."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from superpipe_cluster.api.views.base import Request, View
from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec.base import refused
from superpipe_cluster.spec.units import parse_bytes


def _bytes_of(value: object) -> int:
    try:
        return parse_bytes(value)
    except BadInput as error:
        raise refused(error.message, error.hint) from None


#: Bytes, written with their unit.
Size = Annotated[
    int, BeforeValidator(_bytes_of), Field(json_schema_extra={"type": "string", "example": "8GiB"})
]


class QuotaRequest(Request):
    """What a user may count on, and what they may not go beyond."""

    guaranteed: Size = Field(0, description="`8GiB`: bytes they get back from borrowers.")
    limit: Size | None = Field(
        None, description="`20GiB`: bytes that their jobs together may hold; null for all."
    )
    weight: float = Field(1.0, gt=0, le=1000, description="Their share beside others'.")


class QuotaView(View):
    """A user's quota, in bytes."""

    user: str
    guaranteed_bytes: int = 0
    limit_bytes: int | None = None
    weight: float = 1.0


class QuotaList(View):
    """Everybody who has a quota, by name."""

    quotas: tuple[QuotaView, ...] = ()


class WindowRequest(Request):
    """Hours that come back."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "days": "mon-fri",
                    "start": "22:00",
                    "end": "07:00",
                    "timezone": "Europe/Berlin",
                    "interactive_floor": "8GiB",
                }
            ]
        }
    )

    days: str = Field(max_length=100, description="The days it starts on: `mon-fri`, `sat,sun`, `daily`.")
    start: str = Field(max_length=20, description="`22:00`")
    end: str = Field(max_length=20, description="`07:00`; on the next day if that is not after `start`.")
    timezone: str = Field(max_length=100, description="Whose clock is meant: `Europe/Berlin`.")
    interactive_floor: Size | None = Field(
        None, description="Bytes of each device that only interactive jobs may take while it is closed."
    )


class WindowView(View):
    """A window, and when it opens and closes next."""

    name: str
    days: str
    start: str
    end: str
    timezone: str
    interactive_floor_bytes: int = 0
    is_open: bool = False
    next_opening: float | None = Field(None, description="Unix seconds; null when it never closes.")
    next_closing: float | None = None


class WindowList(View):
    """All windows, by name."""

    windows: tuple[WindowView, ...] = ()
