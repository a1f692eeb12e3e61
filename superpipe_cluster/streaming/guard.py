"""The read guard: sees every operator before it runs and has what it reads brought to the device.

Owns the interception. It decides nothing about residency.

[Note: recording] Which call reads which parameter cannot be told from module ownership: weights are tied, parents use
their children's parameters, checkpointing runs modules again in backward, optimizers and clipping touch everything. So
the guard is a `TorchDispatchMode`: it maps the storages among each operator's inputs to slabs, in forward, in backward
(autograd carries the mode to its threads) and outside both. It makes any model right with no code that knows a model,
and the sequence of its findings is what the order is learned from. It costs a few microseconds per operator.

An operator that writes to a slab makes it dirty; views that autograd takes without reading (`detach`) pass unseen.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.live import LiveTensors
from superpipe_cluster.streaming.slab import Slab

# These neither read nor check the bytes of their input, so they work on an evicted slab.
_PASSES = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
_FOREACH = ("aten::_foreach_", "aten::_amp_foreach_")


@dataclass(frozen=True)
class _Traits:
    """What an operator's schema says of it."""

    writes: tuple[int | str, ...]  # positions and names of arguments that it changes
    makes_tensors: bool  # whether any result is new memory
    is_foreach: bool


class ReadGuard(TorchDispatchMode):
    """One per process; active in each thread that runs a streamed model."""

    def __init__(self) -> None:
        super().__init__()
        self._slabs: dict[int, tuple[Engine, Slab]] = {}  # storage -> its slab
        self._engines: list[Engine] = []
        self._traits: dict[OpOverload, _Traits] = {}
        self._live: dict[Engine, LiveTensors] = {}  # of virtual devices; CUDA's allocator counts by itself
        self._threads = threading.local()

    # ---- who is guarded -----------------------------------------------------------------------------

    def attach(self, engine: Engine) -> None:
        """Guard the slabs of `engine`, beginning in this thread."""
        self._engines.append(engine)
        if engine.device.torch_device.type == "cpu":
            self._live[engine] = LiveTensors(engine.charge, not_counted=self._slabs)
        for slab in engine.slabs:
            self.add_slab(engine, slab)
        self.join()

    def add_slab(self, engine: Engine, slab: Slab) -> None:
        """Guard one more slab."""
        self._slabs[slab.storage_key] = (engine, slab)

    def detach(self, engine: Engine) -> None:
        """Stop guarding `engine`; with the last one gone, leave this thread."""
        self._engines.remove(engine)
        self._live.pop(engine, None)
        for slab in engine.slabs:
            del self._slabs[slab.storage_key]
        if not self._engines and self.active:
            self.__exit__(None, None, None)

    @property
    def active(self) -> bool:
        """Whether the guard has entered this thread."""
        return getattr(self._threads, "depth", 0) > 0

    def join(self) -> bool:
        """See the operators of this thread from now on; returns whether that took an `__enter__`.

        [Note: inference mode] Leaving `torch.inference_mode` puts the thread's dispatch keys back as they were when it
        was entered, and with them goes the key of every mode that was entered meanwhile, though it is still on the
        stack.
        """
        if not self.active:
            self.__enter__()
            return True
        if not torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.Python):
            torch._C._dispatch_tls_set_dispatch_key_included(torch._C.DispatchKey.Python, True)
            torch._C._dispatch_tls_set_dispatch_key_included(torch._C.DispatchKey.PythonTLSSnapshot, True)
        return False

    def __enter__(self) -> ReadGuard:
        self._threads.depth = getattr(self._threads, "depth", 0) + 1
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._threads.depth -= 1
        super().__exit__(*exc)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let the runtime's own operators pass unseen in this thread."""
        before = getattr(self._threads, "suspended", False)
        self._threads.suspended = True
        try:
            yield
        finally:
            self._threads.suspended = before

    def settle(self, engine: Engine) -> None:
        """Bring the count of `engine`'s device bytes up to date with the tensors that have died."""
        if engine in self._live:
            self._live[engine].settle()

    def begin_step(self, engine: Engine) -> None:
        """The outermost forward of `engine`'s model starts; new tensors count for it from now on."""
        if self._engines[-1] is not engine:
            self._engines.remove(engine)
            self._engines.append(engine)
        self.settle(engine)
        with self.suspended():
            engine.begin_step()

    # ---- every operator -----------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PASSES or getattr(self._threads, "suspended", False):
            return func(*args, **kwargs)
        traits = self._traits.get(func) or self._learn(func)
        found: dict[int, tuple[Engine, Slab]] = {}
        for value in args:
            self._find(value, found)
        for value in kwargs.values():
            self._find(value, found)
        if found:
            if traits.is_foreach and len({slab.unit for _, slab in found.values()}) > 1:
                return self._unit_by_unit(func, args, kwargs)
            for engine in {id(engine): engine for engine, _ in found.values()}.values():
                self.settle(engine)
                engine.require([slab for owner, slab in found.values() if owner is engine])
        result = self._run(func, args, kwargs)
        if found and traits.writes:
            self._mark_written(traits, args, kwargs)
        if traits.makes_tensors and self._engines and self._engines[-1] in self._live:
            self._live[self._engines[-1]].see(result)
        return result

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except torch.OutOfMemoryError:
            # The window shrinks and the operator is tried once more: it failed to allocate, so it has changed nothing.
            for engine in self._engines:
                engine.make_room(1 << 62)
            torch.cuda.empty_cache()
            return func(*args, **kwargs)

    def _find(self, value: Any, found: dict[int, tuple[Engine, Slab]]) -> None:
        if isinstance(value, torch.Tensor):
            try:
                key = value.untyped_storage()._cdata
            except NotImplementedError:  # sparse and other storage-less layouts
                return
            if key in self._slabs:
                found[key] = self._slabs[key]
        elif isinstance(value, (list, tuple)):
            for inner in value:
                self._find(inner, found)

    def _mark_written(self, traits: _Traits, args: Any, kwargs: Any) -> None:
        written: dict[int, tuple[Engine, Slab]] = {}
        for where in traits.writes:
            if isinstance(where, str):
                self._find(kwargs.get(where), written)
            elif where < len(args):
                self._find(args[where], written)
        for engine, slab in written.values():
            engine.wrote(slab)

    def _unit_by_unit(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a `_foreach_` operator on one unit's tensors at a time; results are per tensor, so no bit changes."""
        lists = {at: value for at, value in enumerate(args) if isinstance(value, (list, tuple)) and value}
        length = max(len(value) for value in lists.values())
        groups: dict[object, list[int]] = {}
        for index in range(length):
            found: dict[int, tuple[Engine, Slab]] = {}
            for value in lists.values():
                if len(value) == length:
                    self._find(value[index], found)
            groups.setdefault(tuple(sorted({slab.unit for _, slab in found.values()})), []).append(index)
        results: list[Any] = [None] * length
        returns_list = False
        for indices in groups.values():
            part = tuple(
                [value[index] for index in indices] if at in lists and len(value) == length else value
                for at, value in enumerate(args)
            )
            result = self.__torch_dispatch__(func, (), part, kwargs)
            if isinstance(result, (list, tuple)):
                returns_list = True
                for index, one in zip(indices, result, strict=True):
                    results[index] = one
        return results if returns_list else None

    def _learn(self, func: OpOverload) -> _Traits:
        schema = func._schema
        writes: list[int | str] = []
        for at, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                writes.append(argument.name if argument.kwarg_only else at)
        makes = any(result.alias_info is None for result in schema.returns)
        traits = _Traits(tuple(writes), makes, schema.name.startswith(_FOREACH))
        self._traits[func] = traits
        return traits


#: The one guard of this process.
GUARD = ReadGuard()
