"""The public face of the runtime: `stream(model, ...)` and the `Streamer` it returns.

Owns the life of a streamed model: taking it over, hooks, statistics, giving it back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from superpipe_cluster.errors import BadInput, BudgetTooSmall, Unstreamable
from superpipe_cluster.streaming.cuda_device import CudaDevice
from superpipe_cluster.streaming.device import Device
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.entrance import Hangings
from superpipe_cluster.streaming.exits import guard_exits, release_exits
from superpipe_cluster.streaming.guard import GUARD
from superpipe_cluster.streaming.optimizer import StreamedOptimizer
from superpipe_cluster.streaming.schedule import POLICIES, PolicyName, make_policy
from superpipe_cluster.streaming.storages import storage_key
from superpipe_cluster.streaming.units import Partition, partition
from superpipe_cluster.streaming.virtual_device import CpuDevice, VirtualDevice


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
        peak_bytes: most bytes in use at any moment, of everything.
        peak_units: most units whose weights were on the device at once.
        held_bytes: bytes in use now.
        model_bytes: bytes of all parameters and buffers.
        host_bytes: host memory of all master copies.
        surprises: accesses that came otherwise than foreseen.
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
    surprises: int


class Streamer:
    """A model under streaming. Make one with `stream()`; end it with `close()` or a `with` block.

    A model that dies while it is streamed is closed by that.
    """

    def __init__(self, model: nn.Module, engine: Engine, parts: Partition, k: int, k_prime: int) -> None:
        self.model = model
        self.k_prime = k_prime
        self._k = k
        self._engine = engine
        self._optimizers: list[StreamedOptimizer] = []
        self._units = len(parts.units)
        self._resident_bytes = sum(tensor.nbytes for tensor in parts.resident.values())
        self._model_bytes = self._resident_bytes + sum(unit.nbytes for unit in parts.units)
        guard_exits()
        self._hangings = Hangings(model, engine)
        # Nothing that the guard reaches refers to the model or to this object, so both can die.
        self._give_back = weakref.finalize(model, _give_back, engine, self._optimizers)
        self._give_back.atexit = False

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self._engine.device.torch_device

    # ---- use ------------------------------------------------------------------------------------------

    def optimizer(
        self, kind: type[torch.optim.Optimizer], params: Iterable[Any] | None = None, **options: Any
    ) -> StreamedOptimizer:
        """An optimizer over the model's trainable parameters that steps unit by unit.

        Args:
            kind: an element-wise `torch.optim` class, for instance `torch.optim.AdamW`.
            params: parameters or parameter groups; default: every parameter that requires a gradient.
            **options: passed to `kind`.

        Raises:
            Unstreamable: `kind` calls the model in the middle of its step, or the streamer is closed.
        """
        if not self._give_back.alive:
            raise Unstreamable(
                "this streamer is closed", hint="make a plain optimizer, or stream() the model again"
            )
        chosen = [p for p in self.model.parameters() if p.requires_grad] if params is None else params
        self._hangings.watch_gradients()
        optimizer = StreamedOptimizer(self._engine, kind, chosen, options)
        self._optimizers.append(optimizer)
        return optimizer

    def stats(self) -> StreamStats:
        """What has happened so far."""
        engine, device = self._engine, self._engine.device
        if self._give_back.alive:
            GUARD.settle(engine)
        return StreamStats(
            units=self._units,
            k=self._k,
            k_prime=self.k_prime,
            loads=engine.loads,
            h2d_bytes=device.h2d_bytes,
            d2h_bytes=device.d2h_bytes,
            link_bytes=device.h2d_bytes + device.d2h_bytes,
            stall_s=device.stall_s,
            peak_bytes=device.peak_bytes(),
            peak_units=engine.peak_units,
            held_bytes=device.used_bytes(),
            model_bytes=self._model_bytes,
            host_bytes=engine.host_bytes,
            surprises=engine.order.surprises,
        )

    def close(self) -> None:
        """Give the model back: a plain module in host memory, holding the trained weights and gradients.

        Tensors that the program took from the model before (views of weights, old gradients, graphs) keep their values.
        """
        if not self._give_back.alive:
            return
        self._hangings.remove()
        self._give_back()
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            _move(tensor, torch.device("cpu"))  # what always stayed on the device
        GUARD.leave_if_idle()

    def __enter__(self) -> Streamer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _give_back(engine: Engine, optimizers: Iterable[StreamedOptimizer] = ()) -> None:
    """End the streaming of `engine`: parameters, gradients and the optimizers' state are ordinary host memory again."""
    with GUARD.own_work(), torch.inference_mode(False):
        engine.flush()
        engine.device.finish()
        for optimizer in optimizers:
            optimizer.release()
        gradient_slabs = {slab.storage_key: slab for slabs in engine.gradients.values() for slab in slabs}
        for parameter, unit in engine.unit_of.items():
            gradient = parameter.grad
            if gradient is not None and gradient.layout is torch.strided:
                slab = gradient_slabs.get(storage_key(gradient))
                if slab is not None:
                    slab.ensure_host(engine.device)
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


def stream(
    model: nn.Module,
    budget: int | None = None,
    device: str | torch.device | VirtualDevice = "cpu",
    *,
    k: int | None = None,
    k_prime: int | None = None,
    policy: PolicyName = "optimal",
    poison: bool = False,
) -> Streamer:
    """Stream `model`: it stays the same object and is used as before, with only a part of it on the device.

    Args:
        model: any module, its parameters in host memory or on a device.
        budget: device bytes for everything (weights, gradients, optimizer state, activations, what always stays).
        device: `"cuda:0"`, `"cpu"`, or a `VirtualDevice` with a capacity and a link speed.
        k: units on the device at once, instead of or beside a budget; as in the Superpipeline paper, section 3.2.3.
        k_prime: units per transfer batch; default 1 (`sliding`: half of k).
        policy: `optimal`, or one of the baselines `sliding`, `naive`, `whole`.
        poison: fill bytes that must not be read with NaN (virtual devices; for tests).

    Returns:
        The streamer. Call its `close()` to get a plain module back.

    Raises:
        BudgetTooSmall: the budget cannot hold the largest unit; the error names the bytes needed.
        Unstreamable: the model has parameters without data, or is streamed already.
        BadInput: a keyword has no meaning.
    """
    _check_keywords(model, budget, k, k_prime, policy)
    opened = _open_device(device, budget, poison=poison)
    try:
        parts = partition(model, opened.torch_device)
        window_k, batch = _window(parts, opened, k, k_prime, policy)
        chosen = make_policy(policy, k=window_k, k_prime=batch, in_flight=opened.batches_in_flight)
    except BaseException:
        opened.close()
        raise
    engine = Engine(opened, chosen, max_units=k)
    GUARD.attach(engine)
    try:
        # The slabs outlive an inference mode of the caller's: they must be ordinary tensors.
        with GUARD.own_work(), torch.inference_mode(False):
            for tensor in parts.resident.values():
                opened.charge(tensor.nbytes)
                _move(tensor, opened.torch_device)
            engine.take_over(parts.units)
        streamer = Streamer(model, engine, parts, window_k, batch)
    except BaseException:
        _give_back(engine)
        for tensor in parts.resident.values():
            _move(tensor, torch.device("cpu"))
        raise
    GUARD.join()  # not inside the `with` above: leaving it would undo that
    return streamer


def _move(tensor: torch.Tensor, device: torch.device) -> None:
    """Move `tensor` and its gradient in place."""
    if tensor.device.type != device.type:
        gradient, tensor.grad = tensor.grad, None
        tensor.data = tensor.data.to(device)
        tensor.grad = None if gradient is None else gradient.to(device)


def _check_keywords(
    model: nn.Module, budget: int | None, k: int | None, k_prime: int | None, policy: str
) -> None:
    if policy not in POLICIES:
        raise BadInput(f"no streaming policy is called {policy!r}", hint=f"use one of {', '.join(POLICIES)}")
    for name, value in (("budget", budget), ("k", k), ("k_prime", k_prime)):
        if value is not None and value < 1:
            raise BadInput(
                f"{name} must be at least 1, not {value}", hint=f"leave {name} out to have it chosen"
            )
    if k is not None and k_prime is not None and k_prime > k:
        raise BadInput(f"k_prime ({k_prime}) cannot be larger than k ({k})", hint=f"use k_prime={k} or less")
    _check_model(model)


def _check_model(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise Unstreamable(
                f"{name} has no data yet",
                hint="materialise the model first (run a lazy module once, load weights into a meta model)",
            )
        if isinstance(tensor, nn.Parameter) and tensor.is_inference():
            raise Unstreamable(
                f"{name} was made in inference mode, where torch forbids what training needs",
                hint="build and load the model outside torch.inference_mode()",
            )
        if GUARD.place_of(tensor) is not None:
            raise Unstreamable(f"{name} is being streamed already", hint="close() its streamer first")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise Unstreamable(
                f"{name or 'the model'} is TorchScript, whose fused kernels read weights unseen",
                hint="stream the Python module that it was made from",
            )


def _window(
    parts: Partition, device: Device, k: int | None, k_prime: int | None, policy: PolicyName
) -> tuple[int, int]:
    """`k` and `k_prime` in force; refuses a budget in which not even one unit can run."""
    sizes = sorted(unit.nbytes for unit in parts.units)
    fits, budget = len(sizes), device.budget_bytes
    if budget is not None:
        resident = device.overhead_bytes + sum(tensor.nbytes for tensor in parts.resident.values())
        largest = max(
            (
                unit.nbytes + sum(p.nbytes for p in unit.parameters.values() if p.requires_grad)
                for unit in parts.units
            ),
            default=0,
        )
        everything = sum(sizes) + resident
        needed = everything if policy == "whole" else resident + largest
        if needed > budget:
            what = "the whole model" if policy == "whole" else "its largest unit with its gradients"
            raise BudgetTooSmall(
                f"the budget of {budget} bytes cannot hold {what}: at least {needed} bytes are needed, "
                "activations not counted",
                needed_bytes=needed,
                hint=f"give more than {needed} bytes",
            )
        room, fits = budget - resident, 0
        for size in sizes:
            if size > room:
                break
            room -= size
            fits += 1
    window = max(1, min(fits, k if k is not None else fits))
    if k_prime is not None:
        return window, min(k_prime, window)
    return window, max(1, window // 2) if policy == "sliding" else 1


def _open_device(
    device: str | torch.device | VirtualDevice, budget_bytes: int | None, *, poison: bool = False
) -> CpuDevice | CudaDevice:
    """The device meant by `device`, with its budget in force.

    Raises:
        Unstreamable: no such kind of device, or it is not there.
    """
    if isinstance(device, VirtualDevice):
        return CpuDevice(device, budget_bytes, poison=poison)
    torch_device = torch.device(device)
    if torch_device.type == "cpu":
        return CpuDevice(VirtualDevice(), budget_bytes, poison=poison)
    if torch_device.type == "cuda":
        return CudaDevice(torch_device, budget_bytes)
    raise Unstreamable(f"cannot stream to a {torch_device.type!r} device", hint='use "cuda:0" or "cpu"')
