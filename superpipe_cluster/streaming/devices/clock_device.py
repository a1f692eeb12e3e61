"""A device with a clock: memory and a link that exist as numbers only, so that a run takes no time and no bytes.

Owns simulated time. The engine and the policies that run over it are those of a real run; a copy books its time on the
link, waiting moves the clock, and whoever drives the engine says how long the computation takes (`compute`). That makes
it the forecast (`planning.replay`) and the test bench of the policies.

[Note: a link that takes turns] Each direction is one queue, as on a virtual device and on a GPU's copy engines: a copy
starts when those before it have arrived, at the earliest now.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from superpipe_cluster.streaming.devices.counted_device import CountedDevice
from superpipe_cluster.streaming.devices.device import Copy


@dataclass(frozen=True)
class LinkSpeed:
    """What copies cost.

    Attributes:
        h2d_bytes_per_s: host to device; None for no time at all.
        d2h_bytes_per_s: device to host; None for no time at all.
        latency_s: from the start of a copy to its arrival, if it had no bytes.
        start_s: time of the program itself to start a copy.
        free_s_per_byte: time of the program itself to give memory back.
    """

    h2d_bytes_per_s: float | None = None
    d2h_bytes_per_s: float | None = None
    latency_s: float = 0.0
    start_s: float = 0.0
    free_s_per_byte: float = 0.0


class ClockCopy(Copy):
    """A copy that arrives at a moment that is known when it starts."""

    def __init__(self, device: ClockDevice, arrives_at_s: float) -> None:
        self._device = device
        self.arrives_at_s = arrives_at_s

    @override
    def done(self) -> bool:
        return self._device.now_s >= self.arrives_at_s

    @override
    def wait(self) -> None:
        self._device.stall_until(self.arrives_at_s)

    @override
    def finish(self) -> None:
        self.wait()


class ClockDevice(CountedDevice):
    """Keeps the time of one computation and one link, and the count of its bytes.

    Args:
        link: its speed.
        budget_bytes: most bytes of everything, None for no limit.
        torch_device: of the slabs: `meta`, or a real one under `FakeTensorMode`.
        batches_in_flight: see `Device`.
        overhead_bytes: see `Device`.

    Attributes:
        now_s: seconds since the beginning.
        compute_s: seconds of these in which something was computed.
    """

    def __init__(
        self,
        link: LinkSpeed | None = None,
        budget_bytes: int | None = None,
        *,
        torch_device: torch.device | str = "meta",
        batches_in_flight: int = 1,
        overhead_bytes: int = 0,
    ) -> None:
        super().__init__(budget_bytes, overhead_bytes)
        self.torch_device = torch.device(torch_device)
        self.batches_in_flight = batches_in_flight
        self.now_s = 0.0
        self.compute_s = 0.0
        self._link = link or LinkSpeed()
        self._h2d_free_at_s = 0.0
        self._d2h_free_at_s = 0.0

    def compute(self, seconds: float) -> None:
        """The program computes for `seconds`."""
        self.now_s += seconds
        self.compute_s += seconds

    def stall_until(self, moment_s: float) -> None:
        """The program waits until `moment_s`, if that is still to come."""
        if moment_s > self.now_s:
            self.stall_s += moment_s - self.now_s
            self.now_s = moment_s

    def bring(self, nbytes: int) -> Copy:
        """A copy of `nbytes` to the device starts."""
        self.h2d_bytes += nbytes
        self._h2d_free_at_s = self._after(self._h2d_free_at_s, nbytes, self._link.h2d_bytes_per_s)
        return ClockCopy(self, self._h2d_free_at_s)

    def send(self, nbytes: int) -> Copy:
        """A copy of `nbytes` to the host starts."""
        self.d2h_bytes += nbytes
        self._d2h_free_at_s = self._after(self._d2h_free_at_s, nbytes, self._link.d2h_bytes_per_s)
        return ClockCopy(self, self._d2h_free_at_s)

    @override
    def allocate(self, flat: torch.Tensor, nbytes: int) -> None:
        self.charge(nbytes)
        flat.untyped_storage().resize_(nbytes)

    @override
    def free(self, flat: torch.Tensor) -> None:
        nbytes = flat.untyped_storage().nbytes()
        self.charge(-nbytes)
        flat.untyped_storage().resize_(0)
        self.compute(nbytes * self._link.free_s_per_byte)

    @override
    def load(self, flat: torch.Tensor, host: torch.Tensor) -> Copy:
        return self.bring(host.numel())

    @override
    def store(self, host: torch.Tensor, flat: torch.Tensor) -> Copy:
        return self.send(host.numel())

    def _after(self, free_at_s: float, nbytes: int, bytes_per_s: float | None) -> float:
        self.compute(self._link.start_s)
        if bytes_per_s is None:
            return max(free_at_s, self.now_s)
        return max(free_at_s, self.now_s) + self._link.latency_s + nbytes / bytes_per_s

    @override
    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)

    @override
    def ran_out(self) -> None:
        pass  # it counts every byte itself

    @override
    def limits_itself(self) -> bool:
        return False  # what is not counted does not exist here

    @override
    def pace(self) -> None:
        pass  # the clock runs with the program

    @override
    def finish(self) -> None:
        self.stall_until(max(self._h2d_free_at_s, self._d2h_free_at_s))

    @override
    def close(self) -> None:
        pass
