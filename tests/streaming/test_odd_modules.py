"""Modules that use their parameters in unusual ways: trained and asked, streamed equals plain."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from streaming.twins import Blocks, assert_same_run, batch, train
from superpipe_cluster.errors import BudgetTooSmall, Unstreamable
from superpipe_cluster.streaming import stream

D = 16


@dataclass(frozen=True)
class Odd:
    build: Callable[[], nn.Module]
    forward: Callable[[nn.Module, int], torch.Tensor] = lambda model, seed: model(batch(seed))
    k: int = 2
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    options: dict[str, Any] = field(default_factory=lambda: {"lr": 0.02})


def _sequence(seed: int) -> torch.Tensor:
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(seed))


def _tokens(seed: int) -> torch.Tensor:
    return torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    def __init__(self, make: Callable[[], nn.Module], count: int = 5) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(make(), nn.Tanh()) for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) + x
        return x


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, D)
        self.layers = nn.ModuleList([nn.ModuleList([kind(D, D, batch_first=True)]) for _ in range(4)])
        self.head = nn.Linear(D, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for (layer,) in self.layers:
            x = x + layer(x)[0]
        return self.head(x)


class AnyParameters(Residual):
    """Every kind of parameter that a module can own."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Linear(D, D))
        frozen = {"requires_grad": False}
        self.transposed = nn.Parameter(torch.randn(D, D).t())
        self.strided = nn.Parameter(torch.randn(2 * D, 2 * D)[::2, ::2])
        self.permuted = nn.Parameter(torch.randn(4, D, 4).permute(2, 0, 1))
        self.sliced = nn.Parameter(torch.randn(40)[3 : 3 + D])
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.empty(0, D))
        self.expanded = nn.Parameter(torch.randn(1, D).expand(D, D), **frozen)
        self.indices = nn.Parameter(torch.arange(D), **frozen)
        self.mask = nn.Parameter(torch.rand(D) > 0.5, **frozen)
        self.plane = nn.Parameter(torch.randn(D, dtype=torch.complex64))
        self.conjugated = nn.Parameter(torch.randn(D, dtype=torch.complex64).conj())
        self.short = nn.Parameter(torch.randn(D).half())
        self.long = nn.Parameter(torch.randn(D).double())
        self.register_parameter("none", None)
        self.register_buffer("nothing", None)
        self.register_buffer("silent", torch.randn(D), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x @ self.transposed + x @ self.strided) * self.scalar
        x = torch.cat([self.empty, x])[:, self.indices] + torch.where(self.mask, x, -x)
        x = x + (x * self.plane).abs() + (self.conjugated * x).real
        x = x + x * self.short.float() + (x.double() * self.long).float()
        return x + self.sliced + self.silent + 0.01 * (self.permuted.sum() + self.expanded.sum())


class SharedMemory(Residual):
    """Two parameter objects on one memory, and a view of a weight that is no parameter at all."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Linear(D, D))
        self.layers[3][0].weight.data = self.layers[0][0].weight.data
        self.view = self.layers[1][0].weight.data

    def __deepcopy__(self, memo: Any) -> SharedMemory:
        copied = SharedMemory()
        copied.load_state_dict(self.state_dict())
        return copied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.view.t()


class SparseEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, D, sparse=True)
        self.bag = nn.EmbeddingBag(50, D, sparse=True, mode="sum")
        self.body = Residual(lambda: nn.Linear(D, D))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.body(self.embed(tokens).sum(1) + self.bag(tokens))


class Experts(nn.Module):
    """The batch decides which experts run."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList([nn.Linear(D, 6) for _ in range(3)])
        self.experts = nn.ModuleList(
            [
                nn.ModuleList(
                    [nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D)) for _ in range(6)]
                )
                for _ in range(3)
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for gate, experts in zip(self.gates, self.experts, strict=True):
            weights, chosen = gate(x).softmax(-1).topk(2)
            added = torch.zeros_like(x)
            for expert in chosen.unique().tolist():
                row, column = (chosen == expert).nonzero(as_tuple=True)
                added = added.index_add(0, row, experts[expert](x[row]) * weights[row, column, None])
            x = x + added
        return x


class Shelf(nn.Module):
    """All weights in one `ParameterList`, read by a function that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(D, D) * 0.1) for _ in range(8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            x = _Product.apply(torch.tanh(x), weight)
        return x


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


class ChangesItself(Residual):
    """Forward writes to parameters: a moving average, and an embedding that keeps its rows short."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Linear(D, D))
        self.code = nn.Parameter(torch.randn(D), requires_grad=False)
        self.embed = nn.Embedding(8, D, max_norm=1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        if self.training:
            with torch.no_grad():
                self.code.lerp_(x.mean(0), 0.1)
        return x + self.code + self.embed(torch.tensor([1, 2, 3]))


class ViewsMadeEarly(Residual):
    """Views of all weights are taken first and read later."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Linear(D, 3 * D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [layer[0].weight.chunk(3) for layer in self.layers]
        for query, key, value in parts:
            x = x + torch.tanh(x @ query.t()) * (x @ key.t()) + x @ value.t()
        return x


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 4, 32, batch_first=True), 4)


ODD = {
    "batch-norm": Odd(lambda: Residual(lambda: nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D)))),
    "lstm": Odd(lambda: Recurrent(nn.LSTM), lambda model, seed: model(_tokens(seed))),
    "gru": Odd(lambda: Recurrent(nn.GRU), lambda model, seed: model(_tokens(seed))),
    "encoder": Odd(_encoder, lambda model, seed: model(_sequence(seed))),
    "encoder-layer": Odd(
        lambda: nn.TransformerEncoderLayer(D, 4, 32, batch_first=True),
        lambda model, seed: model(_sequence(seed)),
        k=5,  # in eval mode one fused operator reads it all
    ),
    "attention": Odd(
        lambda: nn.MultiheadAttention(D, 4, batch_first=True),
        lambda model, seed: model(_sequence(seed), _sequence(seed + 1), _sequence(seed))[0],
    ),
    "transformer": Odd(
        lambda: nn.Transformer(D, 4, 3, 3, 32, batch_first=True),
        lambda model, seed: model(_sequence(seed), _sequence(seed + 1)),
    ),
    "weight-norm": Odd(lambda: Residual(lambda: parametrizations.weight_norm(nn.Linear(D, D)))),
    "spectral-norm": Odd(lambda: Residual(lambda: parametrizations.spectral_norm(nn.Linear(D, D)))),
    "any-parameters": Odd(AnyParameters, optimizer=torch.optim.SGD),
    "shared-memory": Odd(SharedMemory),
    "sparse": Odd(
        SparseEmbeddings, lambda model, seed: model(_tokens(seed)), optimizer=torch.optim.SGD
    ),
    "experts": Odd(Experts),
    "shelf": Odd(Shelf),
    "changes-itself": Odd(ChangesItself),
    "views-made-early": Odd(ViewsMadeEarly),
    "bfloat16": Odd(lambda: Blocks().bfloat16(), lambda model, seed: model(batch(seed).bfloat16())),
    "channels-last": Odd(
        lambda: nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)]).to(
            memory_format=torch.channels_last
        ),
        lambda model, seed: model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_trained_and_asked(name: str) -> None:
    odd = ODD[name]

    def program(model, make_optimizer):
        optimizer = make_optimizer(odd.optimizer, **odd.options)
        losses = train(
            model, optimizer, loss_of=lambda model, step: odd.forward(model, step).abs().float().mean()
        )
        model.eval()
        answers = []
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                answers += [odd.forward(model, seed).clone() for seed in range(2)]
        return losses, answers, odd.forward(model, 9).detach()

    stats = assert_same_run(program, odd.build, odd.k)
    assert stats.k >= stats.units or stats.loads > stats.units


def _bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=50, hidden_size=D, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
        )
    )


def _albert():
    from transformers import AlbertConfig, AlbertModel

    return AlbertModel(
        AlbertConfig(
            vocab_size=50, embedding_size=8, hidden_size=D, num_hidden_layers=4, num_attention_heads=2,
            intermediate_size=32,
        )
    )  # fmt: skip


def _t5():
    from transformers import T5Config, T5Model

    return T5Model(T5Config(vocab_size=50, d_model=D, d_ff=32, d_kv=8, num_heads=2, num_layers=3))


def _mixtral():
    from transformers import MixtralConfig, MixtralModel

    return MixtralModel(
        MixtralConfig(
            vocab_size=50, hidden_size=D, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=4,
        )
    )  # fmt: skip


def _mamba():
    from transformers import MambaConfig, MambaModel

    return MambaModel(MambaConfig(vocab_size=50, hidden_size=D, state_size=4, num_hidden_layers=3))


def _deberta():
    from transformers import DebertaV2Config, DebertaV2Model

    return DebertaV2Model(
        DebertaV2Config(
            vocab_size=50, hidden_size=D, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
            relative_attention=True, pos_att_type=["p2c", "c2p"],
        )
    )  # fmt: skip


@pytest.mark.parametrize("build", [_bert, _albert, _t5, _mixtral, _mamba, _deberta])
def test_language_models(build: Callable[[], nn.Module]) -> None:
    def forward(model: nn.Module, seed: int) -> torch.Tensor:
        inputs = {"input_ids": _tokens(seed)}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = _tokens(seed + 1)
        return model(**inputs).last_hidden_state

    def program(model, make_optimizer):
        optimizer = make_optimizer(torch.optim.AdamW, lr=1e-2)
        losses = train(model, optimizer, 2, lambda model, step: forward(model, step).square().mean())
        model.eval()
        with torch.inference_mode():
            return losses, forward(model, 5).clone()

    stats = assert_same_run(program, build)
    assert stats.loads > stats.units


def test_what_no_kernel_can_read_in_parts_says_how_many_units_it_needs() -> None:
    model = nn.TransformerEncoderLayer(D, 4, 32, batch_first=True).eval()
    with stream(model, k=2), torch.no_grad(), pytest.raises(BudgetTooSmall, match="5 units at once"):
        model(_sequence(0))


class _Multiplied(Blocks):
    def forward(self, x):
        return super().forward(x).prod(1)


class _Branches(Blocks):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.outside(x), lambda x: -self.outside(x), (x,))


@pytest.mark.parametrize(("build", "reason"), [(_Multiplied, "last bits"), (_Branches, "unseen")])
def test_operators_that_cannot_be_watched_are_refused(build: Callable[[], nn.Module], reason: str) -> None:
    model = build()
    with stream(model, k=2), pytest.raises(Unstreamable, match=reason):
        model(batch())


def test_torchscript_and_parameters_of_inference_mode_are_refused() -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(Unstreamable, match="TorchScript"):
        stream(nn.Sequential(nn.Linear(4, 4), scripted), k=1)
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    with pytest.raises(Unstreamable, match="inference mode"):
        stream(model, k=1)


def test_an_operator_over_nested_tensors() -> None:
    def program(model, make_optimizer):
        rows = torch.nested.nested_tensor([batch(0, 3), batch(1, 5)], layout=torch.jagged)
        return [one.detach() for one in model(rows).unbind()]

    assert_same_run(program)


def test_functional_gradients() -> None:
    def program(model, make_optimizer):
        parameters = dict(model.named_parameters())

        def loss(parameters):
            return F.mse_loss(torch.func.functional_call(model, parameters, (batch(),)), torch.ones(3, 4))

        return torch.func.grad(loss)(parameters), torch.vmap(model)(batch()).detach()

    assert_same_run(program)


class _Followed(nn.Module):
    """A second set of weights follows the first as an average of it, each a unit away, in one operator over all."""

    def __init__(self) -> None:
        super().__init__()
        self.leader = Blocks()
        self.follower = copy.deepcopy(self.leader).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if self.training:
                torch._foreach_lerp_(list(self.follower.parameters()), list(self.leader.parameters()), 0.1)
            expected = self.follower(x)
        return self.leader(x) - expected


def test_an_operator_over_pairs_of_units() -> None:
    def program(model, make_optimizer):
        return train(model, make_optimizer(torch.optim.AdamW, lr=0.02))

    stats = assert_same_run(program, _Followed)
    assert stats.loads > stats.units


class _Mixed(Blocks):
    """Its weights are read side by side: in one vector, in one stack, in one matrix that is wider."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = [layer[0].weight for layer in self.layers]
        everything = torch.nn.utils.parameters_to_vector(self.parameters())
        mean = torch.stack(weights, dim=1).mean(1)
        wide = torch.cat([*weights, torch.empty(0)], dim=-1).tanh()
        return super().forward(x) + (x @ mean.t() @ wide[:, :4]) * everything.square().mean()


def test_weights_that_are_joined_need_not_fit_together() -> None:
    def program(model, make_optimizer):
        return train(model, make_optimizer(torch.optim.AdamW, lr=0.02))

    stats = assert_same_run(program, _Mixed, k=1)
    assert stats.loads > 3 * stats.units
