"""Streamed equals plain, bit for bit, for every case, window, policy and budget; and streaming really happened."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from streaming.models import CASES, Case
from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory, Unstreamable
from superpipe_cluster.streaming import Streamer, VirtualDevice, stream

STEPS = 5


@dataclass
class Trace:
    outputs: list[torch.Tensor]
    losses: list[torch.Tensor]
    gradients: list[dict[str, torch.Tensor | None]]


def _pair(case: Case) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(11)
    plain = case.build()
    return plain, copy.deepcopy(plain)


def _train(model: nn.Module, case: Case, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> Trace:
    torch.manual_seed(5)  # dropout
    trace = Trace([], [], [])
    for step in range(steps):
        output, loss = case.loss(model, step)
        loss.backward()
        trace.outputs.append(output.detach().clone())
        trace.losses.append(loss.detach().clone())
        trace.gradients.append(
            {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
        )
        optimizer.step()
        optimizer.zero_grad()
    return trace


def _assert_same(plain: Trace, streamed: Trace) -> None:
    for step in range(len(plain.losses)):
        assert torch.equal(plain.outputs[step], streamed.outputs[step]), f"outputs of step {step}"
        assert torch.equal(plain.losses[step], streamed.losses[step]), f"loss of step {step}"
        for name, gradient in plain.gradients[step].items():
            other = streamed.gradients[step][name]
            assert (gradient is None) == (other is None), f"{name}.grad of step {step}"
            assert gradient is None or torch.equal(gradient, other), f"{name}.grad of step {step}"


def _assert_same_weights(plain: nn.Module, streamed: nn.Module) -> None:
    for (name, one), (_, other) in zip(
        plain.state_dict().items(), streamed.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


def _assert_streamed(streamer: Streamer, k: int) -> None:
    stats = streamer.stats()
    assert stats.peak_units <= k
    if k < stats.units:
        assert stats.loads > stats.units, "nothing was ever evicted: the test would prove nothing"


@pytest.mark.parametrize("k", [2, None], ids=["k2", "kn"])
@pytest.mark.parametrize("name", CASES)
def test_training_is_bit_identical(name: str, k: int | None) -> None:
    case = CASES[name]
    plain, streamed = _pair(case)
    expected = _train(plain, case, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    with stream(streamed, k=k or 1000, poison=True) as streamer:
        optimizer = streamer.optimizer(torch.optim.AdamW, lr=1e-2)
        actual = _train(streamed, case, optimizer)
        _assert_streamed(streamer, k or streamer.stats().units)
        _assert_same(expected, actual)
        _assert_same_weights(plain, streamed)
    _assert_same_weights(plain, streamed)


@pytest.mark.parametrize("k", [2, None], ids=["k2", "kn"])
@pytest.mark.parametrize("name", CASES)
def test_inference_is_bit_identical(name: str, k: int | None) -> None:
    case = CASES[name]
    plain, streamed = _pair(case)
    plain.eval()
    streamed.eval()
    with torch.no_grad(), stream(streamed, k=k or 1000, poison=True) as streamer:
        for seed in range(4):
            expected, actual = case.loss(plain, seed), case.loss(streamed, seed)
            assert torch.equal(expected[0], actual[0])
            assert torch.equal(expected[1], actual[1])
        _assert_streamed(streamer, k or streamer.stats().units)
        assert streamer.stats().d2h_bytes == 0, "clean units must never be copied back"


@pytest.mark.parametrize("policy", ["sliding", "naive", "whole"])
def test_the_baselines_compute_the_same(policy: str) -> None:
    case = CASES["llama"]
    plain, streamed = _pair(case)
    expected = _train(plain, case, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    k = None if policy == "whole" else 4
    with stream(streamed, k=k, policy=policy, poison=True) as streamer:
        actual = _train(streamed, case, streamer.optimizer(torch.optim.AdamW, lr=1e-2))
        if k is not None:
            _assert_streamed(streamer, k)
        else:
            assert streamer.stats().loads == streamer.stats().units
    _assert_same(expected, actual)
    _assert_same_weights(plain, streamed)


@pytest.mark.parametrize("share", [0.45, 0.7, 1.0])
@pytest.mark.parametrize("name", ["llama", "gpt2-tied", "unet"])
def test_a_budget_in_bytes_is_kept(name: str, share: float) -> None:
    case = CASES[name]
    plain, streamed = _pair(case)
    expected = _train(plain, case, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    recorded = sum(o.nbytes for o in expected.outputs) + sum(
        g.nbytes for step in expected.gradients for g in step.values() if g is not None
    )
    # weights, gradients and two moments would be four times the weights; the trace itself lies on the device too
    weights = sum(p.nbytes for p in plain.parameters())
    budget = int(share * 4 * weights) + recorded + 200_000
    with stream(streamed, budget=budget, poison=True) as streamer:
        actual = _train(streamed, case, streamer.optimizer(torch.optim.AdamW, lr=1e-2))
        stats = streamer.stats()
        assert 0 < stats.peak_bytes <= budget
        assert stats.peak_units <= stats.k
        assert stats.loads > 0
    _assert_same(expected, actual)
    _assert_same_weights(plain, streamed)


def test_generate_with_a_cache_gives_the_same_tokens() -> None:
    plain, streamed = _pair(CASES["llama"])
    prompt = torch.tensor([[3, 5, 7, 9]])
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = plain.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    with stream(streamed, k=3, poison=True) as streamer:
        actual = streamed.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        _assert_streamed(streamer, 3)
    assert torch.equal(expected, actual)


@pytest.mark.parametrize("foreach", [False, True])
def test_accumulation_clipping_and_a_schedule_are_plain_pytorch(foreach: bool) -> None:
    case = CASES["llama"]
    plain, streamed = _pair(case)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
        norms = []
        for step in range(4):
            for micro in range(3):
                (case.loss(model, 10 * step + micro)[1] / 3).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05, foreach=foreach).clone())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return norms

    expected = train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    with stream(streamed, k=3, poison=True) as streamer:
        actual = train(streamed, streamer.optimizer(torch.optim.AdamW, lr=1e-2))
    assert all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True))
    _assert_same_weights(plain, streamed)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (torch.optim.Adagrad, {"lr": 0.1}),
        (torch.optim.RMSprop, {"lr": 0.01, "centered": True}),
        (torch.optim.Adafactor, {"lr": 0.01}),
        (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True, "foreach": True}),
    ],
)
def test_any_element_wise_optimizer(kind: type[torch.optim.Optimizer], options: dict[str, object]) -> None:
    case = CASES["unused-and-frozen"]
    plain, streamed = _pair(case)
    trainable = [p for p in plain.parameters() if p.requires_grad]
    expected = _train(plain, case, kind(trainable, **options))
    with stream(streamed, k=2, poison=True) as streamer:
        actual = _train(streamed, case, streamer.optimizer(kind, **options))
    _assert_same(expected, actual)
    _assert_same_weights(plain, streamed)


def test_training_resumes_from_state_dicts_with_the_same_bits() -> None:
    case = CASES["llama"]
    plain, streamed = _pair(case)
    _train(plain, case, torch.optim.AdamW(plain.parameters(), lr=1e-2), steps=6)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, which: range) -> None:
        for step in which:
            case.loss(model, step)[1].backward()
            optimizer.step()
            optimizer.zero_grad()

    fresh = copy.deepcopy(streamed)
    with stream(streamed, k=2, poison=True) as streamer:
        optimizer = streamer.optimizer(torch.optim.AdamW, lr=1e-2)
        steps(streamed, optimizer, range(3))
        weights = {name: value.clone() for name, value in streamed.state_dict().items()}
        state = copy.deepcopy(optimizer.state_dict())
        steps(streamed, optimizer, range(3, 4))  # what was saved must not change any more
    fresh.load_state_dict(weights)
    with stream(fresh, k=3, poison=True) as streamer:
        optimizer = streamer.optimizer(torch.optim.AdamW, lr=9.0)
        optimizer.load_state_dict(state)
        steps(fresh, optimizer, range(3, 6))
    _assert_same_weights(plain, fresh)


def test_weights_loaded_into_a_streamed_model_stay() -> None:
    plain, streamed = _pair(CASES["llama"])
    torch.manual_seed(99)
    other = CASES["llama"].build()
    with stream(streamed, k=2, poison=True):
        streamed.load_state_dict(other.state_dict())
        expected = CASES["llama"].loss(other, 0)[0]
        assert torch.equal(CASES["llama"].loss(streamed, 0)[0], expected)
    _assert_same_weights(other, streamed)
    assert plain is not other


def test_gradients_survive_close() -> None:
    case = CASES["llama"]
    plain, streamed = _pair(case)
    case.loss(plain, 0)[1].backward()
    with stream(streamed, k=2, poison=True):
        case.loss(streamed, 0)[1].backward()
    for (name, one), other in zip(plain.named_parameters(), streamed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_two_models_stream_side_by_side() -> None:
    case = CASES["llama"]
    plain, first = _pair(case)
    second = copy.deepcopy(first)
    expected = case.loss(plain, 0)[0]
    one, two = stream(first, k=2, poison=True), stream(second, k=3, poison=True)
    assert torch.equal(case.loss(first, 0)[0], expected)
    assert torch.equal(case.loss(second, 0)[0], expected)
    one.close()
    assert torch.equal(case.loss(second, 0)[0], expected)
    two.close()
    assert torch.equal(case.loss(first, 0)[0], expected)


def test_another_thread_may_run_the_forward() -> None:
    from concurrent.futures import ThreadPoolExecutor

    case = CASES["llama"]
    plain, streamed = _pair(case)
    with stream(streamed, k=2, poison=True), ThreadPoolExecutor(1) as pool, torch.no_grad():
        actual = pool.submit(lambda: case.loss(streamed, 1)[0].detach().clone()).result()
    assert torch.equal(case.loss(plain, 1)[0], actual)


def test_inference_mode_may_begin_and_end_anywhere() -> None:
    case = CASES["llama"]
    plain, streamed = _pair(case)
    expected = case.loss(plain, 0)[0]
    with torch.inference_mode():
        streamer = stream(streamed, k=2, poison=True)
        assert torch.equal(case.loss(streamed, 0)[0], expected)
    assert torch.equal(case.loss(streamed, 0)[0], expected)
    with torch.inference_mode():
        assert torch.equal(case.loss(streamed, 0)[0], expected)
    case.loss(streamed, 0)[1].backward()
    streamer.close()
    assert streamed.lm_head.weight.grad is not None


def test_mixed_precision_with_a_scaler_is_plain_pytorch() -> None:
    case = CASES["llama"]
    plain, streamed = _pair(case)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                loss = case.loss(model, step)[1]
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    with stream(streamed, k=2, poison=True) as streamer:
        train(streamed, streamer.optimizer(torch.optim.AdamW, lr=1e-2))
    _assert_same_weights(plain, streamed)


def test_a_budget_below_the_largest_unit_names_the_bytes() -> None:
    _, streamed = _pair(CASES["llama"])
    with pytest.raises(BudgetTooSmall) as caught:
        stream(streamed, budget=10_000)
    assert caught.value.needed_bytes > 10_000
    assert str(caught.value.needed_bytes) in caught.value.message
    _, again = _pair(CASES["llama"])
    _assert_same_weights(again, streamed)  # nothing was taken over


def test_activations_beyond_the_budget_are_an_error_and_the_model_survives() -> None:
    case = CASES["llama"]
    plain, streamed = _pair(case)
    streamer = stream(streamed, budget=150_000, device=VirtualDevice(150_000))
    tokens = torch.zeros(64, 32, dtype=torch.long)
    with streamer, pytest.raises((DeviceOutOfMemory, BudgetTooSmall)):
        streamed(input_ids=tokens, use_cache=False)
    assert torch.equal(case.loss(streamed, 0)[0], case.loss(plain, 0)[0])


def test_what_cannot_be_exact_is_refused() -> None:
    _, streamed = _pair(CASES["called-twice"])
    with stream(streamed, k=2) as streamer:
        with pytest.raises(Unstreamable, match="LBFGS"):
            streamer.optimizer(torch.optim.LBFGS)
        loss = CASES["called-twice"].loss(streamed, 0)[1]
        with pytest.raises(Unstreamable, match="create_graph"):
            loss.backward(create_graph=True)
        with pytest.raises(Unstreamable, match="already"):
            stream(streamed, k=2)
    with pytest.raises(Unstreamable, match="no data"), torch.device("meta"):
        stream(nn.Linear(2, 2), k=1)
