"""Trial runs: a few real steps at a given budget, to check a forecast (the paper's grid search, section 4.2).

Owns running a probe with real memory on a real or virtual device, and its figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from superpipe_cluster.planning.forecast import Measured
from superpipe_cluster.planning.plan import Probe
from superpipe_cluster.planning.record import streamed_optimizer
from superpipe_cluster.streaming.budget import Terms
from superpipe_cluster.streaming.devices.virtual_device import VirtualDevice
from superpipe_cluster.streaming.opening import stream
from superpipe_cluster.streaming.streamer import Activations
from superpipe_cluster.streaming.training.host_steps import Where

_WARM_UP = 4


def trial(
    make_probe: Callable[[], Probe],
    budget_bytes: int,
    device: VirtualDevice | torch.device,
    *,
    terms: Terms | None = None,
    activations: Activations = "keep",
    where: Where = "on_device",
    steps: int = 7,
) -> Measured:
    """Run some steps in `budget_bytes`.

    Args:
        make_probe: builds the model and its step, with memory.
        budget_bytes: device bytes of everything.
        device: where; on a GPU the model is also built there.
        terms: what is asked for beside bytes.
        activations: as in `stream`.
        where: as in `Streamer.optimizer`.
        steps: measured, after some that are not.

    Raises:
        BudgetTooSmall: the budget is below the smallest workable one.
        DeviceOutOfMemory: likewise.
    """
    terms = terms or Terms()
    place = device if isinstance(device, torch.device) else torch.device("cpu")
    with place:
        probe = make_probe()
    with stream(
        probe.model,
        budget_bytes,
        device,
        k=terms.k,
        k_prime=terms.k_prime,
        policy=terms.policy,
        activations=activations,
    ) as streamer:
        optimizer = streamed_optimizer(probe, streamer, where)

        def step() -> float:
            began = time.perf_counter()
            for _ in range(probe.accumulate):
                probe.step()
            if optimizer is not None:
                if probe.before_update is not None:
                    probe.before_update()
                optimizer.step()
                optimizer.zero_grad()
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            return time.perf_counter() - began

        for _ in range(_WARM_UP):
            step()
        before = streamer.stats()
        seconds = [step() for _ in range(steps)]
        after = streamer.stats()
    counted = steps * probe.steps
    return Measured(
        budget_bytes=budget_bytes,
        peak_bytes=after.peak_bytes,
        link_bytes_per_step=(after.link_bytes - before.link_bytes) / counted,
        loads_per_step=(after.loads - before.loads) / counted,
        step_s=median(seconds) / probe.steps,
    )
