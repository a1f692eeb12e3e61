"""`stream()`: from a model and a wish to a `Streamer`, or to an error that says what is wrong with the wish.

Owns the checks of what is asked for, and the taking over of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from superpipe_cluster.errors import BadInput, Unstreamable
from superpipe_cluster.sizes import bytes_of
from superpipe_cluster.streaming.budget import Terms, check_counts, policy_for
from superpipe_cluster.streaming.devices.cuda_device import CudaDevice
from superpipe_cluster.streaming.devices.device import Device
from superpipe_cluster.streaming.devices.virtual_device import CpuDevice, VirtualDevice
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.homes.homes import HomeName, make_home
from superpipe_cluster.streaming.homes.loading import LoadedContents, Weights
from superpipe_cluster.streaming.homes.shared_home import split_by_training
from superpipe_cluster.streaming.policies import POLICIES, PolicyName
from superpipe_cluster.streaming.streamer import Activations, Streamer, give_back, move
from superpipe_cluster.streaming.units import partition
from superpipe_cluster.streaming.watching.entrance import is_streamed
from superpipe_cluster.streaming.watching.guard import GUARD


def stream(
    model: nn.Module,
    budget: int | str | None = None,
    device: str | torch.device | VirtualDevice = "cpu",
    *,
    k: int | None = None,
    k_prime: int | None = None,
    policy: PolicyName = "optimal",
    poison: bool = False,
    activations: Activations = "keep",
    host: HomeName = "pinned",
    host_folder: Path | None = None,
    weights: Weights | None = None,
) -> Streamer:
    """Stream `model`: it stays the same object and is used as before, with only a part of it on the device.

    Args:
        model: any module, its parameters in host memory, on a device, or, with `weights`, on `meta`.
        budget: device bytes, or a size like `"8GiB"`, for everything (weights, gradients, optimizer state, activations,
            what always stays).
        device: `"cuda:0"`, `"cpu"`, or a `VirtualDevice` with a capacity and a link speed.
        k: units on the device at once, instead of or beside a budget; as in the Superpipeline paper, section 3.2.3.
        k_prime: units per transfer batch; default 1 (`sliding`: half of k).
        policy: `optimal`, or one of the baselines `sliding`, `naive`, `whole`.
        poison: fill bytes that must not be read with NaN (for tests).
        activations: what happens to what autograd saves for backward: it stays on the device (`keep`); repeated blocks
            keep their inputs alone and are run again by backward (`recompute`); it waits in host memory (`offload`).
        host: where the master copies live: in private memory (`pinned`); frozen weights in one copy for all processes
            of this user on this machine that stream the same (`shared`); in a file (`disk`).
        host_folder: where `disk` has its file; default: the system's folder for temporary files.
        weights: a safetensors file, a folder with one or several, or a state dict, to fill the model from; or, for a
            model that has other names, a mapping of these to what `WeightFiles` has. What is on `meta` goes straight to
            the master copies; see `parameters_on_meta`.

    Returns:
        The streamer. Call its `close()` to get a plain module back.

    Raises:
        BudgetTooSmall: the budget cannot hold the largest unit; the error names the bytes needed.
        Unstreamable: the model has parameters without data, or is streamed already.
        BadInput: a keyword has no meaning, or `weights` do not fit the model or are damaged.
        FileMissing: there are no such files, or no such folder.
        HostMemoryTooSmall: the master copies do not fit.
    """
    budget_bytes = None if budget is None else bytes_of(budget)
    if activations not in get_args(Activations):
        raise BadInput(
            f"activations cannot be {activations!r}", hint=f"use one of {', '.join(get_args(Activations))}"
        )
    if host not in get_args(HomeName):
        raise BadInput(f"host cannot be {host!r}", hint=f"use one of {', '.join(get_args(HomeName))}")
    _check_keywords(model, budget_bytes, k, k_prime, policy, has_weights=weights is not None)
    contents = None if weights is None else LoadedContents(model, weights)
    opened = _open_device(device, budget_bytes, poison=poison)
    return stream_over(
        model, opened, k=k, k_prime=k_prime, policy=policy, activations=activations,
        host=host, host_folder=host_folder, contents=contents,
    )  # fmt: skip


def stream_over(
    model: nn.Module,
    opened: Device,
    *,
    k: int | None = None,
    k_prime: int | None = None,
    policy: PolicyName = "optimal",
    activations: Activations = "keep",
    host: HomeName = "pinned",
    host_folder: Path | None = None,
    contents: LoadedContents | None = None,
    engine_type: type[Engine] = Engine,
) -> Streamer:
    """`stream()` over a device that is open, keywords not checked.

    A forecast brings a device with a clock, and an engine that writes down what happens.

    Args:
        model: as in `stream`.
        opened: the device, its budget in force; the streamer closes it.
        k: as in `stream`.
        k_prime: as in `stream`.
        policy: as in `stream`.
        activations: as in `stream`.
        host: as in `stream`.
        host_folder: as in `stream`.
        contents: what is to be in the model's tensors, instead of what they have by themselves.
        engine_type: what keeps the slabs.
    """
    try:
        parts = partition(model, opened.torch_device)
        if host == "shared":
            parts.units = split_by_training(parts.units)
        terms = Terms(k, k_prime, policy)
        chosen = policy_for(parts, opened, opened.budget_bytes, terms)
        if contents is not None:
            with GUARD.own_work(), torch.inference_mode(False):
                contents.fill(parts.resident.values())
        home = make_home(host, opened, host_folder)
    except BaseException:
        opened.close()
        raise
    engine = engine_type(opened, chosen, max_units=k, home=home)
    GUARD.attach(engine)
    try:
        # The slabs outlive an inference mode of the caller's: they must be ordinary tensors.
        with GUARD.own_work(), torch.inference_mode(False):
            for tensor in parts.resident.values():
                opened.charge(tensor.nbytes)
                move(tensor, opened.torch_device)
            engine.take_over(parts.units, contents)
        streamer = Streamer(model, engine, parts, terms, activations)
    except BaseException:
        give_back(engine)
        for tensor in parts.resident.values():
            move(tensor, torch.device("cpu"))
        raise
    GUARD.join()  # not inside the `with` above: leaving it would undo that
    return streamer


def _check_keywords(
    model: nn.Module,
    budget: int | None,
    k: int | None,
    k_prime: int | None,
    policy: str,
    *,
    has_weights: bool,
) -> None:
    if policy not in POLICIES:
        raise BadInput(f"no streaming policy is called {policy!r}", hint=f"use one of {', '.join(POLICIES)}")
    check_counts(budget=budget, k=k, k_prime=k_prime)
    if k is not None and k_prime is not None and k_prime > k:
        raise BadInput(f"k_prime ({k_prime}) cannot be larger than k ({k})", hint=f"use k_prime={k} or less")
    _check_model(model, has_weights=has_weights)


def _check_model(model: nn.Module, *, has_weights: bool) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) or (tensor.is_meta and not has_weights):
            raise Unstreamable(
                f"{name} has no data yet",
                hint="run a lazy module once; stream a model that is on meta with `weights=`, its files",
            )
        if isinstance(tensor, nn.Parameter) and tensor.is_inference():
            raise Unstreamable(
                f"{name} was made in inference mode, where torch forbids what training needs",
                hint="build and load the model outside torch.inference_mode()",
            )
        if GUARD.place_of(tensor) is not None:
            raise Unstreamable(f"{name} is being streamed already", hint="close() its streamer first")
    if is_streamed(
        model
    ):  # a part without streamed parameters, or one whose parameters all stay on the device
        raise Unstreamable(
            f"{type(model).__name__} is, or has in it, a part of a model that is being streamed already",
            hint="close() its streamer first",
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise Unstreamable(
                f"{name or 'the model'} is TorchScript, whose fused kernels read weights unseen",
                hint="stream the Python module that it was made from",
            )


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
        return CudaDevice(torch_device, budget_bytes, poison=poison)
    raise Unstreamable(f"cannot stream to a {torch_device.type!r} device", hint='use "cuda:0" or "cpu"')
