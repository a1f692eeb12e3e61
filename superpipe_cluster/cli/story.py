"""What happened to a job, event by event, in words.

Owns the line of one event, and what the events say of the job's budget: what it was shrunk or grown to, and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from superpipe_cluster.api.views import EventView
from superpipe_cluster.cli import render
from superpipe_cluster.cli.times import ahead

#: Of a job that was submitted, what tells it from others; the event carries more, for replays.
_SUBMITTED = ("name", "user")


def details(kind: str, data: Mapping[str, Any]) -> str:
    """`device=cpu:0 budget=1.5 GiB`: what an event says beside its kind."""
    said: list[str] = []
    for key, value in data.items():
        # `to_...` is where the event left the job, which the next one shows.
        told = key in _SUBMITTED if kind == "submitted" else not key.startswith("to_")
        if told and value not in (None, "", [], {}):
            said.append(f"{key.removesuffix('_bytes')}={_value(key, value)}")
    return " ".join(said)


def line(event: EventView) -> str:
    """The event's kind and details."""
    # What a job was submitted as stands above.
    return (
        event.kind
        if event.kind == "submitted"
        else f"{event.kind}  {details(event.kind, event.data)}".rstrip()
    )


def last_resize(events: Sequence[EventView], now: float) -> str:
    """`shrunk from 2.0 GiB to 1.0 GiB, 4 min ago: job 7 needs them`; empty when this attempt's budget never moved."""
    said, before = "", 0
    asked: EventView | None = None
    for event in events:
        size_bytes = event.data.get("budget_bytes")
        if event.kind == "placed":
            said, before, asked = "", int(size_bytes or 0), None
        elif event.kind == "resize_asked":
            asked = event
        elif event.kind == "resized" and isinstance(size_bytes, int):
            if event.data.get("refused"):
                said = f"stayed at {render.size(size_bytes)}: {event.data['refused']}"
            elif size_bytes != before:
                word = "shrunk" if size_bytes < before else "grown"
                why = asked.data.get("why") if asked is not None else None
                said = (
                    f"{word} from {render.size(before)} to {render.size(size_bytes)}, {_ago(event.at, now)}"
                )
                said += f": {why}" if why else ""
            before, asked = size_bytes, None
    return said


def _ago(at: float, now: float) -> str:
    passed = ahead(now + max(0.0, now - at), now)
    return "just now" if passed == "now" else f"{passed.removeprefix('in ')} ago"


def _value(key: str, value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{_value(name, inner)}" for name, inner in value.items())  # pyright: ignore[reportUnknownVariableType]
    return render.size(value) if key.endswith("_bytes") and isinstance(value, int) else str(value)
