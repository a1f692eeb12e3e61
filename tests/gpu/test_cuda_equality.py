"""On a CUDA device: streamed equals plain on the same device, bit for bit, within the budget. Needs torch alone, and
transformers for the cases that are its models: `python -m pytest tests/gpu`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from streaming.models import CASES, Case
from superpipe_cluster.streaming import stream


def _on_device(case: Case, model: nn.Module, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.device("cpu"):
        inputs = _Move(model)
    return case.loss(inputs, seed)


class _Move(nn.Module):
    """Sends the batch that a case makes on the CPU to the device."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = [model]  # in a list: not a submodule

    def forward(self, *args, **kwargs):
        return self.inner[0](
            *(a.cuda() for a in args), **{k: v.cuda() if torch.is_tensor(v) else v for k, v in kwargs.items()}
        )


def _train(model: nn.Module, case: Case, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    torch.manual_seed(5)
    torch.cuda.manual_seed_all(5)
    losses = []
    for step in range(5):
        _, loss = _on_device(case, model, step)
        loss.backward()
        losses.append(loss.detach().cpu())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("k", [2, 3, 1000], ids=["k2", "k3", "kn"])
@pytest.mark.parametrize("name", CASES)
def test_training_is_bit_identical(name: str, k: int) -> None:
    case = CASES[name]
    torch.manual_seed(11)
    plain = case.build()
    streamed = copy.deepcopy(plain)
    plain.cuda()
    expected = _train(plain, case, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    with stream(streamed, k=k, device="cuda:0") as streamer:
        actual = _train(streamed, case, streamer.optimizer(torch.optim.AdamW, lr=1e-2))
        stats = streamer.stats()
        assert stats.peak_units <= k
        assert k >= stats.units or stats.loads > stats.units
    assert all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True))
    for (key, one), other in zip(plain.state_dict().items(), streamed.state_dict().values(), strict=True):
        assert torch.equal(one.cpu(), other.cpu()), key


def test_a_budget_is_kept_and_the_copies_overlap() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4096, 4096), nn.GELU()) for _ in range(16)])  # 1 GiB
    plain = copy.deepcopy(model).cuda()
    x = torch.randn(4096, 4096, device="cuda")
    with torch.no_grad():
        expected = plain(x).cpu()
    del plain
    torch.cuda.empty_cache()
    budget = 2 << 30
    with torch.no_grad(), stream(model, budget=budget, k=4, device="cuda:0") as streamer:
        for _ in range(4):
            actual = model(x)
        assert torch.equal(actual.cpu(), expected)
        stats = streamer.stats()
        assert stats.peak_units <= 4
        assert torch.cuda.max_memory_reserved() <= budget
        assert stats.d2h_bytes == 0
