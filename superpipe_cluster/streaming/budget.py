"""From a budget in bytes to the papers' `k` and `k'`, and the smallest budget that can hold a model's largest unit.

Owns this arithmetic over unit sizes. Activations are not known here: what a whole step needs is said by a plan before
it, and by the engine after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from superpipe_cluster.errors import BadInput, BudgetTooSmall
from superpipe_cluster.streaming.devices.device import Device
from superpipe_cluster.streaming.policies import Policy, PolicyName, make_policy
from superpipe_cluster.streaming.units import Partition


@dataclass(frozen=True)
class Terms:
    """What is asked for beside bytes.

    Attributes:
        k: most units to hold, None for what fits.
        k_prime: units per batch, None for the policy's own choice.
        policy: the schedule.
    """

    k: int | None = None
    k_prime: int | None = None
    policy: PolicyName = "optimal"


def window_of(
    parts: Partition, overhead_bytes: int, budget_bytes: int | None, terms: Terms
) -> tuple[int, int]:
    """`k` and `k_prime` in force.

    Args:
        parts: the model's units and what always stays.
        overhead_bytes: what the device itself takes of the budget.
        budget_bytes: device bytes of everything, None for no limit.
        terms: what is asked for beside that.

    Raises:
        BudgetTooSmall: not even the largest unit (`whole`: the model) can be held.
    """
    sizes = sorted(unit.nbytes for unit in parts.units)
    fits, budget = len(sizes), budget_bytes
    if budget is not None:
        resident = _resident_bytes(parts, overhead_bytes)
        needed = needed_for(parts, overhead_bytes, terms)
        if needed > budget:
            what = "the whole model" if terms.policy == "whole" else "its largest unit"
            raise BudgetTooSmall(
                f"the budget of {budget} bytes cannot hold {what}: at least {needed} bytes are needed, "
                "activations, gradients and optimizer state not counted",
                needed_bytes=needed,
                hint=f"give more than {needed} bytes",
            )
        room, fits = budget - resident, 0
        for size in sizes:
            if size > room:
                break
            room -= size
            fits += 1
    window = max(1, min(fits, terms.k if terms.k is not None else fits))
    if terms.k_prime is not None:
        return window, min(terms.k_prime, window)
    return window, max(1, window // 2) if terms.policy == "sliding" else 1


def needed_for(parts: Partition, overhead_bytes: int, terms: Terms) -> int:
    """Bytes of the smallest budget that can hold the largest unit (`whole`: the model) and what always stays."""
    sizes = [unit.nbytes for unit in parts.units]
    held = sum(sizes) if terms.policy == "whole" else max(sizes, default=0)
    return _resident_bytes(parts, overhead_bytes) + held


def _resident_bytes(parts: Partition, overhead_bytes: int) -> int:
    return overhead_bytes + sum(tensor.nbytes for tensor in parts.resident.values())


def check_counts(**counts: int | None) -> None:
    """Refuse numbers below one, by name.

    Raises:
        BadInput: as said.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise BadInput(
                f"{name} must be at least 1, not {value}", hint=f"leave {name} out to have it chosen"
            )


def policy_for(parts: Partition, device: Device, budget_bytes: int | None, terms: Terms) -> Policy:
    """The schedule for the window that a budget gives; raises as `window_of`."""
    k, k_prime = window_of(parts, device.overhead_bytes, budget_bytes, terms)
    return make_policy(terms.policy, k=k, k_prime=k_prime, in_flight=device.batches_in_flight)
