"""Programs that keep, set or replace gradients and weights themselves: streamed equals plain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from streaming.twins import Blocks, assert_same_run, batch, mean_square, train
from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming import stream

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


# ---- gradients -----------------------------------------------------------------------------------------


def test_gradients_of_several_tasks_are_kept_and_combined() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(SGD, lr=0.1)
        for step in range(3):
            out, kept = model(batch(step)), []
            for task in range(3):
                optimizer.zero_grad()
                out[:, task].square().mean().backward(retain_graph=True)
                kept.append([p.grad for p in model.parameters()])
            optimizer.zero_grad()
            for at, parameter in enumerate(model.parameters()):
                parameter.grad = sum(gradients[at] for gradients in kept)
            optimizer.step()
        return kept

    assert_same_run(program)


def test_views_of_gradients_survive_the_gradients() -> None:
    def program(model, make_optimizer):
        mean_square(model, 0).backward()
        views = [p.grad.view(-1)[1:] for p in model.parameters()]
        model.zero_grad()
        mean_square(model, 1).backward()
        mean_square(model, 2).backward()
        return [view.clone() for view in views]

    assert_same_run(program)


def test_some_gradients_are_let_go() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        seen = []
        for step in range(5):
            mean_square(model, step).backward()
            seen.append([p.grad.clone() for p in model.parameters()])
            optimizer.step()
            for at, parameter in enumerate(model.parameters()):
                if (at + step) % 3:
                    parameter.grad = None
        return seen

    assert_same_run(program)


def test_gradients_in_a_buffer_of_the_programs_own() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(SGD, lr=0.1)
        flat, at, seen = torch.zeros(sum(p.numel() for p in model.parameters())), 0, []
        for parameter in model.parameters():
            parameter.grad = flat[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        for step in range(3):
            flat.zero_()
            mean_square(model, step).backward()
            flat.mul_(0.5)
            seen.append(flat.clone())
            optimizer.step()
        return seen

    assert_same_run(program)


def test_gradients_set_edited_and_collected_by_hand() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        mine, collected = [torch.ones_like(p) for p in model.parameters()], []
        for parameter, gradient in zip(model.parameters(), mine, strict=True):
            parameter.grad = gradient
        for step in range(2):
            mean_square(model, step).backward()  # accumulates into `mine`
        optimizer.step()
        optimizer.zero_grad()
        hooks = [
            p.register_post_accumulate_grad_hook(lambda p: collected.append(p.grad))
            for p in model.parameters()
        ]
        for step in range(2):
            mean_square(model, step).backward()
            for parameter in model.parameters():
                parameter.grad.mul_(0.5)
                parameter.grad.data = parameter.grad.data + 1
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        for hook in hooks:
            hook.remove()
        return mine, [gradient.clone() for gradient in collected]

    assert_same_run(program)


def test_higher_gradients_and_no_gradients() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        penalties = []
        for step in range(2):
            x = batch(step).requires_grad_()
            (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            penalty.backward()
            penalties.append(penalty.detach())
            optimizer.step()
            optimizer.zero_grad()
        return penalties, torch.autograd.grad(mean_square(model, 3), list(model.parameters()))

    assert_same_run(program)


def test_unfrozen_later_and_frozen_again() -> None:
    def build():
        model = Blocks()
        model.layers.requires_grad_(False)
        return model

    def program(model, make_optimizer):
        model.layers.requires_grad_(True)
        optimizer = make_optimizer(AdamW, lr=0.1)
        losses = train(model, optimizer)
        model.layers[2:].requires_grad_(False)
        return losses + train(model, optimizer)

    assert_same_run(program, build)


# ---- weights -------------------------------------------------------------------------------------------


def test_weights_are_replaced() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        average = [p.detach().clone() for p in model.parameters()]
        seen = []
        for _ in range(3):
            seen += train(model, optimizer, 1)
            for parameter, mean in zip(model.parameters(), average, strict=True):
                mean.lerp_(parameter.detach(), 0.1)
                parameter.data = parameter.data.clamp(-0.2, 0.2)
            own = [p.data for p in model.parameters()]
            for parameter, mean in zip(model.parameters(), average, strict=True):
                parameter.data = mean
            seen.append(model(batch(9)).detach())
            for parameter, weight in zip(model.parameters(), own, strict=True):
                parameter.data = weight
        flat = torch.cat([p.detach().clone().view(-1) for p in model.parameters()])
        torch.nn.utils.vector_to_parameters(flat * 0.5, model.parameters())
        return seen, model(batch(9)).detach()

    stats = assert_same_run(program)
    assert stats.loads > 2 * stats.units, "clamped weights are streamed again"


def test_state_dicts_that_are_held_are_the_weights() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        held, state = model.state_dict(), None
        losses = train(model, optimizer)
        for value in held.values():
            value.mul_(0.5)
        state = optimizer.state_dict()["state"]
        best = copy.deepcopy(model.state_dict())
        losses += train(model, optimizer)
        after = {name: value.clone() for name, value in held.items()}
        model.load_state_dict(best)
        return losses, after, [{n: v.clone() for n, v in one.items()} for one in state.values()]

    assert_same_run(program)


def test_modules_come_and_go() -> None:
    class Adapter(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base
            self.down = nn.Parameter(torch.randn(2, 16) * 0.1)
            self.up = nn.Parameter(torch.zeros(16, 2))

        def forward(self, x):
            return self.base(x) + x @ self.down.t() @ self.up.t()

    def program(model, make_optimizer):
        before = model(batch()).detach()
        model.requires_grad_(False)
        del model.layers[3]
        for at, layer in enumerate(model.layers):
            model.layers[at] = Adapter(layer)
        return before, train(model, make_optimizer(AdamW, lr=0.1))

    assert_same_run(program)


def test_converting_one_weight_by_hand_is_refused_at_the_next_step() -> None:
    model = Blocks()
    with stream(model, k=2):
        model(batch())
        model.inside.weight.data = model.inside.weight.data.double()
        with pytest.raises(Unstreamable, match="float64"):
            model(batch())
