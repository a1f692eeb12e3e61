"""The `Streamer`: a model under streaming, from `stream()` to `close()`.

Owns what can be asked of it, statistics, and giving the model back. How it is taken over is in `opening`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.sizes import bytes_of
from superpipe_cluster.streaming.activations.offload import Offload
from superpipe_cluster.streaming.budget import Terms, check_counts, needed_for, policy_for, window_of
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.training.host_steps import Where
from superpipe_cluster.streaming.training.optimizer import StreamedOptimizer
from superpipe_cluster.streaming.units import Partition
from superpipe_cluster.streaming.watching.entrance import Hangings
from superpipe_cluster.streaming.watching.exits import guard_exits, release_exits
from superpipe_cluster.streaming.watching.guard import GUARD
from superpipe_cluster.streaming.watching.storages import storage_key

Activations = Literal["keep", "recompute", "offload"]


@dataclass(frozen=True)
class StreamStats:
    """What has happened so far. Bytes are device bytes unless named otherwise.

    Attributes:
        units: units the model was split into.
        k: most units that the budget (or the asked `k`) can hold at once.
        k_prime: units per transfer batch.
        loads: times a unit's weights were brought to the device.
        h2d_bytes: bytes copied host to device.
        d2h_bytes: bytes copied device to host.
        link_bytes: both directions together.
        stall_s: seconds in which the computation waited for a copy (virtual devices; on CUDA the host never waits).
        peak_bytes: most bytes in use at any moment, of everything; on a virtual device without a budget only while the
            guard watches (see the note on rest in `guard`).
        peak_units: most units whose weights were on the device at once.
        held_bytes: bytes in use now.
        model_bytes: bytes of all parameters and buffers.
        host_bytes: RAM of all master copies, of buffers on their way, and of offloaded activations.
        shared_bytes: how many of these are in copies that other processes use as well, or could.
        disk_bytes: bytes of master copies in files.
        surprises: accesses that came otherwise than foreseen.
        floor_bytes: the smallest budget in which every step so far could have been made, or the one that was rehearsed
            (see `Streamer.rehearsed`); None before the first one.
        others_bytes: most bytes of everything but units in this step and the one before it: what grows with a batch.
    """

    units: int
    k: int
    k_prime: int
    loads: int
    h2d_bytes: int
    d2h_bytes: int
    link_bytes: int
    stall_s: float
    peak_bytes: int
    peak_units: int
    held_bytes: int
    model_bytes: int
    host_bytes: int
    shared_bytes: int
    disk_bytes: int
    surprises: int
    floor_bytes: int | None
    others_bytes: int


class Streamer:
    """A model under streaming. Make one with `stream()`; end it with `close()` or a `with` block.

    A model that dies while it is streamed is closed by that.
    """

    def __init__(
        self, model: nn.Module, engine: Engine, parts: Partition, terms: Terms, activations: Activations
    ) -> None:
        self.model = model
        self._engine = engine
        self._parts = parts
        self._terms = terms
        self._followers: list[StreamedOptimizer | Offload] = []  # end with the streaming
        self._units = len(parts.units)
        self._resident_bytes = sum(tensor.nbytes for tensor in parts.resident.values())
        self._model_bytes = self._resident_bytes + sum(unit.nbytes for unit in parts.units)
        guard_exits()
        self._offload = Offload(engine, parts.resident.values()) if activations == "offload" else None
        if self._offload is not None:
            self._followers.append(self._offload)
        recomputed = (
            {unit.name for unit in parts.units if unit.is_block} if activations == "recompute" else ()
        )
        self._hangings = Hangings(model, engine, recomputed, self._offload)
        # Nothing that the guard reaches refers to the model or to this object, so both can die.
        self._death = weakref.finalize(model, _give_back_when_free, engine, self._followers)
        self._death.atexit = False

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self._engine.device.torch_device

    @property
    def is_open(self) -> bool:
        """Whether the model is streamed still, by this process."""
        return self._death.alive and GUARD.guards(self._engine)

    # ---- use ------------------------------------------------------------------------------------------

    def optimizer(
        self,
        kind: type[torch.optim.Optimizer],
        params: Iterable[Any] | None = None,
        *,
        where: Where = "on_device",
        master_weights: torch.dtype | None = None,
        during_backward: bool = False,
        **options: Any,
    ) -> StreamedOptimizer:
        """An optimizer over the model's trainable parameters that steps unit by unit.

        Args:
            kind: an element-wise `torch.optim` class, for instance `torch.optim.AdamW`.
            params: parameters or parameter groups; default: every parameter that requires a gradient.
            where: `on_device`: the state is streamed like the weights, and the bits are those of a plain optimizer on
                the device. `on_host`: the state stays in host memory and threads compute there, while the program goes
                on; the bits are those of a plain optimizer over tensors in host memory.
            master_weights: step copies of the weights in this type (`torch.float32` for a model in bfloat16), which
                become part of the state.
            during_backward: with `on_host`, update a unit while backward goes on, as soon as its gradients are
                complete; `step()` updates the rest. For programs in which each step is one forward, one backward and
                `step()`, and nothing touches gradients or weights in between; whatever else is found is refused. An
                optimizer that is made later over the same parameters ends it.
            **options: passed to `kind`.

        Raises:
            Unstreamable: `kind` calls the model in the middle of its step, or the streamer is closed.
            BadInput: a keyword has no meaning.
        """
        if not self.is_open:
            raise Unstreamable(
                "this streamer is closed", hint="make a plain optimizer, or stream() the model again"
            )
        chosen = [p for p in self.model.parameters() if p.requires_grad] if params is None else params
        self._hangings.watch_gradients()
        optimizer = StreamedOptimizer(
            self._engine, kind, chosen, options, where, master_weights, during_backward
        )
        for follower in self._followers:
            if isinstance(follower, StreamedOptimizer) and _shared_by(follower, optimizer):
                follower.update_in_step()  # whoever steps them next is known by `step()` alone
        self._followers.append(optimizer)
        return optimizer

    def resize(self, budget: int | str | None = None, *, k: int | None = None) -> None:
        """Put another budget in force, now: what does not fit it leaves, what fits comes as it is needed.

        May be called at any moment between two operators, from any thread; results do not change by a bit. While the
        guard rests (everything is on the device, and no budget was set), a call from another thread than the one that
        runs the model takes effect at the start of its next step.

        Args:
            budget: device bytes, or a size like `"6GiB"`; None for no limit in bytes.
            k: units on the device at once; None for as many as fit.

        Raises:
            BudgetTooSmall: it cannot hold the largest unit, or what a moment of the last steps needed. The error names
                the bytes needed, and nothing has changed.
            Unstreamable: the streamer is closed.
            BadInput: no size.
        """
        if not self.is_open:
            raise Unstreamable("this streamer is closed", hint="stream() the model again with the new budget")
        budget_bytes = None if budget is None else bytes_of(budget)
        check_counts(budget=budget_bytes, k=k)
        terms = replace(self._terms, k=k)
        with GUARD.own_work():
            GUARD.settle(self._engine)
            self._engine.check_budget(budget_bytes)
        policy = policy_for(self._parts, self._engine.device, budget_bytes, terms)
        GUARD.when_awake(partial(self._engine.resize, budget_bytes, k, policy))
        self._terms = terms

    def rehearsed(self) -> None:
        """Tell that the largest step has been made: from now on `floor_bytes` is what that one needed.

        Without this, a larger step raises it for good, since another one may come. What the program keeps on the device
        between steps (caches, say) is then counted for as long as it is there. It is the program's to see that a step
        and what is kept fit the budget together.
        """
        self._engine.need.rehearsed()

    def stats(self) -> StreamStats:
        """What has happened so far."""
        engine = self._engine
        with GUARD.own_work() if self.is_open else nullcontext():  # all at one moment, whoever runs the model
            if self.is_open:
                if self._offload is not None:
                    self._offload.tidy()
                GUARD.settle(engine)
            return self._count()

    def _count(self) -> StreamStats:
        engine, device = self._engine, self._engine.device
        k, k_prime = window_of(self._parts, device.overhead_bytes, device.budget_bytes, self._terms)
        return StreamStats(
            units=self._units,
            k=k,
            k_prime=k_prime,
            loads=engine.loads,
            h2d_bytes=device.h2d_bytes,
            d2h_bytes=device.d2h_bytes,
            link_bytes=device.h2d_bytes + device.d2h_bytes,
            stall_s=device.stall_s,
            peak_bytes=device.peak_bytes(),
            peak_units=engine.peak_units,
            held_bytes=device.used_bytes(),
            model_bytes=self._model_bytes,
            host_bytes=engine.host_bytes + sum(one.host_bytes for one in self._followers),
            shared_bytes=engine.home.shared_bytes,
            disk_bytes=engine.home.disk_bytes,
            surprises=engine.order.surprises,
            floor_bytes=self._floor_bytes(),
            others_bytes=engine.need.most_others(0),
        )

    def _floor_bytes(self) -> int | None:
        engine, device = self._engine, self._engine.device
        others = device.used_bytes() - engine.window.bytes
        of_steps = engine.need.floor(others, engine.largest_unit_bytes())
        return of_steps and max(of_steps, needed_for(self._parts, device.overhead_bytes, self._terms))

    def close(self) -> None:
        """Give the model back: a plain module in host memory, holding the trained weights and gradients.

        Tensors that the program took from the model before (views of weights, old gradients, graphs) keep their values.
        """
        if not self.is_open:
            return
        self._hangings.remove()
        try:
            for follower in self._followers:
                follower.finish()
        finally:
            self._death.detach()
            give_back(self._engine, self._followers)
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                move(tensor, torch.device("cpu"))  # what always stayed on the device
            GUARD.leave_if_idle()

    def __enter__(self) -> Streamer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def give_back(engine: Engine, followers: Iterable[StreamedOptimizer | Offload] = ()) -> None:
    """End the streaming of `engine`: parameters, gradients and the optimizers' state are ordinary host memory again."""
    if not GUARD.guards(engine):
        return  # it is the parent's, see [Note: forked]
    GUARD.wake()  # before anything is flushed: it takes gradients in
    with GUARD.own_work(), torch.inference_mode(False):
        engine.flush()
        engine.home.finish()
        for follower in followers:
            follower.release()
        gradient_slabs = {slab.storage_key: slab for slabs in engine.gradients.values() for slab in slabs}
        for parameter, unit in engine.unit_of.items():
            gradient = parameter.grad
            if gradient is not None and gradient.layout is torch.strided:
                slab = gradient_slabs.get(storage_key(gradient))
                if slab is not None:
                    slab.ensure_host(engine.home)
                    gradient = slab.on_host(gradient)
            if engine.weights[unit].has(parameter):
                parameter.grad = None  # it has to be where the parameter is
                parameter.data = engine.weights[unit].on_host(parameter.data)
            parameter.grad = gradient
        GUARD.detach(engine)
        if not GUARD.guards_anything:
            release_exits()
        engine.dissolve()
    engine.device.close()


def _give_back_when_free(engine: Engine, followers: Iterable[StreamedOptimizer | Offload]) -> None:
    """`give_back`, as soon as nobody is in the middle of anything that it would change or wait for.

    The model has died, and the collector calls this in whatever thread it happens to run in: perhaps one that copies,
    or one that is just moving slabs.
    """
    if GUARD.at_work_here or threading.current_thread().name.startswith("spcluster-"):
        threading.Thread(target=give_back, args=(engine, followers), name="spcluster-close").start()
    else:
        give_back(engine, followers)


def move(tensor: torch.Tensor, device: torch.device) -> None:
    """Move `tensor` and its gradient in place."""
    if tensor.device.type != device.type:
        gradient, tensor.grad = tensor.grad, None
        tensor.data = tensor.data.to(device)
        tensor.grad = None if gradient is None else gradient.to(device)


def _shared_by(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> set[nn.Parameter]:
    first, second = (
        {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for optimizer in (one, other)
    )
    return first & second
