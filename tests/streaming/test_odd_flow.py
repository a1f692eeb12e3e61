"""Programs whose control flow is not a plain loop, and those that run under other modes: streamed equals plain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from streaming.twins import Blocks, assert_equal, assert_same_run, batch, mean_square, train
from superpipe_cluster.errors import DeviceOutOfMemory
from superpipe_cluster.streaming import stream

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


class _Moody(Blocks):
    """May stop early, and may fail half way."""

    def forward(self, x, depth: int = 6, fail: bool = False):
        x = self.inside(x)
        for at, layer in enumerate(self.layers[:depth]):
            x = x + layer(x)
            if fail and at == 3:
                raise KeyboardInterrupt
        return self.outside(x)


def test_early_exits_failures_and_two_forwards_per_backward() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        losses = []
        for step in range(6):
            x, depth = batch(step), [6, 2, 4][step % 3]
            losses += train(model, optimizer, 1, lambda m, _, x=x, d=depth: m(x, d).square().mean())
            with pytest.raises(KeyboardInterrupt):
                model(batch(), fail=True)
            losses += train(model, optimizer, 1, lambda m, _, x=x: (m(x) * m(batch(9))).mean())
        return losses

    assert_same_run(program, _Moody)


def test_submodules_called_without_the_model_and_hooks_of_the_users() -> None:
    def loss_of(model, step):
        x = model.inside(batch(step))
        for layer in model.layers:
            x = layer(x) + x
        return model.outside(x).square().mean()

    def program(model, make_optimizer):
        seen = []
        hooks = [p.register_hook(lambda g: g * 0.5) for p in model.parameters()]
        for layer in model.layers:
            hooks.append(layer.register_forward_pre_hook(lambda m, args: (args[0] + m[0].weight.mean(),)))
            hooks.append(layer.register_full_backward_hook(lambda m, _, out: seen.append(out[0].clone())))
        losses = train(model, make_optimizer(AdamW, lr=0.1), 3, loss_of)
        for hook in hooks:
            hook.remove()
        return losses, seen

    assert_same_run(program)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_runs_as_if_it_were_not(backend: str) -> None:
    def program(model, make_optimizer):
        return train(torch.compile(model, backend=backend), make_optimizer(AdamW, lr=0.1))

    torch._dynamo.reset()
    assert_same_run(program)


def test_other_modes_come_and_go() -> None:
    model = Blocks()
    plain = copy.deepcopy(model)
    with FlopCounterMode(display=False):
        streamer = stream(model, k=2, poison=True)
    with FlopCounterMode(display=False) as counter:
        loss = mean_square(model, 0)
    loss.backward()
    with FlopCounterMode(display=False):
        streamer.close()
    mean_square(plain, 0).backward()
    assert counter.get_total_flops() > 0
    assert_equal([p.grad for p in plain.parameters()], [p.grad for p in model.parameters()])
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_trace_holds_the_program_and_nothing_of_the_runtime() -> None:
    def program(model, make_optimizer):
        traced = make_fx(model)(batch())
        return traced(batch(1)).detach(), sorted({str(node.target) for node in traced.graph.nodes})

    assert_same_run(program)


def test_an_operator_written_in_python_that_calls_a_module() -> None:
    modules: list[torch.nn.Module] = []

    @torch.library.custom_op("superpipe_tests::block", mutates_args=())
    def block(x: torch.Tensor) -> torch.Tensor:
        return modules[-1](x).clone()

    def program(model, make_optimizer):
        modules.append(model.layers[3])
        with torch.no_grad():
            return [block(model.inside(batch(seed))) for seed in range(3)]

    assert_same_run(program)


def test_what_pressure_took_from_the_unit_that_runs_comes_back_beside_what_is_new() -> None:
    budget = 24 << 10
    model = Blocks()
    with stream(model, budget, poison=True) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.1)
        train(model, optimizer, 1)
        mean_square(model, 1).backward()
        weight = model.layers[2][0].weight
        moment = optimizer.state[weight]["exp_avg"]
        copies = [copy.deepcopy(one.detach()) for one in (weight, moment, weight.grad)]
        model.layers[4](batch())  # away with it
        with torch.no_grad():
            weight.sum()
            moment.sum()
            with pytest.raises(DeviceOutOfMemory):
                torch.empty(budget, dtype=torch.uint8)  # away with the weights, though their unit runs
            assert_equal(torch.addcmul(*copies), torch.addcmul(weight, moment, weight.grad))
        assert streamer.stats().peak_bytes <= budget
