"""What a transfer schedule is made of: what is held, what may be held, and the moves from one to the other.

Owns the arithmetic of room and the choice of victims, as pure functions of what is held and what comes next. It moves
no byte and knows no torch. When to fetch is the policies'.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from superpipe_cluster.streaming.order import Future


@dataclass(frozen=True)
class Fetch:
    """Bring these slabs in, as one batch."""

    slabs: tuple[int, ...]


@dataclass(frozen=True)
class Evict:
    """Give the device bytes of this slab back."""

    slab: int


@dataclass(frozen=True)
class Clean:
    """Start bringing the host copy of this slab up to date, so that it can be given up soon without a wait."""

    slab: int


Action = Fetch | Evict | Clean


@dataclass
class Window:
    """What the device holds, in slabs, bytes and units, and how much it may hold.

    Attributes:
        sizes: bytes of each slab.
        unit_of: the unit that each slab belongs to; a unit counts once, however many of its slabs are held.
        capacity_bytes: most bytes of slabs that may be held, or None for no limit in bytes.
        max_units: most units (`k`) that may be held, or None for no limit in units.
    """

    sizes: list[int] = field(default_factory=list)
    unit_of: list[int] = field(default_factory=list)
    capacity_bytes: int | None = None
    max_units: int | None = None
    held: dict[int, None] = field(default_factory=dict)  # a set in order of last use, oldest first
    bytes: int = 0
    peak_units: int = 0
    _units: dict[int, int] = field(default_factory=dict)  # unit -> slabs of it that are held
    _all_bytes: int = 0
    _all_units: set[int] = field(default_factory=set)

    def add_slab(self, nbytes: int, unit: int) -> int:
        """Declare a slab and return its number."""
        self.sizes.append(nbytes)
        self.unit_of.append(unit)
        self._all_bytes += nbytes
        self._all_units.add(unit)
        return len(self.sizes) - 1

    @property
    def units(self) -> int:
        """Units of which at least one slab is held."""
        return len(self._units)

    @property
    def everything_fits(self) -> bool:
        """Whether all declared slabs could be held at once."""
        in_bytes = self.capacity_bytes is None or self._all_bytes <= self.capacity_bytes
        return in_bytes and (self.max_units is None or len(self._all_units) <= self.max_units)

    def has_room(self, slabs: Sequence[int], without: Collection[int] = ()) -> bool:
        """Whether `slabs` could be held as well once the slabs in `without` were gone."""
        if self.capacity_bytes is not None:
            after = self.bytes + sum(self.sizes[s] for s in slabs) - sum(self.sizes[s] for s in without)
            if after > self.capacity_bytes:
                return False
        if self.max_units is None:
            return True
        leaving: dict[int, int] = {}
        for slab in without:
            leaving[self.unit_of[slab]] = leaving.get(self.unit_of[slab], 0) + 1
        gone = {unit for unit, count in leaving.items() if count == self._units[unit]}
        coming = {self.unit_of[slab] for slab in slabs}
        new = sum(unit in gone or unit not in self._units for unit in coming)
        return len(self._units) - len(gone) + new <= self.max_units

    def hold(self, slab: int) -> None:
        """Count `slab` as held from now on."""
        assert slab not in self.held
        self.held[slab] = None
        self.bytes += self.sizes[slab]
        unit = self.unit_of[slab]
        self._units[unit] = self._units.get(unit, 0) + 1
        self.peak_units = max(self.peak_units, len(self._units))

    def drop(self, slab: int) -> None:
        """Count `slab` as gone."""
        del self.held[slab]
        self.bytes -= self.sizes[slab]
        unit = self.unit_of[slab]
        self._units[unit] -= 1
        if not self._units[unit]:
            del self._units[unit]

    def touch(self, slab: int) -> None:
        """Make `slab` the most recently used one."""
        self.held[slab] = self.held.pop(slab)


@dataclass
class View:
    """What a policy may look at when it decides.

    Attributes:
        window: what is held; a policy never changes it.
        future: what comes next.
        pinned: slabs in use at this moment; never evicted.
        busy: tells whether a slab has changed or is still being copied, so that evicting it now would block.
        arriving: tells whether a slab is on its way to the device.
    """

    window: Window
    future: Future
    pinned: set[int]
    busy: Callable[[int], bool]
    arriving: Callable[[int], bool]

    def victims_for(self, slabs: Sequence[int], *, needed_at: int, blocking: bool) -> list[int] | None:
        """The evictions, furthest next use first, that make room for `slabs` together.

        Args:
            slabs: missing slabs to make room for.
            needed_at: position of their use; nothing that is used before then is evicted (rule 3).
            blocking: whether slabs that are still being copied may be evicted too.

        Returns:
            Slabs to evict, none if there is room already, or None if room cannot be made.
        """
        window = self.window
        if window.has_room(slabs):
            return []
        candidates = [
            held
            for held in window.held
            if held not in self.pinned
            and (blocking or not self.busy(held))
            and self.future.next_use(held) > needed_at
        ]
        if not window.has_room(slabs, candidates):
            return None
        # A unit leaves only with its last slab, so where units are counted the slabs of one go together.
        key = self.future.next_use if window.max_units is None else self._next_use_by_unit()
        candidates.sort(key=key, reverse=True)  # stable: among equals, the least recently used first
        chosen: list[int] = []
        for held in candidates:
            chosen.append(held)
            if window.has_room(slabs, chosen):
                # An early choice may have turned out needless: a small slab, then one large enough alone.
                for early in chosen[:-1]:
                    if window.has_room(slabs, [one for one in chosen if one != early]):
                        chosen.remove(early)
                return chosen
        return None

    def _next_use_by_unit(self) -> Callable[[int], tuple[int, int]]:
        unit_of, first_use = self.window.unit_of, dict[int, int]()
        for held in self.window.held:
            use = self.future.next_use(held)
            first_use[unit_of[held]] = min(use, first_use.get(unit_of[held], use))
        return lambda slab: (first_use[unit_of[slab]], unit_of[slab])

    def units_ahead(self, start: int, count: int) -> tuple[list[int], int]:
        """The slabs of the next `count` different units from position `start`, and the position where they end."""
        window, sequence = self.window, self.future.sequence
        units: set[int] = set()
        slabs: dict[int, None] = {}
        for at in range(start, len(sequence)):
            unit = window.unit_of[sequence[at]]
            if unit not in units and len(units) == count:
                return list(slabs), at
            units.add(unit)
            slabs[sequence[at]] = None
        return list(slabs), len(sequence)
