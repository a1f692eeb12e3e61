"""The life of a streamer: threads, closing in the middle of things, being dropped, failing at the start."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch

from streaming.twins import Blocks, assert_equal, assert_same_run, batch, mean_square, train
from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming import stream
from superpipe_cluster.streaming.devices.virtual_device import CpuDevice
from superpipe_cluster.streaming.watching.guard import GUARD

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


# ---- threads -------------------------------------------------------------------------------------------


def _in_thread(work) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_a_whole_training_loop_in_another_thread() -> None:
    def program(model, make_optimizer):
        losses = []
        optimizer = make_optimizer(AdamW, lr=0.1)
        _in_thread(lambda: losses.extend(train(model, optimizer, 4)))
        _in_thread(lambda: losses.append(model.layers[0](batch()).detach()))
        return losses

    assert_same_run(program)


def test_threads_side_by_side() -> None:
    model = Blocks(32)
    expected = [model(batch(seed, 8, 32)).detach() for seed in range(4)]
    different: list[int] = []

    def ask(first: int) -> None:
        for seed in range(first, first + 40):
            with torch.inference_mode():
                answer = model(batch(seed % 4, 8, 32))
            if not torch.equal(answer, expected[seed % 4]):
                different.append(seed)

    with stream(model, k=2, poison=True):
        threads = [threading.Thread(target=ask, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not different


# ---- the life of a streamer ----------------------------------------------------------------------------


def test_training_goes_on_after_close_and_streams_again() -> None:
    model = Blocks()
    plain = copy.deepcopy(model)
    expected = train(plain, AdamW(plain.parameters(), lr=0.1), 6)
    with stream(model, k=2, poison=True) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.1)
        actual = train(model, optimizer, 2, lambda m, step: mean_square(m, step))
    streamer.close()
    plain_optimizer = AdamW(model.parameters(), lr=0.1)
    plain_optimizer.load_state_dict(optimizer.state_dict())
    optimizer = plain_optimizer
    actual += train(model, optimizer, 2, lambda m, step: mean_square(m, step + 2))
    with stream(model, k=2, poison=True) as again:
        actual += train(model, optimizer, 2, lambda m, step: mean_square(m, step + 4))
        assert again.stats().loads > again.stats().units
    assert_equal(expected, actual)
    assert streamer.stats().units == 8
    with pytest.raises(Unstreamable, match="closed"):
        streamer.optimizer(SGD, lr=0.1)


def test_what_the_program_holds_stays_good_after_close() -> None:
    model = Blocks()
    plain = copy.deepcopy(model)
    mean_square(plain, 0).backward()
    expected = [
        [p.grad.clone() for p in plain.parameters()],
        [p.detach().clone() for p in plain.parameters()],
    ]
    mean_square(plain, 1).backward()
    with stream(model, k=2, poison=True):
        mean_square(model, 0).backward()
        held = [[p.grad for p in model.parameters()], [p.detach() for p in model.parameters()]]
        loss = mean_square(model, 1)
    assert_equal(expected, held)
    loss.backward()
    assert_equal([p.grad for p in plain.parameters()], [p.grad for p in model.parameters()])


def test_a_model_that_is_dropped_takes_its_streamer_along() -> None:
    model = Blocks()
    stream(model, k=2)
    mean_square(model, 0).backward()
    weight, kept = weakref.ref(model.layers[0][0].weight), model.outside.weight
    value, threads = kept.detach().clone(), threading.active_count()
    del model
    gc.collect()
    assert weight() is None
    assert threading.active_count() == threads - 2
    assert not GUARD.guards_anything
    assert torch.equal(kept, value)
    GUARD.leave_if_idle()


def test_a_takeover_that_fails_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Blocks()
    expected, made, make = model(batch()).detach(), [], CpuDevice.host_buffer

    def fails_at_last(device: CpuDevice, nbytes: int) -> torch.Tensor:
        made.append(nbytes)
        if len(made) == 4:
            raise MemoryError
        return make(device, nbytes)

    monkeypatch.setattr(CpuDevice, "host_buffer", fails_at_last)
    with pytest.raises(MemoryError):
        stream(model, k=2, poison=True)
    assert torch.equal(model(batch()), expected)
    with stream(model, k=2, poison=True):
        assert torch.equal(model(batch()), expected)


def test_a_part_of_a_streamed_model_is_not_streamed_twice() -> None:
    model = Blocks()
    with stream(model.layers, k=2):
        model(batch())
        with pytest.raises(Unstreamable, match="already"):
            stream(model, k=2)
    with stream(model, k=2), pytest.raises(Unstreamable, match="already"):
        stream(model.layers, k=2)


def test_the_ledger_is_exact() -> None:
    one, other = Blocks(), Blocks()
    first = stream(one, k=2)
    before = first.stats()
    with stream(other, k=2, budget=200_000) as second:
        assert first.stats().held_bytes == before.held_bytes, "a neighbour's host copies are no device bytes"
        train(other, second.optimizer(AdamW, lr=0.1))
        stats = second.stats()
    slabs = sum(-(-p.nbytes // 256) * 256 for p in other.parameters())
    assert before.host_bytes == slabs
    assert stats.host_bytes == 4 * slabs, "weights, gradients and two moments"
    assert stats.peak_bytes <= 200_000
    assert stats.model_bytes == sum(p.nbytes for p in other.parameters())
    assert stats.link_bytes == stats.h2d_bytes + stats.d2h_bytes
    first.close()
