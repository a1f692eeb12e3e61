"""Whatever the home of the host copies: the same bits, exact bytes, and nothing written where others read."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from typing_extensions import override

from streaming.home_programs import bytes_of_copies, copies_of
from streaming.twins import Blocks, assert_equal, assert_same_run, batch, train
from superpipe_cluster.errors import BadInput, FileMissing
from superpipe_cluster.streaming import VirtualDevice, stream
from superpipe_cluster.streaming import slab as slabs
from superpipe_cluster.streaming.devices.virtual_device import CpuDevice
from superpipe_cluster.streaming.homes.disk_home import DiskHome
from superpipe_cluster.streaming.homes.homes import HomeName
from superpipe_cluster.streaming.opening import stream_over

HOMES = ["pinned", "shared", "disk"]


def partly_frozen() -> nn.Module:
    """Frozen units, a trainable one, and one with parameters of both kinds."""
    model = Blocks().requires_grad_(False)
    model.outside.requires_grad_(True)
    model.layers[3][2].weight.requires_grad_(True)
    return model


def trained(model: nn.Module, make_optimizer: Any) -> list[torch.Tensor]:
    return train(model, make_optimizer(AdamW, lr=0.1))


@pytest.mark.parametrize("build", [Blocks, partly_frozen])
@pytest.mark.parametrize("host", HOMES)
def test_every_home_gives_the_bits_of_a_plain_run(host: HomeName, build: Any) -> None:
    stats = assert_same_run(trained, build, host=host)
    assert stats.loads > stats.units


@pytest.mark.parametrize("host", HOMES)
def test_slabs_of_many_pieces(host: HomeName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "PIECE_BYTES", 768)
    stats = assert_same_run(trained, host=host)
    assert stats.loads > stats.units


@pytest.mark.parametrize("host", HOMES)
def test_frozen_weights_that_the_program_writes(host: HomeName) -> None:
    """By operators on the device and on the entries of a state dict, and by loading."""

    def program(model: nn.Module, _: Any) -> list[Any]:
        results = [model(batch())]
        with torch.no_grad():
            model.layers[1][0].weight.mul_(2)
            model.state_dict()["layers.2.0.weight"].add_(1)
        results.append(model(batch()))
        saved = {name: value.clone() for name, value in model.state_dict().items()}
        saved["inside.weight"].neg_()
        model.load_state_dict(saved)
        return [*results, model(batch()), saved]

    stats = assert_same_run(program, lambda: Blocks().requires_grad_(False), host=host)
    assert stats.loads > stats.units


@pytest.mark.parametrize("host", HOMES)
def test_a_closed_model_is_a_plain_one(host: HomeName) -> None:
    plain = partly_frozen()
    model = partly_frozen()
    model.load_state_dict(plain.state_dict())
    with stream(model, k=2, host=host) as streamer:
        train(model, streamer.optimizer(SGD, lr=0.1))
        assert streamer.stats().loads > streamer.stats().units
    train(plain, SGD(plain.parameters(), lr=0.1))
    model.requires_grad_(True)
    plain.requires_grad_(True)
    assert_equal(
        train(plain, AdamW(plain.parameters(), lr=0.1)), train(model, AdamW(model.parameters(), lr=0.1))
    )
    assert_equal(plain.state_dict(), model.state_dict())


def test_what_one_sharer_writes_reaches_no_other() -> None:
    one = Blocks().requires_grad_(False)
    other = Blocks().requires_grad_(False)
    other.load_state_dict(one.state_dict())
    expected = one(batch())
    before = copies_of(os.getpid())
    with stream(one, k=2, host="shared") as first, stream(other, k=2, host="shared") as second:
        slab_bytes = second.stats().host_bytes
        assert first.stats().shared_bytes == second.stats().shared_bytes == slab_bytes
        copies = {name: inode for name, inode in copies_of(os.getpid()).items() if name not in before}
        assert len(copies) == first.stats().units, "each once, though both use it"
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.fill_(7)
        one(batch())
        first.stats()
        assert_equal(other(batch()), expected)
        one.state_dict()  # all that is dirty has its place in host memory now
        assert first.stats().shared_bytes == 0
        assert first.stats().host_bytes == second.stats().shared_bytes == slab_bytes
    assert_equal(other(batch()), expected)
    assert all(bool((parameter == 7).all()) for parameter in one.parameters())
    assert copies_of(os.getpid()) == before


def test_equal_units_of_one_model_share_a_copy() -> None:
    model = Blocks().requires_grad_(False)
    for layer in model.layers:
        layer.load_state_dict(model.layers[0].state_dict())
    before = copies_of(os.getpid())
    with stream(model, k=2, host="shared"):
        assert len(copies_of(os.getpid())) - len(before) == 3


def test_the_base_of_a_model_with_adapters_is_shared() -> None:
    with stream(partly_frozen(), k=2, host="shared") as streamer:
        stats = streamer.stats()
        assert stats.units == 9, "the unit with both kinds is two"
        trainable = sum(-(-p.nbytes // 256) * 256 for p in streamer.model.parameters() if p.requires_grad)
        assert stats.shared_bytes == stats.host_bytes - trainable


def test_a_file_on_disk_has_no_name_and_ends_with_the_last_tensor(tmp_path: Path) -> None:
    model = Blocks()
    expected = model(batch()).detach()
    streamer = stream(model, k=2, host="disk", host_folder=tmp_path)
    stats = streamer.stats()
    assert stats.disk_bytes == sum(-(-p.nbytes // 256) * 256 for p in model.parameters())
    assert stats.host_bytes == 0, "no buffers yet"
    assert list(tmp_path.iterdir()) == []
    assert_equal(model(batch()), expected)
    streamer.close()
    assert_equal(model(batch()), expected)
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    del model, streamer
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_disk_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(home: DiskHome, content: memoryview, start: int) -> None:
        raise OSError("the disk is broken")

    model = Blocks()
    with stream(model, k=2, host="disk"):
        with monkeypatch.context() as broken:
            broken.setattr(DiskHome, "_read", fails)
            with pytest.raises(RuntimeError, match="host copy") as caught:
                model(batch())
        assert "broken" in str(caught.value.__cause__)


def test_homes_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="host cannot be 'tape'"):
        stream(Blocks(), host="tape")  # pyright: ignore[reportArgumentType]
    with pytest.raises(FileMissing, match="host_folder: no file can be made in"):
        stream(Blocks(), host="disk", host_folder=tmp_path / "nowhere")


# ---- a device that registers ----------------------------------------------------------------------


class Registering(CpuDevice):
    """Plays a GPU: knows what is registered, and how it is mapped at that moment."""

    registers = True

    def __init__(self, *, takes_read_only: bool = True) -> None:
        super().__init__(VirtualDevice(), None, poison=True)
        self.registered: dict[int, tuple[int, str]] = {}
        self.copied_from: set[int] = set()
        self._takes_read_only = takes_read_only

    @override
    def register(self, host: torch.Tensor, *, read_only: bool = False) -> bool:
        address = host.untyped_storage().data_ptr()
        assert address % mmap.PAGESIZE == 0
        assert address not in self.registered
        rights = mapped_as(address)
        assert rights in (("r--s",) if read_only else ("rw-s", "rw-p"))
        if read_only and not self._takes_read_only:
            return False
        self.registered[address] = host.numel(), rights
        return True

    @override
    def unregister(self, host: torch.Tensor) -> None:
        address = host.untyped_storage().data_ptr()
        if address in self.registered:
            assert mapped_as(address) == self.registered.pop(address)[1], "unregistered before it is unmapped"

    @override
    def load(self, flat: torch.Tensor, host: torch.Tensor) -> Any:
        assert any(at <= host.data_ptr() < at + size for at, (size, _) in self.registered.items())
        return super().load(flat, host)

    @override
    def store(self, host: torch.Tensor, flat: torch.Tensor) -> Any:
        assert any(at <= host.data_ptr() < at + size for at, (size, _) in self.registered.items())
        return super().store(host, flat)


def mapped_as(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        start, end = (int(one, 16) for one in span.split("-"))
        if start <= address < end:
            return rights
    raise AssertionError("not mapped")


@pytest.mark.parametrize("takes_read_only", [True, False])
@pytest.mark.parametrize("host", HOMES)
def test_memory_is_registered_to_the_byte_and_unregistered_before_it_goes(
    host: HomeName, takes_read_only: bool
) -> None:
    plain, model = partly_frozen(), partly_frozen()
    model.load_state_dict(plain.state_dict())
    device = Registering(takes_read_only=takes_read_only)
    with stream_over(model, device, k=2, host=host) as streamer:
        losses = train(model, streamer.optimizer(SGD, lr=0.1))
        assert_equal(train(plain, SGD(plain.parameters(), lr=0.1)), losses)
        stats = streamer.stats()
        shared = stats.shared_bytes if host == "shared" and not takes_read_only else 0
        assert sum(size for size, _ in device.registered.values()) == stats.host_bytes - shared > 0
        if host == "shared":
            assert stats.shared_bytes > 0
            read_only = sum(size for size, rights in device.registered.values() if rights == "r--s")
            assert read_only == stats.shared_bytes - shared
            with torch.no_grad():  # a private copy at the same place, registered again
                plain.inside.weight.mul_(2)
                model.inside.weight.mul_(2)
            assert_equal(plain(batch()), model(batch()))
            model.state_dict()
            assert streamer.stats().shared_bytes < stats.shared_bytes
            assert bytes_of_copies(os.getpid()) >= streamer.stats().shared_bytes
    assert not device.registered
    assert_equal(plain.state_dict(), model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)  # plain, writable memory
