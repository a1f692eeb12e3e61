"""Other threads, other models, forked children and the collector, at the worst moments."""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from streaming.twins import Blocks, assert_equal, batch, mean_square, train
from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming import StreamStats, stream
from superpipe_cluster.streaming.activations import offload

AdamW = torch.optim.AdamW
SETTINGS: list[dict[str, Any]] = [
    {"k": 2},
    {"k": 3, "activations": "offload"},
    {"k": 2, "host": "disk"},
    {"k": 2, "where": "on_host"},
    {"k": 2, "host": "shared", "where": "on_host", "activations": "recompute"},
    {},
]


@pytest.fixture(autouse=True)
def everything_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models for tests are small; offload whatever they save."""
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)


def _beside(work: Callable[[], Any], *others: Callable[[], Any]) -> None:
    """`others` again and again in threads of their own, at least once each, while `work` goes on."""
    done, failures = threading.Event(), []
    began = [threading.Event() for _ in others]

    def repeat(other: Callable[[], Any], once: threading.Event) -> None:
        try:
            while not done.is_set():
                other()
                once.set()
        except BaseException as error:
            failures.append(error)
        finally:
            once.set()

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(others, began, strict=True)]
    for thread in threads:
        thread.start()
    try:
        for once in began:
            assert once.wait(60)
        work()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_statistics_and_sizes_from_other_threads_while_it_trains(settings: dict[str, Any]) -> None:
    options = dict(settings)
    where = options.pop("where", "on_device")
    plain = Blocks()
    model = copy.deepcopy(plain)
    expected = train(plain, AdamW(plain.parameters(), lr=0.01), 12)
    seen: list[StreamStats] = []
    limits = [{"k": 2}, {}, {"k": 4}, {"budget": 1 << 20}]
    with stream(model, poison=True, **options) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.01, where=where)
        actual: list[torch.Tensor] = []

        def resize() -> None:
            limits.append(limits.pop(0))
            streamer.resize(**limits[-1])
            time.sleep(0.001)  # a breath for the others

        def look() -> None:
            seen.append(streamer.stats())
            time.sleep(0.001)

        _beside(lambda: actual.extend(train(model, optimizer, 12)), look, resize)
        assert streamer.stats().loads > 0
    assert all(stats.host_bytes + stats.disk_bytes > 0 for stats in seen)
    assert_equal([expected, list(plain.parameters())], [actual, list(model.parameters())])


def test_models_of_several_homes_train_in_turns_and_side_by_side() -> None:
    hosts = ["pinned", "shared", "disk"]
    plain = [Blocks() for _ in hosts]
    models = [copy.deepcopy(one) for one in plain]
    expected = [train(one, AdamW(one.parameters(), lr=0.01), 8) for one in plain]
    actual: list[list[torch.Tensor]] = [[] for _ in hosts]
    streamers = [stream(one, k=2, poison=True, host=host) for one, host in zip(models, hosts, strict=True)]  # type: ignore[arg-type]
    optimizers = [
        one.optimizer(AdamW, lr=0.01, where=where)
        for one, where in zip(streamers, ["on_device", "on_host", "on_host"], strict=True)
    ]  # type: ignore[arg-type]

    def work(number: int, first: int) -> None:
        losses = train(
            models[number], optimizers[number], 4, lambda model, step: mean_square(model, first + step)
        )
        actual[number].extend(losses)

    for number in range(3):
        work(number, 0)
    threads = [threading.Thread(target=work, args=(number, 4)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for streamer in streamers:
        assert streamer.stats().peak_units <= 2
        streamer.close()
    assert_equal(
        [expected, [list(one.parameters()) for one in plain]],
        [actual, [list(one.parameters()) for one in models]],
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_two_threads_take_turns_with_one_model(settings: dict[str, Any]) -> None:
    options = dict(settings)
    where = options.pop("where", "on_device")
    plain = Blocks()
    model = copy.deepcopy(plain)
    expected = train(plain, AdamW(plain.parameters(), lr=0.01), 24)
    actual: list[torch.Tensor] = []
    with stream(model, poison=True, **options) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.01, where=where)

        def turn(count: int) -> None:
            first = len(actual)
            actual.extend(train(model, optimizer, count, lambda one, step: mean_square(one, first + step)))

        for count in (1, 1, 6, 1, 6, 1):  # in six steps the guard comes to rest where it can
            thread = threading.Thread(target=turn, args=(count,))
            thread.start()
            thread.join()
            if count == 6:
                turn(1)
        assert streamer.stats().loads > 0
        turn(24 - len(actual))
    assert_equal([expected, list(plain.parameters())], [actual, list(model.parameters())])


# ---- forked children -----------------------------------------------------------------------------------------


class _Numbers(torch.utils.data.Dataset):
    """Each item takes more memory for a moment than the parent's device has left."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(1 << 16).mul_(0).narrow(0, 0, 16).clone() + batch(index, 1)[0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_workers_of_a_loader_are_not_guarded(settings: dict[str, Any]) -> None:
    options = dict(settings)
    where = options.pop("where", "on_device")
    plain = Blocks()
    model = copy.deepcopy(plain)
    limit = {"budget": 150_000} if options else {}
    loader = torch.utils.data.DataLoader(
        _Numbers(), 3, num_workers=2, multiprocessing_context="fork", timeout=60
    )

    def epochs(one: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        losses = []
        for _ in range(2):
            for numbers in loader:
                loss = one(numbers).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach().clone())
        return losses

    with pytest.warns(match="fork") if _warns_of_forks() else nullcontext():
        expected = epochs(plain, AdamW(plain.parameters(), lr=0.01))
        with stream(model, poison=True, **options, **limit) as streamer:
            optimizer = streamer.optimizer(AdamW, lr=0.01, where=where)
            actual = epochs(model, optimizer)
            assert streamer.stats().loads > 0
    assert_equal([expected, list(plain.parameters())], [actual, list(model.parameters())])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_child_is_refused_what_the_parent_streams(settings: dict[str, Any]) -> None:
    options = dict(settings)
    where = options.pop("where", "on_device")
    model = Blocks()
    with stream(model, poison=True, **options) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.01, where=where)
        train(model, optimizer, 6)
        loss = mean_square(model, 6)

        def refused(use: Callable[[], Any]) -> bool:
            try:
                use()
            except Unstreamable as error:
                return "forked" in str(error) or "closed" in str(error)
            return False

        def child() -> bool:
            torch.set_num_threads(1)  # torch's own threads did not come along, as in a worker of a loader
            uses: list[Callable[[], Any]] = [
                lambda: model(batch()),
                lambda: model.state_dict(),
                lambda: model.layers[2][0].weight.data_ptr(),
                lambda: streamer.resize(k=2),
            ]
            well = all(refused(use) for use in uses)
            streamer.close()
            other = Blocks()
            expected = other(batch()).detach()
            with stream(other, k=2, poison=True) as own:
                return well and torch.equal(expected, other(batch())) and own.stats().loads > 0

        assert _in_child(child)
        loss.backward()
        optimizer.step()


def _warns_of_forks() -> bool:
    """Python says since 3.12 that a process with threads had better not fork; loaders do it all the same."""
    return sys.version_info >= (3, 12)


def _in_child(work: Callable[[], bool]) -> bool:
    with pytest.warns(match="fork") if _warns_of_forks() else nullcontext():
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(2)
    for _ in range(6000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False
