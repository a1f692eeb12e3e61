"""The read guard: sees every operator before it runs and has what it reads brought to the device.

Owns the interception. It decides nothing about residency.

[Note: recording] Which call reads which parameter cannot be told from module ownership: weights are tied, parents use
their children's parameters, checkpointing runs modules again in backward, optimizers and clipping touch everything. So
the guard is a `TorchDispatchMode`: it maps the storages among each operator's inputs to slabs, in forward, in backward
(autograd carries the mode to its threads) and outside both. It makes any model right with no code that knows a model,
and the sequence of its findings is what the order is learned from. It costs a few microseconds per operator.

An operator that writes to a slab makes it dirty; views that autograd takes without reading (`detach`) pass unseen. The
host copies that `state_dict` hands out are guarded too: they are the same parameters, seen from the other side.

[Note: as without a mode] Under `inference_mode` autograd's kernels are skipped, and an operator may come here that
would otherwise have come as the simpler ones it is made of. Inside a mode such an operator takes views of weights that
do not know of their weight's `requires_grad`, and `matmul` for one looks at that to choose between two kernels with
different last bits. So these run with the dispatch keys that they would have had without a mode.

[Note: forked] A forked child (a worker of a `DataLoader`) has neither the threads that copy nor the locks' owners, and
what is on the device when it starts is chance. It is not guarded, but for a refusal to read what the parent streams.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from superpipe_cluster.errors import BudgetTooSmall, Unstreamable
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.slab import Slab
from superpipe_cluster.streaming.watching.live import LiveTensors
from superpipe_cluster.streaming.watching.operators import Traits, in_parts, joined, traits_of
from superpipe_cluster.streaming.watching.storages import holders, storage_key
from superpipe_cluster.streaming.watching.watch import Watch, put_modes_on, take_modes_off


class Place(NamedTuple):
    """What a storage is."""

    engine: Engine
    slab: Slab
    on_host: bool


class ReadGuard(Watch):
    """One per process; active in each thread that runs a streamed model."""

    supports_higher_order_operators = True  # to refuse them with a reason

    def __init__(self) -> None:
        super().__init__()
        #: Held while an operator on slabs runs: another thread's operator must not have them evicted meanwhile.
        self.lock = threading.RLock()
        self._places: dict[int, Place] = {}
        self._host_holders: dict[
            int, int
        ] = {}  # of each host copy handed out: holders that are the runtime's own
        self._engines: list[Engine] = []
        self._traits: dict[int, Traits] = {}  # by the operator's id, which is quicker than its hash
        self._live: dict[Engine, LiveTensors] = {}  # of virtual devices; CUDA's allocator counts by itself
        self._counting: LiveTensors | None = None  # of the engine whose model ran last
        #: Whether the mode is off the stack of the thread that runs the models; see [Note: at rest].
        self.resting = False
        self._runner: int | None = None  # the thread that ran a step last
        self._wake_wanted = False  # by another thread
        self._at_waking: list[Callable[[], None]] = []  # asked for by other threads

    # ---- who is guarded -----------------------------------------------------------------------------

    def attach(self, engine: Engine) -> None:
        """Guard the slabs of `engine`, in every thread that joined or will."""
        self.wake()
        if engine.device.torch_device.type == "cpu":
            is_profile = detect_fake_mode() is not None
            self._live[engine] = LiveTensors(engine.charge, self._places, is_profile=is_profile)
        self._put_first(engine)
        for slab in engine.slabs:
            self._add(engine, slab)
        engine.on_new_slab = lambda slab: self._add(engine, slab)

    def _add(self, engine: Engine, slab: Slab) -> None:
        self._places[slab.storage_key] = Place(engine, slab, on_host=False)

    def own_work(self) -> _OwnWork:
        """In this `with`, no mode sees the operators of this thread, and those on slabs in other threads wait."""
        return _OwnWork(self.lock)

    def hand_out(self, engine: Engine, slab: Slab) -> None:
        """The program is about to see tensors on the host copy of `slab`: bring it up to date and guard it as well."""
        self.wake()
        with self.own_work():
            host = slab.ensure_host(engine.home)
            engine.before_host_use(slab, to_write=False)
        key = storage_key(host)
        if key not in self._places:
            self._host_holders[key] = holders(key)
            self._places[key] = Place(engine, slab, on_host=True)

    def detach(self, engine: Engine) -> None:
        """Stop guarding `engine`."""
        self.settle(engine)
        self._engines.remove(engine)
        self._live.pop(engine, None)
        for key in [key for key, place in self._places.items() if place.engine is engine]:
            del self._places[key]
            self._host_holders.pop(key, None)
        self._counting = self._live.get(self._engines[-1]) if self._engines else None
        self.resting = self.resting and bool(self._engines)
        engine.on_new_slab = None

    @property
    def guards_anything(self) -> bool:
        """Whether any model is streamed."""
        return bool(self._engines)

    def guards(self, engine: Engine) -> bool:
        """Whether the model of `engine` is streamed."""
        return engine in self._engines

    @property
    def at_work_here(self) -> bool:
        """Whether this thread is just doing something with slabs."""
        return self.lock._is_owned()  # type: ignore[attr-defined]

    def forget_after_fork(self) -> None:
        """Guard nothing of what the parent streams, and refuse to read it; see [Note: forked]."""
        self.lock = threading.RLock()  # another thread of the parent's may have held it
        for engine in self._engines:
            engine.before_forward.insert(0, _refuse_in_child)
        for place in self._places.values():
            place.slab.claim, place.slab.ready = _refuse_in_child, False
        self._engines, self._live, self._counting = [], {}, None
        self.resting, self._wake_wanted, self._at_waking = False, False, []

    def leave_if_idle(self) -> None:
        """Leave this thread if there is nothing to guard."""
        if not self._engines:
            self.leave()

    def place_of(self, tensor: Tensor) -> Place | None:
        """Where `tensor` is, if it is on a slab or on the host copy of one."""
        try:
            return self._places.get(storage_key(tensor))
        except NotImplementedError:
            return None

    def settle(self, engine: Engine) -> None:
        """Bring the count of `engine`'s device bytes up to date with the tensors that have died."""
        with self.lock:
            if engine in self._live:
                self._live[engine].settle()

    def begin_step(self, engine: Engine) -> None:
        """The outermost forward of `engine`'s model starts; new tensors count for it from now on."""
        with self.own_work():
            self.settle(engine)
            engine.begin_step()
            self._put_first(engine)
            for slab in engine.weights:
                for parameter in slab.views:
                    if not slab.has(parameter):
                        engine.take_back(parameter)
        self._rest_or_wake()

    # ---- rest ---------------------------------------------------------------------------------------

    def _rest_or_wake(self) -> None:
        thread, before = threading.get_ident(), self._runner
        calm = [engine.may_rest() for engine in self._engines]
        # Who holds a host copy may look at it, which then has to be brought up to date.
        held = any(holders(key) > own for key, own in self._host_holders.items())
        if thread != before or not all(calm) or held or self._wake_wanted:
            self._runner = thread
            self.wake()
            return
        for engine in self._engines:
            if self.resting:
                engine.drop_empty_gradients()
            else:
                engine.rest()
        self.resting = True
        self.leave()

    def wake(self) -> bool:
        """Watch the program again, if the guard rests and this is the thread that runs the models.

        Returns:
            Whether the program is watched now; if not, it is from its next step on.
        """
        if not self.resting:
            return True
        if threading.get_ident() != self._runner:
            self._wake_wanted = True
            return False
        self.resting = self._wake_wanted = False
        try:
            with self.own_work():
                for engine in self._engines:
                    engine.wake()
                while self._at_waking:
                    self._at_waking.pop(0)()
        finally:
            self.join()
        return True

    def when_awake(self, work: Callable[[], None]) -> None:
        """Do `work`, which may send slabs away, now, or as soon as the program is watched again."""
        if self.wake():
            with self.own_work():
                work()
        else:
            self._at_waking.append(work)

    def _put_first(self, engine: Engine) -> None:
        if engine in self._engines:
            self._engines.remove(engine)
        self._engines.append(engine)
        self._counting = self._live.get(engine)

    # ---- every operator -----------------------------------------------------------------------------

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        traits = self._traits.get(id(func)) or self._learn(func)
        if traits.passes:
            return func(*args, **kwargs)
        if self.resting:  # it could not leave, or this is another thread
            return self._run(func, traits, args, kwargs)
        found: list[Place] = []
        self._find(args, found)
        if kwargs:
            self._find(kwargs.values(), found)
        if found:
            with self.lock:
                result = self._run_on_slabs(func, traits, args, kwargs, found)
        else:
            result = self._run(func, traits, args, kwargs)
        if traits.makes_tensors and self._counting is not None:
            with self.lock:  # room may have to be made
                self._counting.see(result)
        return result

    def _run_on_slabs(self, func: Any, traits: Traits, args: Any, kwargs: Any, found: list[Place]) -> Any:
        if traits.over_lists and len({place.slab.unit for place in found}) > 1:
            return in_parts(lambda part: self._run_part(func, traits, part, kwargs), args, self._units_of)
        if traits.resizes and self.place_of(args[0]) is not None:
            raise Unstreamable("resize_() of a streamed parameter", hint="close() the streamer first")
        return self._run_together(func, traits, args, kwargs, found)

    def _run_part(self, func: Any, traits: Traits, args: Any, kwargs: Any) -> Any:
        """One part of an operator over lists: what is of one unit, or, in an average of weights, of a pair of them."""
        found: list[Place] = []
        self._find(args, found)
        self._find(kwargs.values(), found)
        if not found:
            return self._run(func, traits, args, kwargs)
        result = self._run_together(func, traits, args, kwargs, found)
        if traits.makes_tensors and self._counting is not None:
            self._counting.see(result)
        return result

    def _run_together(self, func: Any, traits: Traits, args: Any, kwargs: Any, found: list[Place]) -> Any:
        engine, slabs, ready = found[0].engine, [], True
        for place in found:
            slabs.append(place.slab)
            ready = ready and place.slab.ready and not place.on_host
        awaited = engine.waits_for
        if ready and (awaited is None or not awaited.done()):
            engine.operands = slabs
        else:
            try:
                self._bring(found, to_write=bool(traits.writes))
            except BudgetTooSmall:
                if not traits.joins:
                    raise
                return joined(lambda copy, part: self.__torch_dispatch__(copy, (), part), func, args, kwargs)
        result = self._run(func, traits, args, kwargs)
        if traits.writes:
            self._mark_written(traits, args, kwargs)
        return result

    def _bring(self, found: list[Place], *, to_write: bool) -> None:
        with self.own_work():
            for engine in dict.fromkeys(place.engine for place in found):
                self.settle(engine)
                here = [place for place in found if place.engine is engine]
                for place in here:
                    if place.on_host:
                        engine.before_host_use(place.slab, to_write=to_write)
                engine.require([place.slab for place in here if not place.on_host])

    def _run(self, func: Any, traits: Traits, args: Any, kwargs: Any) -> Any:
        if traits.other_gradient:
            _refuse_gradient(func, args)
        if traits.unwrapped and torch.is_inference_mode_enabled():  # [Note: as without a mode]
            with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
                return func(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except torch.OutOfMemoryError:
            return self._run_in_little_room(func, args, kwargs)

    def _run_in_little_room(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The window shrinks and the operator is tried once more: it failed to allocate, so it has changed nothing."""
        with self.lock:
            with self.own_work():
                for engine in self._engines:
                    engine.device.ran_out()
                    engine.make_room(1 << 62)
            torch.cuda.empty_cache()
            return func(*args, **kwargs)

    def _find(self, values: Iterable[Any], found: list[Place]) -> None:
        places = self._places
        for value in values:
            if isinstance(value, Tensor):
                try:
                    place = places.get(value.untyped_storage()._cdata)
                except NotImplementedError:  # sparse and other storage-less layouts
                    continue
                if place is not None:
                    found.append(place)
            elif isinstance(value, (list, tuple)):
                self._find(value, found)

    def _mark_written(self, traits: Traits, args: Any, kwargs: Any) -> None:
        written: list[Place] = []
        for where in traits.writes:
            if isinstance(where, str):
                self._find([kwargs.get(where)], written)
            elif where < len(args):
                self._find([args[where]], written)
        for engine, slab, on_host in written:
            if on_host:
                engine.wrote_host(slab)
            else:
                slab.dirty = True

    def _units_of(self, values: list[Any]) -> tuple[int, ...]:
        found: list[Place] = []
        self._find(values, found)
        return tuple(sorted({place.slab.unit for place in found}))

    def _learn(self, func: Any) -> Traits:
        if not isinstance(func, OpOverload):
            raise Unstreamable(
                f"the higher-order operator {func} runs its parts unseen",
                hint="write it with plain operators, or do not stream this model",
            )
        traits = self._traits[id(func)] = traits_of(func)
        return traits


class _OwnWork:
    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._taken: list[TorchDispatchMode] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._taken = take_modes_off()

    def __exit__(self, *exc: object) -> None:
        put_modes_on(self._taken)
        self._lock.release()


def _refuse_in_child(_: Slab | None = None) -> None:
    raise Unstreamable(
        "a process that is forked from one that streams a model cannot use that model: its parameters come and go in "
        "the parent",
        hint="use the model in the parent; workers of a DataLoader may do all else",
    )


def _refuse_gradient(func: OpOverload, args: Any) -> None:
    values = args[0]
    if torch.is_grad_enabled() and values.requires_grad and values.dim():
        raise Unstreamable(
            f"the gradient of {func} has other last bits while operators are watched",
            hint="write the product as cumprod(...)[-1], or do not stream this model",
        )


#: The one guard of this process.
GUARD = ReadGuard()
os.register_at_fork(after_in_child=GUARD.forget_after_fork)
