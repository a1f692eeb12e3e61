"""Optimizers of every making: stepped by units where that is known to be the same, whole where it is not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from streaming.twins import Blocks, assert_same_run, batch, mean_square, train

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


class _Own(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "steps": 0})
        self.steps = 0

    def parameters(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]


class CountsInItsGroups(_Own):
    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            group["steps"] += 1
        for parameter in self.parameters():
            parameter.add_(parameter.grad, alpha=-0.1 / self.steps / self.param_groups[0]["steps"])


class ScalesByTheGlobalNorm(_Own):
    @torch.no_grad()
    def step(self, closure=None):
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
        for parameter in self.parameters():
            parameter.add_(parameter.grad, alpha=-0.1 / float(norm))


class HoldsItsStateTwice(_Own):
    """State that is also held elsewhere, that is a view of the parameter, and that is replaced at each step."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.parameters():
            state = self.state[parameter]
            if not state:
                state["same"] = state["first"] = parameter.detach().clone()
                state["view"] = parameter.detach()
                state["list"] = [parameter.detach().clone()]
            state["view"].sub_(parameter.grad, alpha=0.1)
            state["same"].lerp_(parameter, 0.1)
            state["new"] = state["first"] * 2
            parameter.add_(state["list"][0].add_(state["new"]), alpha=0.01)


class CallsTheModelAgain(_Own):
    """Sharpness-aware: up the slope, a second gradient, back, and down."""

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
        for parameter in self.parameters():
            self.state[parameter]["old"] = parameter.detach().clone()
            parameter.add_(parameter.grad, alpha=float(0.05 / norm))
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        for parameter in self.parameters():
            parameter.copy_(self.state[parameter]["old"]).sub_(parameter.grad, alpha=0.1)
        self.zero_grad()
        return loss


@pytest.mark.parametrize("kind", [CountsInItsGroups, ScalesByTheGlobalNorm, HoldsItsStateTwice])
def test_optimizers_that_are_not_known(kind: type[torch.optim.Optimizer]) -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(kind)
        losses = train(model, optimizer)
        return losses, [value.clone() for state in optimizer.state.values() for value in state.values()
                        if isinstance(value, torch.Tensor)]  # fmt: skip

    assert_same_run(program)


def test_closures() -> None:
    def program(model, make_optimizer):
        losses = []
        optimizer = make_optimizer(CallsTheModelAgain)
        plain = make_optimizer(SGD, lr=0.01, momentum=0.9)
        for step in range(3):

            def closure():
                loss = mean_square(model, step)  # noqa: B023 - called within the iteration
                loss.backward()
                return loss

            closure()
            losses.append(optimizer.step(closure).detach())
            losses.append(plain.step(closure).detach())
            model.zero_grad()
        return losses

    assert_same_run(program)


def test_two_optimizers_over_one_model() -> None:
    def program(model, make_optimizer):
        lower = [p for layer in model.layers[:4] for p in layer.parameters()]
        one = make_optimizer(AdamW, lower, lr=0.1)
        other = make_optimizer(AdamW, [*model.layers[3:].parameters(), model.outside.weight], lr=0.01)
        for step in range(4):
            mean_square(model, step).backward()
            (one if step % 2 else other).step()
            model.zero_grad()
        states = [optimizer.state_dict()["state"].values() for optimizer in (one, other)]
        return [[value.clone() for value in state.values()] for values in states for state in values]

    assert_same_run(program)


def test_groups_a_group_that_comes_later_and_a_schedule() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(
            AdamW,
            [
                {"params": list(model.layers[:3].parameters()), "lr": 0.1},
                {"params": [model.layers[3][0].weight], "weight_decay": 0.5},
            ],
            lr=0.01,
        )
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        losses = []
        for step in range(4):
            if step == 2:
                optimizer.add_param_group({"params": list(model.layers[3][2].parameters()), "lr": 0.3})
            losses += train(model, optimizer, 1)
            schedule.step()
        model.zero_grad()
        return losses

    assert_same_run(program)


def test_a_unit_whose_gradients_come_late() -> None:
    class Deepens(Blocks):
        deep = False

        def forward(self, x):
            x = self.inside(x)
            for layer in self.layers:
                x = x + (layer(x) if self.deep else torch.tanh(layer[0](x))[:, :16])
            return self.outside(x)

    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        losses = train(model, optimizer, 2)
        model.deep = True
        return losses + train(model, optimizer, 3)

    assert_same_run(program, Deepens)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_plain_optimizers_over_streamed_parameters(options: dict[str, bool]) -> None:
    def program(model, make_optimizer):
        return train(model, AdamW(model.parameters(), lr=0.1, **options))

    assert_same_run(program)
    assert_same_run(lambda model, make_optimizer: train(model, make_optimizer(AdamW, lr=0.1, **options)))


def test_operators_over_lists_of_all_parameters() -> None:
    def program(model, make_optimizer):
        mean_square(model, 0).backward()
        weights, gradients = list(model.parameters()), [p.grad for p in model.parameters()]
        with torch.no_grad():
            torch._foreach_addcmul_(weights, gradients, gradients, torch.linspace(0, 1, len(weights)))
            torch._foreach_addcmul_(weights, gradients, gradients, [0.1 * at for at in range(len(weights))])
            torch._foreach_lerp_(weights, gradients, 0.5)
            torch._foreach_copy_(weights, [weight.clone() * 2 for weight in weights])
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        return torch._foreach_norm(weights), torch._foreach_max(gradients)

    assert_same_run(program)


def test_an_optimizer_in_backward() -> None:
    def program(model, make_optimizer):
        steppers = {p: SGD([p], lr=0.1) for p in model.parameters()}

        def step(parameter):
            steppers[parameter].step()
            steppers[parameter].zero_grad()

        hooks = [p.register_post_accumulate_grad_hook(step) for p in model.parameters()]
        for seed in range(3):
            mean_square(model, seed).backward()
        for hook in hooks:
            hook.remove()

    assert_same_run(program)


def test_state_that_is_read_written_and_loaded() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        losses = train(model, optimizer, 2)
        saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
        for state in optimizer.state.values():
            state["exp_avg"].mul_(0.5)
        losses += train(model, optimizer, 2)
        model.load_state_dict(weights)
        optimizer.load_state_dict(saved)
        return losses + train(model, optimizer, 2)

    assert_same_run(program)


def test_state_made_and_saved_in_inference_mode() -> None:
    class Dreams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Blocks()

        def forward(self, x):
            return self.body(x)

    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        mean_square(model, 0).backward()
        with torch.inference_mode():
            answer = model(batch(1)).clone()  # sends gradients to host memory for the first time
            held = model.state_dict()
        optimizer.step()
        model.zero_grad()
        for value in held.values():
            value.mul_(0.9)
        return answer, train(model, optimizer, 2)

    assert_same_run(program, Dreams)
