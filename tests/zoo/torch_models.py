"""Specimens from torch itself: its layers, stacked a few deep so that there is something to stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from zoo.trial import Specimen

_D = 16
_Inputs = Callable[[nn.Module, int], tuple[tuple[Any, ...], dict[str, Any]]]


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _inputs(*shapes: tuple[int, ...], **keywords: Any) -> _Inputs:
    def make(model: nn.Module, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(_random(seed + at, *shape) for at, shape in enumerate(shapes)), keywords

    return make


def _tokens(model: nn.Module, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 50, (2, 7), generator=generator),), {}


class _Stack(nn.Module):
    """Five of one layer, one after the other with a residual; a layer may return its result in a tuple."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(make()) for _ in range(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            y = layer(x)
            x = x + torch.tanh(y[0] if isinstance(y, tuple) else y)
        return x


class _Cells(nn.Module):
    """Recurrent cells side by side, over three moments."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cells = nn.ModuleList([kind(_D, _D) for _ in range(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: list[Any] = [None] * len(self.cells)
        for _ in range(3):
            for at, cell in enumerate(self.cells):
                states[at] = cell(x, states[at])
                x = states[at][0] if isinstance(states[at], tuple) else states[at]
        return x


class _Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.MultiheadAttention(_D, 4, batch_first=True, **options) for _ in range(5)]
        )

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = query
        for layer in self.layers:
            attended, weights = layer(query, key, key)
            query = query + attended
        return query, weights


class _Embedded(nn.Module):
    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table
        self.body = _Stack(lambda: nn.Linear(_D, _D))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.body(self.table(tokens))


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Bilinear(_D, _D, _D) for _ in range(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x, x).tanh()
        return x


class _AdaptiveSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = _Stack(lambda: nn.Linear(_D, _D))
        self.head = nn.AdaptiveLogSoftmaxWithLoss(_D, 40, [5, 15])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head.log_prob(self.body(x))


class _Convolution(nn.Module):
    """Down and up again, in one, two or three dimensions, with every normalisation on the way."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        down = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        up = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dimensions]
        batch_norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions]
        instance_norm = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimensions]
        self.layers = nn.Sequential(
            nn.Sequential(down(3, 8, 3, padding=1), batch_norm(8), nn.GELU()),
            nn.Sequential(down(8, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.SiLU()),
            nn.Sequential(down(8, 8, 3, padding=1, groups=4), instance_norm(8, affine=True), nn.PReLU(8)),
            nn.Sequential(up(8, 8, 2, stride=2), nn.Dropout(0.1), nn.Mish()),
            nn.Sequential(down(8, 3, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class _FlexibleHeads(nn.Module):
    """Attention by its function, with one fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(_D, 3 * _D), nn.Linear(_D, _D)) for _ in range(5)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for fused, out in self.layers:
            query, key, value = fused(x).unflatten(-1, (3, 4, _D // 4)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=0.1)
            x = x + out(attended.transpose(1, 2).flatten(-2))
        return x


def _recurrent(kind: type[nn.RNNBase], **options: Any) -> Callable[[], nn.Module]:
    width = 2 if options.get("bidirectional") else 1
    return lambda: _Stack(lambda: kind(_D, _D // width, batch_first=True, **options))


def _encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(_D, 4, 32, batch_first=True, **options), 4, enable_nested_tensor=False
    )


def _transformer(**options: Any) -> nn.Module:
    return nn.Transformer(_D, 4, 3, 3, 32, batch_first=True, **options)


_ROWS, _SEQUENCE, _IMAGE = (4, _D), (2, 5, _D), (2, 3, 8, 8)
_MODELS: dict[str, tuple[Callable[[], nn.Module], _Inputs]] = {
    "LSTM": (_recurrent(nn.LSTM), _inputs(_SEQUENCE)),
    "LSTM, bidirectional, two layers": (
        _recurrent(nn.LSTM, bidirectional=True, num_layers=2, dropout=0.1),
        _inputs(_SEQUENCE),
    ),
    "LSTM, projected": (lambda: _Stack(lambda: nn.LSTM(8, _D, proj_size=8)), _inputs((2, 5, 8))),
    "GRU": (_recurrent(nn.GRU), _inputs(_SEQUENCE)),
    "GRU, bidirectional": (_recurrent(nn.GRU, bidirectional=True), _inputs(_SEQUENCE)),
    "RNN": (_recurrent(nn.RNN), _inputs(_SEQUENCE)),
    "RNN, relu": (_recurrent(nn.RNN, nonlinearity="relu"), _inputs(_SEQUENCE)),
    "LSTMCell": (lambda: _Cells(nn.LSTMCell), _inputs(_ROWS)),
    "GRUCell": (lambda: _Cells(nn.GRUCell), _inputs(_ROWS)),
    "RNNCell": (lambda: _Cells(nn.RNNCell), _inputs(_ROWS)),
    "MultiheadAttention": (_Attention, _inputs(_SEQUENCE, _SEQUENCE)),
    "MultiheadAttention, other widths": (
        lambda: _Attention(kdim=8, vdim=8, add_bias_kv=True, dropout=0.1),
        _inputs(_SEQUENCE, (2, 6, 8)),
    ),
    "MultiheadAttention, alone": (
        lambda: nn.MultiheadAttention(_D, 4, batch_first=True),
        _inputs(_SEQUENCE, _SEQUENCE, _SEQUENCE),
    ),
    "TransformerEncoder": (_encoder, _inputs(_SEQUENCE)),
    "TransformerEncoder, norm first": (
        lambda: _encoder(norm_first=True, activation="gelu"),
        _inputs(_SEQUENCE, src_key_padding_mask=torch.tensor([[False] * 5, [False] * 3 + [True] * 2])),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(_D, 4, 32, batch_first=True), 4),
        _inputs(_SEQUENCE, _SEQUENCE),
    ),
    "Transformer": (_transformer, _inputs(_SEQUENCE, _SEQUENCE)),
    "Transformer, norm first": (lambda: _transformer(norm_first=True), _inputs(_SEQUENCE, _SEQUENCE)),
    "scaled_dot_product_attention": (_FlexibleHeads, _inputs(_SEQUENCE)),
    "Linear": (lambda: _Stack(lambda: nn.Linear(_D, _D)), _inputs(_ROWS)),
    "Linear, no bias, double": (
        lambda: _Stack(lambda: nn.Linear(_D, _D, bias=False)).double(),
        lambda model, seed: ((_random(seed, *_ROWS).double(),), {}),
    ),
    "Linear, bfloat16": (
        lambda: _Stack(lambda: nn.Linear(_D, _D)).bfloat16(),
        lambda model, seed: ((_random(seed, *_ROWS).bfloat16(),), {}),
    ),
    "Linear, complex": (
        lambda: _Stack(lambda: nn.Linear(_D, _D, dtype=torch.complex64)),
        lambda model, seed: ((torch.complex(_random(seed, *_ROWS), _random(seed + 1, *_ROWS)),), {}),
    ),
    "Bilinear": (_Bilinear, _inputs(_ROWS)),
    "AdaptiveLogSoftmaxWithLoss": (_AdaptiveSoftmax, _inputs(_ROWS)),
    "Embedding": (lambda: _Embedded(nn.Embedding(50, _D, padding_idx=0)), _tokens),
    "Embedding, max_norm": (lambda: _Embedded(nn.Embedding(50, _D, max_norm=1.0)), _tokens),
    "EmbeddingBag": (lambda: _Embedded(nn.EmbeddingBag(50, _D, mode="mean")), _tokens),
    "Conv1d": (lambda: _Convolution(1), _inputs((2, 3, 8))),
    "Conv2d": (lambda: _Convolution(2), _inputs(_IMAGE)),
    "Conv2d, channels last": (
        lambda: _Convolution(2).to(memory_format=torch.channels_last),
        lambda model, seed: ((_random(seed, *_IMAGE).to(memory_format=torch.channels_last),), {}),
    ),
    "Conv3d": (lambda: _Convolution(3), _inputs((2, 3, 4, 4, 4))),
    "LayerNorm": (lambda: _Stack(lambda: nn.Sequential(nn.LayerNorm(_D), nn.Linear(_D, _D))), _inputs(_ROWS)),
    "RMSNorm": (lambda: _Stack(lambda: nn.Sequential(nn.RMSNorm(_D), nn.Linear(_D, _D))), _inputs(_ROWS)),
    "weight_norm": (
        lambda: _Stack(lambda: parametrizations.weight_norm(nn.Linear(_D, _D))),
        _inputs(_ROWS),
    ),
    "spectral_norm": (
        lambda: _Stack(lambda: parametrizations.spectral_norm(nn.Linear(_D, _D))),
        _inputs(_ROWS),
    ),
    "orthogonal": (lambda: _Stack(lambda: parametrizations.orthogonal(nn.Linear(_D, _D))), _inputs(_ROWS)),
}


def names() -> list[str]:
    """Every specimen of this library."""
    return list(_MODELS)


def version() -> str:
    """The library's version."""
    return torch.__version__


def specimen(name: str) -> Specimen:
    """The specimen called `name`."""
    build, inputs = _MODELS[name]
    return Specimen("torch", name, build, inputs)
