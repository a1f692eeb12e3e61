"""A CUDA runtime without a GPU: streams and events that keep their order, and do nothing sooner than they must.

What is queued on a stream runs only when something waits for it, as late as possible; a copy that nobody waited for
never happened. Computation is the test's own and runs at once, so a wait of the computing stream runs what it waits
for. A missing wait then shows as stale or poisoned bytes, for any program.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Event:
    def __init__(self, stream: Stream) -> None:
        self._stream, self._at = stream, stream.queued

    def query(self) -> bool:
        if self._stream.ran < self._at and self._stream.cuda.chance.random() < 0.5:
            self.run()
        return self._stream.ran >= self._at

    def synchronize(self) -> None:
        self._stream.cuda.calls.append("event.synchronize")
        self.run()

    def run(self) -> None:
        self._stream.run_until(self._at)


class Stream:
    def __init__(self, cuda: FakeCuda, name: str, *, computes: bool = False) -> None:
        self.cuda, self.name, self.computes = cuda, name, computes
        self._work: list[Callable[[], None]] = []
        self.ran = 0

    @property
    def queued(self) -> int:
        return self.ran + len(self._work)

    def add(self, work: Callable[[], None]) -> None:
        with self.cuda.lock:
            self._work.append(work)
            if self.computes:  # what the test computes next, it computes now
                self.run_until(self.queued)

    def run_until(self, at: int) -> None:
        with self.cuda.lock:
            while self.ran < at:
                work = self._work.pop(0)
                work()
                self.ran += 1

    def wait_event(self, event: Event) -> None:
        self.cuda.calls.append(f"{self.name} waits for {event._stream.name}")
        self.add(event.run)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(Event(other))

    def record_event(self) -> Event:
        return Event(self)

    def synchronize(self) -> None:
        self.cuda.calls.append(f"{self.name}.synchronize")
        self.run_until(self.queued)


class FakeCuda:
    """Stands where `torch.cuda` does in `cuda_device` and `cuda_memory`. `calls` is what was asked of it, in order."""

    def __init__(self, *, total_bytes: int = 8 << 30, used_bytes: int = 400 << 20) -> None:
        self.calls: list[str] = []
        self.chance = random.Random(0)
        self.main = Stream(self, "main", computes=True)
        self.lock = threading.RLock()
        self._of_thread = threading.local()
        self.registered: dict[int, int] = {}
        self.refuses_to_register = False
        self.allocated, self.reserved = 0, 0
        self.total_bytes, self.used_bytes = total_bytes, used_bytes
        self.fraction = 1.0
        self.memory = SimpleNamespace(_set_allocator_settings=lambda text: self.calls.append(f"set {text}"))
        self._names = iter(["h2d", "d2h", *(f"stream {n}" for n in range(3, 99))])

    @property
    def current(self) -> Stream:
        return getattr(self._of_thread, "stream", self.main)

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(total_memory=self.total_bytes, uuid="0000")

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return self.total_bytes - self.used_bytes, self.total_bytes

    def get_allocator_backend(self) -> str:
        return "native"

    def memory_stats_as_nested_dict(self, index: int) -> dict[str, Any]:
        return {
            "allocated_bytes": {"all": {"current": self.allocated, "peak": self.allocated}},
            "reserved_bytes": {"all": {"current": self.reserved, "peak": self.reserved}},
        }

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        self.calls.append("cap")
        self.fraction = fraction

    def reset_peak_memory_stats(self, index: int) -> None:
        pass

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")

    def synchronize(self, index: int) -> None:
        self.calls.append("synchronize")

    def Stream(self, index: int) -> Stream:
        return Stream(self, next(self._names))

    def side_stream(self) -> Stream:
        """A stream for the program to compute on."""
        return Stream(self, "side", computes=True)

    def current_stream(self, index: int) -> Stream:
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._of_thread.stream = self.current, stream
        try:
            with contextlib.nullcontext() if stream.computes else _Later(stream):
                yield
        finally:
            self._of_thread.stream = before

    def cudart(self) -> FakeCuda:
        return self

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if self.refuses_to_register:
            return 2
        assert address % 4096 == 0, "a page that is shared cannot be registered twice"
        self.registered[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


class _Later(TorchFunctionMode):
    """Queues copies on a stream instead of doing them."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.copy_:
            return func(*args, **(kwargs or {}))
        assert kwargs == {"non_blocking": True}
        destination, source = args
        self._stream.cuda.calls.append(f"copy on {self._stream.name}")

        def copy() -> None:
            for one in (destination, source):
                assert one.numel() * one.element_size() <= one.untyped_storage().nbytes(), (
                    "its memory was freed"
                )
            destination.copy_(source)

        self._stream.add(copy)
        return destination
