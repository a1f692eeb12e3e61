"""The store and the executor as one head sees them: any call may fail before its effect or after it, or be its last.

Owns where faults strike. `StoreUnavailable` before the call stands for a store that is away, after it for an answer
that was lost: the head cannot tell them apart. A head that has died makes no more calls, whatever code of it is still
on the stack. See [Note: all or nothing] in `store/interface.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from simulation.climate import Climate
from superpipe_cluster.errors import StoreUnavailable

#: Calls during which something else may happen. At the others the code under test holds a lock, for a moment.
_WAITS = frozenset(
    {
        "store.transition",
        "store.amend",
        "store.get",
        "executor.start",
        "executor.alive",
        "executor.kill",
        "executor.clear",
    }
)


class HeadKilled(BaseException):
    """The head's process is gone in the middle of a call. No `except Exception` survives it."""


class Mortality:
    """One head's life, and the trouble at its calls.

    Args:
        rng: of the seed.
        climate: how likely each kind of trouble is.
        meanwhile: lets something else happen in the middle of a call.
        struck: told of every fault, for the trace.
    """

    def __init__(
        self,
        rng: random.Random,
        climate: Climate,
        meanwhile: Callable[[], None],
        struck: Callable[[str], None],
    ) -> None:
        self._rng = rng
        self._climate = climate
        self._meanwhile = meanwhile
        self._struck = struck
        self.is_alive = True
        self.is_safe = False

    def call(
        self, site: str, fails: float, error: Callable[[str], Exception], effect: Callable[[], Any]
    ) -> Any:
        """Do `effect`, unless something goes wrong first; something may also go wrong after it."""
        self._before(site, fails, error)
        result = effect()
        if not self.is_safe:
            self._after(site, fails, error)
        return result

    def die(self) -> None:
        """End this head: whatever it still runs ends at its next call."""
        self.is_alive = False

    def _before(self, site: str, fails: float, error: Callable[[str], Exception]) -> None:
        if not self.is_alive:
            raise HeadKilled(site)
        if self.is_safe:
            return
        if site in _WAITS and self._climate.between and self._rng.random() < self._climate.between:
            self._meanwhile()
            if not self.is_alive:
                raise HeadKilled(site)
        self._strike(site, "before", fails, error)

    def _after(self, site: str, fails: float, error: Callable[[str], Exception]) -> None:
        self._strike(site, "after", fails, error)

    def _strike(self, site: str, when: str, fails: float, error: Callable[[str], Exception]) -> None:
        # Right after a transition is where a death costs most: it is written, and its effect is yet to come.
        dies = self._climate.head / 2 * (4 if (site, when) == ("store.transition", "after") else 1)
        if not (fails or dies):
            return
        chance = self._rng.random()
        if chance < dies:
            self._struck(f"head dies {when} {site}")
            self.die()
            raise HeadKilled(site)
        if chance < dies + fails / 2:
            self._struck(f"fails {when} {site}")
            raise error(f"{site} failed {when} its effect")


class FaultyStore:
    """A `JobStore` over a real one, for one head.

    Args:
        inner: the store.
        life: of the head that makes the calls.
        fails: probability that a call does.
        wrote: told of what every call returned, before the head is.
    """

    def __init__(
        self, inner: Any, life: Mortality, fails: float, wrote: Callable[[str, tuple[Any, ...], Any], None]
    ) -> None:
        self._inner = inner
        self._life = life
        self._fails = fails
        self._wrote = wrote

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not callable(method):
            return method  # not remembered: it may change
        site = f"store.{name}"

        def effect(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = method(*args, **kwargs)
            self._wrote(name, args, result)
            return result

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._life.call(site, self._fails, StoreUnavailable, lambda: effect(args, kwargs))

        self.__dict__[name] = call  # made once
        return call


class FaultyExecutor:
    """An `Executor` over the simulated cluster, for one head."""

    def __init__(self, inner: Any, life: Mortality, fails: float) -> None:
        self._inner = inner
        self._life = life
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        site = f"executor.{name}"

        def call(*args: Any) -> Any:
            return self._life.call(site, self._fails, ConnectionError, lambda: method(*args))

        self.__dict__[name] = call
        return call
