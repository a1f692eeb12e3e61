"""The public face of the runtime: `stream(model, ...)` and the `Streamer` it returns.

Owns the life of a streamed model: taking it over, hooks, statistics, giving it back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from superpipe_cluster.errors import BadInput, BudgetTooSmall, Unstreamable
from superpipe_cluster.streaming.cuda_device import CudaDevice
from superpipe_cluster.streaming.device import Device
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.guard import GUARD
from superpipe_cluster.streaming.optimizer import StreamedOptimizer
from superpipe_cluster.streaming.schedule import POLICIES, PolicyName, make_policy
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
    """A model under streaming. Make one with `stream()`; end it with `close()` or a `with` block."""

    def __init__(self, model: nn.Module, engine: Engine, parts: Partition, k: int, k_prime: int) -> None:
        self.model = model
        self.k_prime = k_prime
        self._k = k
        self._engine = engine
        self._parts = parts
        self._optimizers: list[StreamedOptimizer] = []
        self._joined: list[bool] = []  # whether each forward that runs brought the guard to its thread
        self._model_bytes = sum(unit.nbytes for unit in parts.units) + sum(
            t.nbytes for t in parts.resident.values()
        )
        self._hooks: list[Any] = [
            model.register_forward_pre_hook(self._before_forward, prepend=True),
            model.register_forward_hook(self._after_forward, always_call=True),
        ]
        for slab in engine.gradients.values():
            for parameter in slab.views:
                assert isinstance(parameter, nn.Parameter)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._take_gradient))
        self._gradient_slab = {p: slab for slab in engine.gradients.values() for p in slab.views}
        self._weight_slab = {p: slab for slab in engine.weights for p in slab.views}
        on_state_dict = partial(
            self._host_state_dict
        )  # torch marks the hook, which a bound method does not allow
        for module in model.modules():
            if any(True for _ in module.parameters(recurse=False)):
                self._hooks.append(module.register_state_dict_post_hook(on_state_dict))
        GUARD.attach(engine)

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
            Unstreamable: `kind` does not treat parameters one by one, or the model has an optimizer already.
        """
        if self._optimizers:
            raise Unstreamable(
                "this model already has a streamed optimizer", hint="close() the streamer first"
            )
        chosen = [p for p in self.model.parameters() if p.requires_grad] if params is None else params
        optimizer = StreamedOptimizer(self._engine, kind, chosen, options)
        self._optimizers.append(optimizer)
        return optimizer

    def stats(self) -> StreamStats:
        """What has happened so far."""
        engine, device = self._engine, self._engine.device
        if self._hooks:
            GUARD.settle(engine)
        return StreamStats(
            units=len(engine.weights),
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
        """Give the model back: a plain module in host memory, holding the trained weights and gradients."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        engine = self._engine
        with GUARD.suspended():
            engine.evict(engine.slabs)
            live = {p for slab in engine.gradients.values() if slab.has_live_gradients() for p in slab.views}
            gradients = {
                p: self._gradient_slab[p].host_view(p) for p in live if self._has_streamed_gradient(p)
            }
            for parameter in gradients:
                parameter.grad = None
            for slab in engine.weights:
                for parameter in slab.views:
                    parameter.data = slab.host_view(parameter)
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            for optimizer in self._optimizers:
                optimizer.release()
        GUARD.detach(engine)
        engine.device.close()
        for slab in engine.slabs:
            if slab.host is not None:
                engine.device.release_host_buffer(slab.host)

    def __enter__(self) -> Streamer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- hooks ----------------------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        # The guard is a matter of threads: one that was not there at stream() joins for the length of its forward.
        self._joined.append(GUARD.join())
        GUARD.begin_step(self._engine)

    def _after_forward(self, module: nn.Module, args: Any, result: Any) -> None:
        if self._joined and self._joined.pop():
            GUARD.__exit__(None, None, None)

    def _take_gradient(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        gradient = parameter.grad
        if gradient is None or gradient.layout is not torch.strided or gradient.dtype != parameter.dtype:
            return  # sparse gradients stay where autograd left them
        if gradient.requires_grad:
            raise Unstreamable(
                "backward(create_graph=True) keeps a graph of the gradients, which streaming would cut",
                hint="train without second-order gradients, or do not stream this model",
            )
        GUARD.settle(self._engine)
        with GUARD.suspended():
            self._engine.take_gradient(parameter, self._gradient_slab[parameter])

    def _host_state_dict(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Point the entries of this module's own parameters at the host copies, brought up to date."""
        own = {
            prefix + name: p for name, p in module.named_parameters(recurse=False) if prefix + name in state
        }
        slabs = {self._weight_slab[p] for p in own.values() if p in self._weight_slab}
        with GUARD.suspended():
            self._engine.flush(slabs)
        for name, parameter in own.items():
            if parameter in self._weight_slab:
                host = self._weight_slab[parameter].host_view(parameter)
                # keep_vars=True asks for the parameters themselves
                state[name] = parameter if state[name] is parameter else host

    def _has_streamed_gradient(self, parameter: nn.Parameter) -> bool:
        gradient = parameter.grad
        key = self._gradient_slab[parameter].storage_key
        return gradient is not None and gradient.untyped_storage()._cdata == key


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
        # The slabs outlive an inference mode of the caller's: they must be ordinary tensors.
        with torch.inference_mode(False):
            parts = partition(model)
            window_k, batch = _window(parts, opened, k, k_prime, policy)
            for name, tensor in parts.resident.items():
                opened.charge(tensor.nbytes)
                if tensor.device != opened.torch_device:
                    _move(model, name, tensor, opened.torch_device)
            chosen = make_policy(policy, k=window_k, k_prime=batch, in_flight=opened.batches_in_flight)
            engine = Engine(parts, opened, chosen, max_units=k)
    except BaseException:
        opened.close()
        raise
    return Streamer(model, engine, parts, window_k, batch)


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
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise Unstreamable(
                f"parameter {name} has no data yet",
                hint="materialise the model first (run a lazy module once, load weights into a meta model)",
            )
    for hook in model._forward_pre_hooks.values():
        if isinstance(getattr(hook, "__self__", None), Streamer):
            raise Unstreamable("this model is being streamed already", hint="close() its streamer first")


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


def _move(model: nn.Module, name: str, tensor: torch.Tensor, device: torch.device) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(tensor, nn.Parameter):
        tensor.data = tensor.data.to(device)
    else:
        module._buffers[leaf] = tensor.to(device)


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
