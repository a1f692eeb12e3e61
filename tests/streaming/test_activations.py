"""Activations kept, recomputed or offloaded: the same bits, fewer device bytes, nothing left behind."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from streaming.models import CASES
from streaming.twins import Blocks, assert_equal, assert_same_run, batch, mean_square, train
from superpipe_cluster.errors import BadInput, DeviceOutOfMemory, Unstreamable
from superpipe_cluster.streaming import StreamStats, stream
from superpipe_cluster.streaming.activations import offload

AdamW = torch.optim.AdamW
LESS = ["recompute", "offload"]
MIB = 1 << 20


@pytest.fixture
def everything_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models for tests are small; offload whatever they save."""
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)


def _wide_loss(model: nn.Module, seed: int) -> torch.Tensor:
    return model(batch(seed, 2048, 128)).square().mean()


def _wide(activations: str, **options: Any) -> StreamStats:
    """Three training steps of a model whose activations are far larger than it is."""
    return assert_same_run(
        lambda model, make_optimizer: train(model, make_optimizer(AdamW, lr=0.01), 3, _wide_loss),
        lambda: Blocks(128),
        activations=activations,
        **options,
    )


def test_fewer_bytes_at_the_same_k() -> None:
    kept, recomputed, offloaded = (_wide(activations) for activations in ("keep", "recompute", "offload"))
    for stats in (recomputed, offloaded):
        assert stats.loads == kept.loads
        assert stats.peak_bytes < 0.75 * kept.peak_bytes
    assert recomputed.link_bytes == kept.link_bytes, "what is computed again does not move"
    assert offloaded.h2d_bytes > kept.h2d_bytes + 5 * MIB
    assert offloaded.d2h_bytes > kept.d2h_bytes + 5 * MIB
    assert kept.host_bytes == recomputed.host_bytes < offloaded.host_bytes


def test_a_budget_that_keeps_only_what_is_needed_next() -> None:
    budget = 16 * MIB
    with pytest.raises(DeviceOutOfMemory):
        _wide("keep", k=None, budget=budget)
    for activations in LESS:
        model = Blocks(128)
        plain = copy.deepcopy(model)
        expected = train(plain, AdamW(plain.parameters(), lr=0.01), 3, _wide_loss)
        with stream(model, budget, poison=True, activations=activations) as streamer:  # type: ignore[arg-type]
            assert_equal(expected, train(model, streamer.optimizer(AdamW, lr=0.01), 3, _wide_loss))
            stats = streamer.stats()
            assert 0 < stats.peak_bytes <= budget
            assert stats.loads > 0
        assert_equal(plain.state_dict(), model.state_dict())


@pytest.mark.parametrize("activations", LESS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("everything_offloaded")
def test_every_kind_of_model(name: str, activations: str) -> None:
    case = CASES[name]

    def program(model, make_optimizer):
        return train(model, make_optimizer(AdamW, lr=0.01), 3, lambda one, step: case.loss(one, step)[1])

    stats = assert_same_run(program, case.build, k=2, activations=activations)
    assert stats.loads > stats.units


@pytest.mark.parametrize("activations", LESS)
@pytest.mark.usefixtures("everything_offloaded")
def test_a_decoder_that_fills_its_cache_while_it_trains(activations: str) -> None:
    def loss_of(model: nn.Module, step: int) -> torch.Tensor:
        tokens = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(step))
        out = model(input_ids=tokens, labels=tokens, use_cache=True)
        assert out.past_key_values.get_seq_length() == 12
        return out.loss

    def program(model, make_optimizer):
        return train(model, make_optimizer(AdamW, lr=0.01), 3, loss_of)

    stats = assert_same_run(program, CASES["llama"].build, activations=activations)
    assert stats.loads > stats.units


# ---- blocks that are not functions of their inputs ---------------------------------------------------------


class Layer(nn.Module):
    """One block of `Stack`; subclasses do what blocks should not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class CountsAndAverages(Layer):
    """Buffers that the forward reads and changes, with and without an operator that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.mean = self.mean * 0.9 + x.detach().mean(0) * 0.1
        return super().forward(self.norm(x) - self.mean) * (1 + self.calls)


class WritesItsInput(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(0.5))


class DrawsAndCasts(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.dropout(x, 0.3) * torch.rand(())
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class Tuples(Layer):
    """Takes keywords, returns things that are no tensors."""

    def forward(self, x: torch.Tensor, *, scale: float, extra: dict[str, torch.Tensor]) -> tuple[Any, ...]:
        return super().forward(x) * scale + extra["shift"], {"name": "layer", "scale": scale}, None


class Stack(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inside = nn.Linear(16, 16)
        self.layers = nn.ModuleList([layer() for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for layer in self.layers:
            x = self.call(layer, x)
        return x

    def call(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + layer(x.clone())


class StackOfTuples(Stack):
    def call(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out, info, nothing = layer(x, scale=0.5, extra={"shift": x * 0.1})
        assert nothing is None
        return out * info["scale"]


class Memory:
    """A cache of the kind that decoders pass from block to block: each call appends."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.total: dict[str, torch.Tensor] = {}

    def update(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        self.total["sum"] = self.total["sum"] + x if self.total else x
        return self.total["sum"] * len(self.seen)


class Remembers(Layer):
    def forward(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        return super().forward(memory.update(x))


class StackWithMemory(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = Memory()
        x = self.inside(x)
        for layer in self.layers:
            x = x + layer(x, memory)
        assert len(memory.seen) == len(self.layers)
        return x


class CheckpointsItself(Stack):
    reentrant = False

    def call(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + checkpoint(layer, x, use_reentrant=self.reentrant)


class CheckpointsReentrantly(CheckpointsItself):
    reentrant = True


@pytest.mark.parametrize("activations", ["keep", *LESS])
@pytest.mark.parametrize(
    ("stack", "layer"),
    [
        (Stack, CountsAndAverages),
        (Stack, WritesItsInput),
        (Stack, DrawsAndCasts),
        (StackOfTuples, Tuples),
        (StackWithMemory, Remembers),
        (CheckpointsItself, DrawsAndCasts),
        (CheckpointsReentrantly, DrawsAndCasts),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.usefixtures("everything_offloaded")
def test_blocks_of_every_kind(stack: type[Stack], layer: type[nn.Module], activations: str) -> None:
    def program(model, make_optimizer):
        losses = train(model, make_optimizer(AdamW, lr=0.01), 3)
        with torch.no_grad():
            losses.append(mean_square(model, 5))
        loss = mean_square(model, 6)
        loss.backward(retain_graph=True)
        loss.backward()
        return losses

    stats = assert_same_run(program, lambda: stack(layer), activations=activations)
    assert stats.loads > stats.units


@pytest.mark.usefixtures("everything_offloaded")
@pytest.mark.parametrize("activations", LESS)
def test_accumulation_clipping_and_two_graphs_at_once(activations: str) -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.01)
        norms = []
        for step in range(3):
            one, other = mean_square(model, step), mean_square(model, step + 10)
            one.backward()
            other.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))
            optimizer.step()
            optimizer.zero_grad()
        return norms

    assert_same_run(program, activations=activations)


def test_blocks_are_run_again_only_where_gradients_are_recorded() -> None:
    calls: list[bool] = []

    class Counted(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(torch.is_grad_enabled())
            return super().forward(x)

    torch.manual_seed(0)
    model = Stack(Counted)
    with stream(model, k=2, poison=True, activations="recompute"):
        with torch.no_grad():
            model(batch())
        assert len(calls) == 4
        with torch.inference_mode():
            model(batch())
        assert len(calls) == 8
        mean_square(model, 0).backward()
    assert len(calls) == 16


def test_an_input_changed_before_its_block_runs_again_is_refused() -> None:
    class Changes(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone().requires_grad_() * 1
            out = self.layers[0](x)
            x.mul_(2)
            return out + x

    model = Changes(lambda: nn.Sequential(nn.Sigmoid(), nn.Linear(16, 16)))
    with stream(model, k=2, poison=True, activations="recompute"):
        loss = mean_square(model, 0)
        with pytest.raises(Unstreamable, match=r"layers\.0"):
            loss.backward()


# ---- offloading --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("everything_offloaded")
@pytest.mark.parametrize("output", [False, True], ids=["input", "output"])
def test_changes_after_saving_are_noticed_as_ever(output: bool) -> None:
    class Changes(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inside(x)
            y = torch.tanh(x) if output else torch.sin(x)
            (y if output else x).add_(1)
            return y + x

    def attempt(model: nn.Module) -> str:
        with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
            mean_square(model, 0).backward()
        return str(caught.value)

    plain = Changes()
    attempt(plain)
    with stream(copy.deepcopy(plain), k=2, poison=True, activations="offload") as streamer:
        assert "expected version 0" in attempt(streamer.model)


def test_each_storage_crosses_the_link_once_in_each_direction() -> None:
    class Shares(nn.Module):
        """One large tensor that six nodes save views of."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1024, 1024) * 0.01)
            self.tail = nn.Parameter(torch.randn(512, 1024))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x @ self.weight
            first, second = h.chunk(2)
            made = first * second + (first.sin() * second.cos()).square() + h.t()[:, :512].t()
            del h, first, second
            return made @ self.weight @ self.tail.t()

    torch.manual_seed(0)
    model = Shares()
    x = torch.randn(1024, 1024)
    with stream(model, k=2, poison=True, activations="offload") as streamer:
        before = streamer.stats()
        loss = model(x).square().mean()
        loss.backward()
        after = streamer.stats()
    moved = after.d2h_bytes - before.d2h_bytes - 2 * after.model_bytes
    assert moved <= (4 + 4 + 8 * 2) * MIB, "x, h and what is made of halves of it, each once"


def test_what_is_in_host_memory_goes_with_the_graph() -> None:
    model = Blocks(128)
    with stream(model, k=2, poison=True, activations="offload") as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.01)
        train(model, optimizer, 2, _wide_loss)
        first = streamer.stats()
        for _ in range(3):
            _wide_loss(model, 0)  # a graph that is dropped
        train(model, optimizer, 4, _wide_loss)
        gc.collect()
        last = streamer.stats()
        assert last.host_bytes == first.host_bytes, "buffers are used again"
        # (What is fetched ahead at a moment depends on the link's speed; a graph that stayed would be half of all.)
        assert last.peak_bytes < 1.2 * first.peak_bytes


@pytest.mark.usefixtures("everything_offloaded")
@pytest.mark.parametrize("activations", LESS)
def test_a_graph_outlives_its_streamer(activations: str) -> None:
    plain = Blocks()
    model = copy.deepcopy(plain)
    mean_square(plain, 0).backward()
    with stream(model, k=2, poison=True, activations=activations):  # type: ignore[arg-type]
        loss = mean_square(model, 0)
    loss.backward()
    assert_equal([p.grad for p in plain.parameters()], [p.grad for p in model.parameters()])


def test_other_words_are_refused() -> None:
    with pytest.raises(BadInput, match="activations") as caught:
        stream(Blocks(), k=2, activations="drop")  # type: ignore[arg-type]
    assert "recompute" in str(caught.value.hint)
