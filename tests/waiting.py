"""Waiting in tests: for a condition, with a deadline, never for an amount of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: How long to leave the processor between two looks at the condition.
POLL_S = 0.01


def wait_until(predicate: Callable[[], T], description: str, timeout_s: float = 10.0) -> T:
    """Return the first true value of `predicate()`; fail with `description` when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {description}")
        time.sleep(POLL_S)
