"""Updates on the host that begin while backward still runs: a unit's, as soon as its gradients are complete.

Owns when such an update may begin, and the refusal of everything that would make it another than `step()`'s.

A plain optimizer reads gradients, options and weights in `step()`. An update that began earlier has the same bits if
nothing of them is read or written in between. So from the moment the gradients of a unit are complete until `step()` is
over its weights and gradients are *claimed*: whatever the program wants with them (clipping, a scaler, a second
backward that accumulates, an evaluation, a state dict) is refused before it happens. Gradients and options are
compared once more in `step()`, as assigning them asks nobody.

[Note: complete] Autograd tells of each parameter once per backward, after the last use that the loss depends on,
however often a module is called and whatever is checkpointed: but for a backward within backward (reentrant
checkpointing), which tells of its own part. A unit is complete when all its parameters that require a gradient have
been told of, and left to `step()` if one of them never is.

[Note: rehearsal] In the first step all is claimed and nothing is updated before `step()`. A program that does every
time what cannot be allowed is found out by that while it does not matter. After a refusal the next step is one again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.slab import Slab
from superpipe_cluster.streaming.training.host_steps import ByUnit, HostSteps, Member, snapshot
from superpipe_cluster.streaming.watching.guard import GUARD

_OFF = "make the optimizer with during_backward=False, or call its update_in_step()"
_NO_BACKWARD = -1  # autograd's number of the backward that runs now, if there is none


@dataclass
class _Claim:
    """A unit whose gradients are complete.

    Attributes:
        slabs: its weights and gradients.
        gradients: of the optimizer's parameters in it, as they were then.
        options: of their groups, likewise, with the groups.
    """

    slabs: list[Slab]
    gradients: dict[nn.Parameter, torch.Tensor | None]
    options: list[tuple[dict[str, Any], dict[str, Any]]]


class EarlyUpdates:
    """The updates of one optimizer that do not wait for `step()`.

    Args:
        engine: residency of the model's slabs.
        groups: the optimizer's parameter groups, which may grow.
        host: updates units.
    """

    def __init__(self, engine: Engine, groups: list[dict[str, Any]], host: HostSteps) -> None:
        self._engine = engine
        self._groups = groups
        self._host = host
        self._handles: dict[nn.Parameter, Any] = {}
        self._on = True
        self._rehearsed = False
        self._backward: int | None = None  # the one since the last step, by autograd's number
        self._members: dict[int, list[Member]] = {}
        self._missing: dict[int, set[nn.Parameter]] = {}
        self._claims: dict[int, _Claim] = {}
        self._begun: set[int] = set()  # the units among `_claims` that are being updated
        self._spoilt: str | None = None  # what has happened with which no step can be made of this any more
        self._told = False  # that updates have begun before something that must not come between
        engine.before_forward.append(self._before_forward)
        self.watch()

    def watch(self) -> None:
        """Be told of the gradients of each unit that the optimizer has a part of."""
        units = {self._engine.unit_of.get(one) for group in self._groups for one in group["params"]}
        for unit in units - {None}:
            assert unit is not None
            for one in self._engine.weights[unit].views:
                if one.requires_grad and one not in self._handles:
                    self._handles[one] = one.register_post_accumulate_grad_hook(self._gradient_is_there)

    # ---- during backward ----------------------------------------------------------------------------

    def _gradient_is_there(self, parameter: torch.Tensor) -> None:
        unit = self._engine.unit_of.get(parameter)  # type: ignore[call-overload]
        if GUARD.resting or not self._on or self._spoilt is not None or unit is None:
            return  # nothing more is claimed: all is left to `step()`
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            if _is_nested():
                self._refuse(
                    "backward() was called within backward (as checkpointing with use_reentrant=True does), so that "
                    "gradients come in parts",
                    instead="use_reentrant=False",
                )
            if self._backward is not None:
                self._refuse(_SECOND)
            self._begin(backward)
        if unit not in self._missing:
            views = self._engine.weights[unit].views
            self._missing[unit] = {one for one in views if one.requires_grad}
        self._missing[unit].discard(parameter)  # type: ignore[arg-type]
        if not self._missing[unit] and unit not in self._claims:
            with GUARD.own_work():
                self._complete(unit)

    def _begin(self, backward: int) -> None:
        self._backward, self._members, self._missing = backward, {}, {}
        for group in self._groups:
            for one in group["params"]:
                unit = self._engine.unit_of.get(one)
                if unit is not None:
                    self._members.setdefault(unit, []).append((group, one))

    def _complete(self, unit: int) -> None:
        members = self._members.get(unit, [])
        ready = [(group, one) for group, one in members if one.grad is not None]
        weights = self._engine.weights[unit]
        if not ready or weights.claim is not None:  # another optimizer's, which comes first
            return
        if not all(self._host.takes(one) and _is_seen(one.grad) for _, one in ready):
            return
        slabs = [weights, *self._host.gradient_slabs(ready)]
        options = {id(group): (group, snapshot(group)) for group, _ in ready}
        if self._rehearsed:
            if not self._begun:
                self._host.tell_failures()  # of the last step
            self._host.start({unit: ready})
            self._begun.add(unit)
        self._claims[unit] = _Claim(slabs, {one: one.grad for _, one in members}, list(options.values()))
        for slab in slabs:
            slab.claim, slab.ready = self._refuse_use, False

    # ---- the end of the step ------------------------------------------------------------------------

    def end_step(self, by_unit: ByUnit) -> ByUnit:
        """`step()` is called, and what has begun is part of it: start updating the rest, and wait for nothing.

        Returns:
            What the host cannot update.

        Raises:
            Unstreamable: gradients or options have been changed since; or it was refused to go on before.
            Exception: whatever an update raised.
        """
        if self._spoilt is not None:
            self._refuse(self._spoilt)
        for unit, claim in self._claims.items():
            name = self._engine.unit_names[unit]
            if any(one.grad is not gradient for one, gradient in claim.gradients.items()):
                self._refuse(
                    f"gradients of {name} were replaced or cleared between backward and step()", spoils=True
                )
            if any(not _same(snapshot(group), before) for group, before in claim.options):
                self._refuse("an option (as lr) was changed between backward and step()", spoils=True)
        left = [(unit, members) for unit, members in by_unit if unit not in self._begun]
        self._rehearsed = self._rehearsed or bool(self._claims)
        self._forget()
        self.watch()
        self._host.tell_failures()
        return self._host.start_all(left)

    def switch_off(self) -> None:
        """Leave all to `step()` from now on; what has begun ends with it."""
        self._on = False

    def give_up(self) -> None:
        """The state of the optimizer, and then the model's, are loaded again: there is nothing to go on with."""
        self._forget()
        self._rehearsed = False

    def release(self) -> None:
        """End with the streamer."""
        self._forget()
        self._engine.before_forward.remove(self._before_forward)
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    def _forget(self) -> None:
        for claim in self._claims.values():
            for slab in claim.slabs:
                slab.claim = None
        self._claims, self._begun = {}, set()
        self._members, self._missing = {}, {}
        self._backward, self._spoilt, self._told = None, None, False

    # ---- refusals -----------------------------------------------------------------------------------

    def refuse_if_begun(self, what: str) -> None:
        """Raise if `what` happens between backward and `step()`.

        Raises:
            Unstreamable: it does.
        """
        if self._claims:
            self._refuse(f"{what} between backward and step()")

    def tell(self) -> None:
        """Raise if the program ends with updates in the weights that it has not been told of.

        Raises:
            Unstreamable: it does.
        """
        if self._begun and not self._told:
            self._refuse("streaming ended between backward and step()", spoils=True)

    def _before_forward(self) -> None:
        if torch._C._current_graph_task_id() == _NO_BACKWARD:  # else it is run again, by backward
            self.refuse_if_begun("the model was called (a micro-batch, an evaluation)")

    def _refuse_use(self, slab: Slab) -> None:
        name, backward = self._engine.unit_names[slab.unit], torch._C._current_graph_task_id()
        if backward not in (_NO_BACKWARD, self._backward):
            self._refuse(_SECOND)
        if slab.part == "gradients":
            self._refuse(
                f"gradients of {name} were read or written between backward and step() (by clipping, GradScaler, "
                "another optimizer)"
            )
        when = (
            "between backward and step()"
            if backward == _NO_BACKWARD
            else "after their gradients were complete"
        )
        self._refuse(f"weights of {name} were read or written {when}")

    def _refuse(self, what: str, *, instead: str = "", spoils: bool = False) -> NoReturn:
        """Raise. Nothing is lost where no update has begun; else it is said what can still be done."""
        off = f"use {instead}, or {_OFF}" if instead else _OFF
        if not self._begun:
            self._forget()
            self._rehearsed = False
            raise Unstreamable(
                f"{what}, but the optimizer updates during backward. Nothing has been updated yet", hint=off
            )
        if spoils or torch._C._current_graph_task_id() != _NO_BACKWARD:
            self._spoilt = what
        self._told = True
        begun = f"{len(self._begun)} of {len(self._engine.unit_names)} units"
        load = "load the optimizer's state and then the model's from a checkpoint"
        if self._spoilt is None:
            raise Unstreamable(
                f"{what}, but the optimizer updates during backward. {begun} have been updated already",
                hint=f"call step() first, which updates the rest (or {load}); to allow it, {off}",
            )
        raise Unstreamable(
            f"{what}, but the optimizer updates during backward. {begun} have been updated already, and no whole step "
            "can be made of that",
            hint=f"{load}; to allow it, {off}",
        )


_SECOND = "a second backward() ran before step() (accumulation, or a loss in several parts)"


def _is_seen(gradient: torch.Tensor | None) -> bool:
    """Whether all that happens to it is seen; sparse ones, and the program's own, are on no slab."""
    return gradient is not None and GUARD.place_of(gradient) is not None


def _is_nested() -> bool:
    """Whether this backward runs within another; each device has its own thread, which knows only the inner one."""
    frame, backwards = sys._getframe(), 0
    while frame is not None:
        if frame.f_code is BackwardCFunction.apply.__code__:
            return True
        backwards += frame.f_code is torch.autograd.graph._engine_run_backward.__code__
        frame = frame.f_back
    return backwards > 1


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)
