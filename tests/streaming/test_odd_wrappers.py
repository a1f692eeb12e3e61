"""What may be wrapped around a model, put on it or made of it: compiled, traced, averaged, parametrised, quantised.

Streamed equals plain, or it is refused with a reason.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from streaming.twins import Blocks, assert_equal, assert_same_run, batch, train
from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming import stream

AdamW = torch.optim.AdamW


def _trained(model: nn.Module, make_optimizer: Any) -> Any:
    return train(model, make_optimizer(AdamW, lr=0.1))


# ---- compiled and traced ------------------------------------------------------------------------------------


class _PartlyCompiled(Blocks):
    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers[1:4]:
            layer.compile(backend="aot_eager")


@pytest.mark.parametrize("build", [_PartlyCompiled, lambda: torch.compile(Blocks(), backend="aot_eager")])
def test_compiled_before(build: Callable[[], nn.Module]) -> None:
    torch._dynamo.reset()
    stats = assert_same_run(_trained, build)
    assert stats.loads > stats.units


def test_compiled_while_streamed() -> None:
    def program(model, make_optimizer):
        model.layers[2].compile(backend="aot_eager")
        losses = _trained(model, make_optimizer)
        model.compile(backend="aot_eager")
        return losses, train(model, make_optimizer(AdamW, lr=0.1), 1)

    torch._dynamo.reset()
    stats = assert_same_run(program)
    assert stats.loads > stats.units


def test_exported_while_streamed() -> None:
    def program(model, make_optimizer):
        exported = torch.export.export(model, (batch(),)).module()
        return [exported(batch(seed)).detach() for seed in range(4)]

    stats = assert_same_run(program)
    assert stats.loads > stats.units


# ---- wrapped ------------------------------------------------------------------------------------------------


def test_data_parallel_around_and_inside() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is old
        assert_same_run(_trained, lambda: nn.DataParallel(Blocks()))
        stats = assert_same_run(lambda model, make: train(nn.DataParallel(model), make(AdamW, lr=0.1)))
    assert stats.loads > stats.units


def test_an_average_of_the_weights() -> None:
    def program(model, make_optimizer):
        optimizer, average = make_optimizer(AdamW, lr=0.1), AveragedModel(model)
        for _ in range(3):
            train(model, optimizer, 1)
            average.update_parameters(model)
        return [p.detach() for p in average.parameters()], average(batch()).detach()

    stats = assert_same_run(program)
    assert stats.loads > stats.units


def test_saved_and_copied_in_the_middle_of_training() -> None:
    def program(model, make_optimizer):
        losses = _trained(model, make_optimizer)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        again = [pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
        return losses, [one(batch()).detach() for one in again]

    stats = assert_same_run(program)
    assert stats.loads > stats.units


# ---- parametrised -------------------------------------------------------------------------------------------


class _Orthogonal(Blocks):
    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            parametrizations.orthogonal(layer[0])


def test_parametrised_and_cached() -> None:
    def loss_of(model, step):
        with parametrize.cached():
            return (model(batch(step)) * model(batch(step + 1))).mean()

    stats = assert_same_run(
        lambda model, make: train(model, make(AdamW, lr=0.1), loss_of=loss_of), _Orthogonal
    )
    assert stats.loads > stats.units


def test_parametrised_while_streamed() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1)
        losses = train(model, optimizer, 1)
        parametrizations.weight_norm(model.layers[1][0])
        parametrizations.spectral_norm(model.layers[4][2])
        return losses + train(model, optimizer, 2)

    stats = assert_same_run(program)
    assert stats.loads > stats.units


def test_no_longer_parametrised_is_another_parameter() -> None:
    model = Blocks()
    with stream(model, k=2) as streamer:
        parametrizations.weight_norm(model.layers[1][0])
        model(batch())
        parametrize.remove_parametrizations(model.layers[1][0], "weight")
        with pytest.raises(Unstreamable, match=r"layers\.1\.0\.weight has been replaced"):
            model(batch())
        assert streamer.stats().loads >= 8


# ---- functions of a model -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # of torch, about itself
def test_function_transforms_over_a_streamed_model() -> None:
    def program(model, make_optimizer):
        parameters, x = {name: p.detach() for name, p in model.named_parameters()}, batch()

        def outputs(parameters):
            return torch.func.functional_call(model, parameters, (x,)).sum(0)

        def loss_of_one(parameters, row):
            return torch.func.functional_call(model, parameters, (row[None],)).square().sum()

        def loss_of_head(head):
            return loss_of_one({**parameters, "outside.weight": head}, x[0])

        directions = {name: torch.ones_like(p) for name, p in parameters.items()}
        return (
            torch.func.jacrev(outputs)(parameters),
            torch.func.jvp(outputs, (parameters,), (directions,)),
            torch.vmap(torch.func.grad(loss_of_one), (None, 0))(parameters, x),
            torch.func.hessian(loss_of_head)(parameters["outside.weight"]),
        )

    stats = assert_same_run(program)
    assert stats.loads > stats.units


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_forward_mode_gradients() -> None:
    def program(model, make_optimizer):
        with forward_ad.dual_level():
            answer = model(forward_ad.make_dual(batch(), torch.ones(3, 16)))
            return [part.detach().clone() for part in forward_ad.unpack_dual(answer)]

    assert assert_same_run(program).loads > 0


# ---- hooks and checkpoints ----------------------------------------------------------------------------------


def test_hooks_that_read_the_weights_of_other_modules() -> None:
    def program(model, make_optimizer):
        for at, layer in enumerate(model.layers):
            other = model.layers[(at + 3) % 6]
            layer.register_forward_hook(
                lambda _, args, result, other=other: result * other[0].weight.mean() + other[2].bias.sum()
            )
        return _trained(model, make_optimizer)

    stats = assert_same_run(program)
    assert stats.loads > stats.units


class _Checkpointed(Blocks):
    """Reentrant checkpoints, with dropout that must be drawn the same again, and others within."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        x = checkpoint(self._some, x, self.layers[:3], use_reentrant=False)
        x = checkpoint(self._some, x, self.layers[3:], use_reentrant=True)
        for layer in self.layers:
            x = x + checkpoint(lambda y, layer=layer: F.dropout(layer(y), 0.3), x, use_reentrant=True)
        return self.outside(x)

    @staticmethod
    def _some(x, layers):
        for layer in layers:
            x = x + checkpoint(layer, x, use_reentrant=False)
        return x


def test_reentrant_checkpoints_and_nested_ones() -> None:
    stats = assert_same_run(_trained, _Checkpointed)
    assert stats.loads > stats.units


# ---- quantised, lazy ----------------------------------------------------------------------------------------


class _Quantised(Blocks):
    """The weights of two layers are packed away, where only their own kernels find them."""

    def __init__(self) -> None:
        super().__init__()
        for at in (1, 4):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that they will move
                self.layers[at] = torch.ao.quantization.quantize_dynamic(self.layers[at], {nn.Linear})


def test_quantised_parts_stay_and_the_rest_is_streamed() -> None:
    torch.manual_seed(0)
    model = _Quantised().eval()
    with torch.no_grad():
        expected = [model(batch(seed)) for seed in range(3)]
        with stream(model, k=2, poison=True) as streamer:
            assert_equal(expected, [model(batch(seed)) for seed in range(3)])
            stats = streamer.stats()
    assert stats.peak_units <= 2 < stats.units < stats.loads


def test_lazy_modules_are_refused_until_they_have_run() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 4))
    with pytest.raises(Unstreamable, match="no data yet"):
        stream(model, k=1)
    expected = model(batch()).detach()
    with stream(model, k=1, poison=True) as streamer:
        assert_equal(expected, model(batch()).detach())
        assert streamer.stats().loads == 2
