"""`superpipe_cluster.plan`: the forecast of a model or a job file, without its weights and without running it.

Owns the way from what a person has in hand (a module, example inputs, a job file) to a program that can be recorded.
"""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from superpipe_cluster import bundled, spec
from superpipe_cluster.errors import BadInput, SpclusterError, Unplannable
from superpipe_cluster.planning.forecast import Forecast
from superpipe_cluster.planning.machine_profile import MachineProfile
from superpipe_cluster.planning.measuring import host_profile, machine_profile, time_operators
from superpipe_cluster.planning.plan import Probe
from superpipe_cluster.planning.planner import Planner
from superpipe_cluster.planning.record import record
from superpipe_cluster.planning.trace import Trace
from superpipe_cluster.sizes import bytes_of
from superpipe_cluster.spec.files import is_path
from superpipe_cluster.streaming.budget import Terms
from superpipe_cluster.streaming.devices.virtual_device import VirtualDevice
from superpipe_cluster.streaming.policies import PolicyName
from superpipe_cluster.streaming.streamer import Activations
from superpipe_cluster.streaming.training.host_steps import Where

_Optimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


def plan(
    model_or_spec: nn.Module | spec.JobBase | str | Path,
    step: Callable[[nn.Module], object] | torch.Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    optimizer: _Optimizer | None = None,
    device: str | torch.device | VirtualDevice = "cpu",
    budgets: Sequence[int | str] | None = None,
    k: int | None = None,
    k_prime: int | None = None,
    policy: PolicyName = "optimal",
    activations: Activations | None = None,
    where: Where | None = None,
    timed: bool = True,
    profile: MachineProfile | None = None,
) -> Forecast:
    """What streaming takes at each budget, in bytes and seconds, before anything runs.

    The program is run with tensors that have no memory, and what the runtime does with it is replayed on a clock for
    each budget. The model is neither changed nor run; it may be on `meta`.

    Args:
        model_or_spec: a module, or a job file or its path, whose worker program says how to run a step.
        step: for a module: `step(model)` does one forward, or one forward and backward; or example inputs for one
            forward (a tensor, a sequence of arguments, a mapping of keyword arguments).
        optimizer: makes the optimizer from the trainable parameters, for instance `torch.optim.AdamW`. With example
            inputs, the step is then a training step on the output's `loss`, or on its mean square.
        device: as in `stream`. What is not known of it yet is measured and kept in the home directory.
        budgets: device bytes, or sizes like `"8GiB"`; default: some from the smallest workable to the whole model's.
        k: as in `stream`.
        k_prime: as in `stream`.
        policy: as in `stream`.
        activations: as in `stream`; by default what the job file says, for a module `keep`.
        where: as in `Streamer.optimizer`, with the same kind of default.
        timed: whether operators that were never timed on `device` are timed now, in at most some 20 s.
        profile: of the device, instead of the kept one.

    Raises:
        BadInput: the step cannot be run without values, or something asked for has no meaning.
        BudgetTooSmall: a budget is below the smallest workable one.
        Unstreamable: the model cannot be streamed.
    """
    if isinstance(model_or_spec, (str, Path)):
        model_or_spec = spec.load(str(model_or_spec))
    if isinstance(model_or_spec, spec.JobBase):
        activations = activations or model_or_spec.streaming.activations
        where = where or where_of(model_or_spec)
    probe, terms = _program(model_or_spec, step, optimizer), Terms(k, k_prime, policy)
    declared = device.link_bytes_per_s if isinstance(device, VirtualDevice) else None
    place = torch.device("cpu") if isinstance(device, VirtualDevice) else torch.device(device)
    if place.type not in ("cpu", "cuda") or (place.type == "cuda" and not torch.cuda.is_available()):
        raise BadInput(
            f"cannot plan for {str(place)!r}: there is no such device here",
            hint='use "cpu", a VirtualDevice, or a CUDA build of torch on a machine with a GPU',
        )
    asked = None if budgets is None else [bytes_of(budget) for budget in budgets]
    trace = recorded(probe, activations=activations or "keep", where=where or "on_device")
    known = profile or machine_profile(place)
    if timed and time_operators(trace, known, place) and profile is None:
        known.save()
    host = host_profile(trace) if place.type == "cuda" else None
    return Planner(trace, known, link_bytes_per_s=declared, terms=terms, host=host).forecast(asked)


def where_of(job: spec.JobBase) -> Where:
    """Where the optimizer of a job computes."""
    settings = (
        job.train
        if isinstance(job, spec.TrainJob)
        else job.finetune
        if isinstance(job, spec.FinetuneJob)
        else None
    )
    return "on_host" if settings is not None and settings.optimizer_on == "host" else "on_device"


def recorded(
    make_probe: Callable[[], Probe], *, activations: Activations = "keep", where: Where = "on_device"
) -> Trace:
    """`record`, with what a program cannot do without values said in its user's words.

    Raises:
        Unplannable: the step needs values.
        BadInput: it does not run.
    """
    try:
        return record(make_probe, activations=activations, where=where)
    except SpclusterError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise Unplannable(
            f"the step depends on values, and a plan has none: {error}",
            hint="leave .item(), nonzero() and branches on values out of it, or give resources.gpu_memory a size",
        ) from error
    except Exception as error:
        lines = str(error).splitlines() or [""]
        raise BadInput(
            f"the step cannot be planned: {type(error).__name__}: {lines[0]}",
            hint="run it once on the plain model to see why",
        ) from error


def _program(model_or_spec: Any, step: Any, optimizer: _Optimizer | None) -> Callable[[], Probe]:
    if isinstance(model_or_spec, nn.Module):
        if step is None:
            raise BadInput(
                "a module alone cannot be planned: it is not known how it is called",
                hint="plan(model, step=lambda model: model(batch).loss.backward()), or give example inputs",
            )
        return lambda: _probe_of(model_or_spec, step, optimizer)
    if not isinstance(model_or_spec, spec.JobBase):
        raise BadInput(
            f"cannot plan a {type(model_or_spec).__name__}", hint="give a torch.nn.Module or a job file"
        )
    if step is not None or optimizer is not None:
        raise BadInput(
            "a job file says itself what its step is", hint="leave step and optimizer out, or plan a module"
        )
    return probe_of_job(model_or_spec)


def probe_of_job(job: spec.JobBase) -> Callable[[], Probe]:
    """What makes the probe of a job.

    Raises:
        BadInput: its program has none.
    """
    path = Path(job.worker) if is_path(job.worker) else bundled.worker_path(job.worker)
    program = runpy.run_path(str(path), run_name="__spcluster_probe__")
    if "probe" not in program:
        raise BadInput(
            f"{job.worker} does not say how to plan it",
            hint="give the worker program a probe(job), as in workers/train_lm.py",
        )
    return lambda: program["probe"](job)


def _probe_of(model: nn.Module, step: Any, optimizer: _Optimizer | None) -> Probe:
    twin = _without_memory(model)
    if callable(step):
        return Probe(twin, lambda: step(twin), optimizer)
    args, kwargs = _inputs(step)

    def run() -> None:
        if optimizer is None:
            with torch.no_grad():
                twin(*args, **kwargs)
        else:
            _loss(twin(*args, **kwargs)).backward()

    return Probe(twin, run, optimizer)


def _without_memory(model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters and buffers have no memory. Called under fake tensors."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        twin = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, nn.Parameter):
            twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = twin
    return copy.deepcopy(model, memo)


def _inputs(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def without_memory(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cpu")

    if isinstance(given, Mapping):
        return (), {str(name): without_memory(value) for name, value in given.items()}
    args = given if isinstance(given, (tuple, list)) else (given,)
    return tuple(map(without_memory, args)), {}


def _loss(output: Any) -> torch.Tensor:
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, Mapping):
        loss = output.get("loss")
    if isinstance(loss, torch.Tensor):
        return loss
    first = output
    while isinstance(first, (tuple, list)) and first:
        first = first[0]
    if not isinstance(first, torch.Tensor):
        raise BadInput(
            f"the model returns a {type(output).__name__}, and which loss to train on is not known",
            hint="plan(model, step=lambda model: <your loss>.backward(), optimizer=...)",
        )
    return first.float().square().mean()
