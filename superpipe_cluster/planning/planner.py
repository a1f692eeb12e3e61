"""From a trace and a machine profile to a forecast.

Owns the choice of budgets and the search for the point of no slowdown. Every figure is a replay's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory
from superpipe_cluster.planning.corrections import correction_of
from superpipe_cluster.planning.forecast import NO_SLOWDOWN, Forecast, ForecastRow
from superpipe_cluster.planning.machine_profile import CPU, MachineProfile
from superpipe_cluster.planning.replay import Conditions, Replayed, floor_bytes, replay
from superpipe_cluster.planning.trace import Trace
from superpipe_cluster.sizes import spell_bytes
from superpipe_cluster.streaming.budget import Terms
from superpipe_cluster.streaming.devices.cuda_device import CudaDevice

_ROWS = 8
#: A step that waits longer than this share of itself is bound by the link.
_WAITING = 0.02
#: The point of no slowdown is found to this share of the way from the floor to the whole.
_PRECISION = 1 / 64


class Planner:
    """Forecasts of one program on one device.

    Args:
        trace: the program.
        profile: the device.
        link_bytes_per_s: declared speed of its link, None for what was measured.
        terms: what is asked for beside bytes.
        share: of the processor that the program gets, where others want it too.
        host: the processor, which updates what is updated on the host; None if that is `profile`'s device.
    """

    def __init__(
        self,
        trace: Trace,
        profile: MachineProfile,
        *,
        link_bytes_per_s: float | None = None,
        terms: Terms | None = None,
        share: float = 1.0,
        host: MachineProfile | None = None,
    ) -> None:
        self._trace = trace
        self._profile = profile
        self.fingerprint = fingerprint_of(trace, profile.device)
        self._corrected = correction_of(self.fingerprint)
        self._conditions = Conditions(
            seconds=[profile.running_s(one) / share for one in trace.signatures.all],
            link=profile.link(link_bytes_per_s),
            batches_in_flight=1 if profile.device == CPU else CudaDevice.batches_in_flight,
            overhead_bytes=profile.context_bytes,
            terms=terms or Terms(),
            access_s=profile.access_s / share if profile.device == CPU else 0.0,
            host_seconds=[(host or profile).alone_s(one) / share for one in trace.signatures.all],
        )
        self.floor_bytes = floor_bytes(trace, self._conditions)
        self._whole = replay(trace, replace(self._conditions, terms=Terms()), None)
        self.whole_bytes = self._whole.peak_bytes

    def row(self, budget_bytes: int) -> ForecastRow:
        """What a run in `budget_bytes` comes to.

        Raises:
            BudgetTooSmall: it is below the floor.
        """
        try:
            run = replay(self._trace, self._conditions, budget_bytes)
        except (BudgetTooSmall, DeviceOutOfMemory):
            raise BudgetTooSmall(
                f"this program cannot run in {spell_bytes(budget_bytes)}: "
                f"it needs {self.floor_bytes} bytes at some moment of a step",
                needed_bytes=self.floor_bytes,
                hint=f"give at least {self.floor_bytes} bytes, or make its batch or sequence smaller",
            ) from None
        return self._row(budget_bytes, run)

    def forecast(self, budgets: Sequence[int] | None = None, also: Sequence[int] = ()) -> Forecast:
        """The forecast for `budgets`, by default some from the floor to the whole, and those of `also` in between.

        Raises:
            BudgetTooSmall: one of them is below the floor.
        """
        no_slowdown_bytes = self._no_slowdown_bytes()
        if budgets is None:
            span = self.whole_bytes - self.floor_bytes
            steps = [self.floor_bytes + span * step // (_ROWS - 1) for step in range(_ROWS)]
            between = [budget for budget in also if self.floor_bytes < budget < self.whole_bytes]
            budgets = [*steps, *between, no_slowdown_bytes]
        return Forecast(
            rows=tuple(self.row(budget) for budget in sorted(set(budgets))),
            floor_bytes=self.floor_bytes,
            no_slowdown_bytes=no_slowdown_bytes,
            whole_bytes=self.whole_bytes,
            whole_step_s=self._whole.step_s * self._corrected / self._trace.counted_as,
            units=len(self._trace.units),
            device=self._profile.device,
            assumed=self._profile.assumed,
            corrected=self._corrected,
            fingerprint=self.fingerprint,
        )

    def _row(self, budget_bytes: int, run: Replayed) -> ForecastRow:
        steps = self._trace.counted_as
        return ForecastRow(
            budget_bytes=budget_bytes,
            k=run.k,
            k_prime=run.k_prime,
            peak_bytes=run.peak_bytes,
            host_bytes=run.host_bytes,
            copies_bytes=run.copies_bytes,
            link_bytes_per_step=round(run.link_bytes / steps),
            loads_per_step=run.loads / steps,
            step_s=run.step_s * self._corrected / steps,
            slowdown=run.step_s / self._whole.step_s,
            bound="link" if run.stall_s > _WAITING * run.step_s else "compute",
        )

    def _no_slowdown_bytes(self) -> int:
        slow, quick = self.floor_bytes, self.whole_bytes
        if self.row(slow).slowdown <= NO_SLOWDOWN:
            return slow
        span = quick - slow
        while quick - slow > max(1, span * _PRECISION):
            middle = (slow + quick) // 2
            slow, quick = (slow, middle) if self.row(middle).slowdown <= NO_SLOWDOWN else (middle, quick)
        return quick


def fingerprint_of(trace: Trace, device: str) -> str:
    """The same for the same model doing the same work on a device of the same name."""
    work = sorted((trace.signatures.all[number].key, count) for number, count in trace.work.items())
    units = [(unit.name, [tuple(one.size) for one in unit.parameters]) for unit in trace.units]
    return hashlib.sha256(repr((device, units, work)).encode()).hexdigest()[:16]
