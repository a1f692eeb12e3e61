"""Weights from files straight to the host copies: the bits, the bytes, and what is said of files that do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from streaming import home_programs
from streaming.home_programs import Deep, copies_of
from streaming.twins import Blocks, assert_equal, batch, train
from superpipe_cluster.errors import BadInput, FileMissing, Unstreamable
from superpipe_cluster.streaming import parameters_on_meta, stream
from superpipe_cluster.streaming.homes.homes import HomeName
from superpipe_cluster.streaming.homes.weight_files import StoredTensor, WeightFiles

HOMES = ["pinned", "shared", "disk"]
PROGRAMS = str(Path(home_programs.__file__))


class Odd(nn.Module):
    """A tied head, a buffer that is saved and one that is not, a weight in another order of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(4)])
        self.image = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("ramp", torch.arange(8.0), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens) + self.ramp
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x) + self.image(x.reshape(-1, 2, 2, 2).repeat(1, 1, 2, 2)).mean()


def saved(model: nn.Module, path: Path) -> Path:
    """A file of `model`'s weights, each tensor once."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if isinstance(model, Odd):
        del state["head.weight"]
    save_file(state, path, metadata={"format": "pt"})
    return path


def on_meta(kind: Callable[[], nn.Module]) -> nn.Module:
    with parameters_on_meta():
        return kind()


@pytest.mark.parametrize("host", HOMES)
def test_a_model_from_a_file_runs_and_trains_as_one_that_loaded_it(host: HomeName, tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = Odd()
    path = saved(plain, tmp_path / "weights.safetensors")
    model = on_meta(Odd)
    table, optimizer = model.table.weight, torch.optim.SGD(model.parameters(), lr=0.1)
    assert all(parameter.is_meta for parameter in model.parameters())
    tokens = torch.arange(6)
    with stream(model, k=2, host=host, weights=path, poison=True) as streamer:
        assert model.head.weight is model.table.weight is table, "the same objects, tied as before"
        assert model.image.weight.is_contiguous(memory_format=torch.channels_last)

        def loss_of(net: nn.Module, step: int) -> torch.Tensor:
            return net(tokens + step).square().mean()

        expected = train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), loss_of=loss_of)
        assert_equal(expected, train(model, optimizer, loss_of=loss_of))
        assert streamer.stats().loads > streamer.stats().units
    assert_equal(plain.state_dict(), model.state_dict())


@pytest.mark.parametrize("host", HOMES)
@pytest.mark.parametrize(("stored", "wanted"), [("float32", "bfloat16"), ("float16", "float32")])
def test_types_are_converted_on_the_way(host: HomeName, stored: str, wanted: str, tmp_path: Path) -> None:
    plain = Deep(600, 2, getattr(torch, stored))  # tensors of more than one chunk
    path = saved(plain, tmp_path / "model.safetensors")
    plain.to(getattr(torch, wanted))
    with torch.device("meta"):
        model = Deep(600, 2, getattr(torch, wanted))
    with stream(model, k=1, host=host, weights=tmp_path):
        assert_equal(plain.state_dict(), {name: value.clone() for name, value in model.state_dict().items()})
    assert path.exists()


def test_a_folder_of_several_files_and_a_mapping(tmp_path: Path) -> None:
    plain = Blocks()
    state = plain.state_dict()
    halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    places: dict[str, str] = {}
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"part-{number}.safetensors")
        places.update(dict.fromkeys(half, f"part-{number}.safetensors"))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for weights in (tmp_path, str(tmp_path), state):
        with stream(on_meta(Blocks), k=2, weights=weights) as streamer:
            assert_equal(streamer.model(batch()), plain(batch()))
            assert streamer.stats().loads >= streamer.stats().units
    other = Blocks()
    with stream(other, k=2, weights=tmp_path):
        assert_equal(other(batch()), plain(batch()))
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(FileMissing, match=r"part-1\.safetensors"):
        WeightFiles(tmp_path)


def test_a_second_user_of_the_same_files_reads_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(Blocks(), tmp_path / "model.safetensors")
    first = on_meta(Blocks).requires_grad_(False)
    with stream(first, k=2, host="shared", weights=path):
        expected, copies = first(batch()), copies_of(os.getpid())
        with monkeypatch.context() as closed:
            closed.delattr(StoredTensor, "read_into")
            second = on_meta(Blocks).requires_grad_(False)
            with stream(second, k=2, host="shared", weights=path) as streamer:
                assert_equal(second(batch()), expected)
                assert streamer.stats().shared_bytes == streamer.stats().host_bytes
                assert copies_of(os.getpid()) == copies
        saved(Blocks(), path)  # a new file at the same place is something else
        third = on_meta(Blocks).requires_grad_(False)
        with stream(third, k=2, host="shared", weights=path):
            assert not torch.equal(third(batch()), expected)


@pytest.mark.parametrize(("host", "dtype"), [("pinned", "bfloat16"), ("shared", "float32")])
def test_booked_bytes_are_those_that_are_taken_and_nothing_is_there_twice(
    host: HomeName, dtype: str, tmp_path: Path
) -> None:
    shape = {"width": 640, "layers": 10}
    plain = Deep(**shape)
    path = saved(plain, tmp_path / "model.safetensors")
    model_bytes = sum(p.nbytes for p in plain.parameters()) // (1 if dtype == "float32" else 2)
    arguments = {**shape, "weights": str(path), "host": host, "budget": 16 << 20, "dtype": dtype}
    told = heard(started("loaded", **arguments))
    assert told["loads"] >= told["units"]
    assert model_bytes <= told["booked"] <= 1.01 * model_bytes
    if host == "pinned":
        assert told["taken"] == pytest.approx(told["booked"], rel=0.03)
        assert told["peak"] < told["booked"] + (12 << 20), "a chunk, and a unit of the virtual device"
    else:
        assert told["shared"] == told["booked"]
        assert told["in_copies"] == pytest.approx(told["booked"], rel=0.03)
        assert told["taken"] < 0.03 * told["booked"], "none of it is this process's own"


# ---- larger than memory ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "layers", "limit_mib", "budget_mib"),
    [
        pytest.param(256, 90, -30, 4, id="3x-what-torch-leaves"),
        pytest.param(512, 280, 370, 24, id="3x-all", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_a_model_three_times_as_large_as_memory_trains_and_generates_on_disk(
    width: int, layers: int, limit_mib: int, budget_mib: int, tmp_path: Path
) -> None:
    model = Deep(width, layers)
    path = saved(model, tmp_path / "model.safetensors")
    model_bytes = sum(p.nbytes for p in model.parameters())
    assert model_bytes >= 3 * abs(limit_mib) << 20
    del model
    folder = tmp_path / "host"
    folder.mkdir()
    shape = {"width": width, "layers": layers, "weights": str(path)}
    limited = started(
        "on_disk", folder=str(folder), limit_bytes=limit_mib << 20, budget=budget_mib << 20, **shape
    )
    expected, told = heard(started("plain", **shape)), heard(limited)
    assert (told["seen"], told["digest"]) == (expected["seen"], expected["digest"])
    assert told["loads"] > 4 * told["units"]
    assert told["peak_bytes"] <= budget_mib << 20
    assert told["disk_bytes"] > 1.9 * model_bytes, "weights, and all gradients that ever had to leave"
    assert told["host_bytes"] <= 16 << 20
    assert told["files"] == []


def started(program: str, **arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, PROGRAMS, program, json.dumps(arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def heard(process: subprocess.Popen[str]) -> dict[str, Any]:
    told, problems = process.communicate()
    assert process.returncode == 0, problems
    return json.loads(told)


# ---- what does not fit ----------------------------------------------------------------------------


def without(state: dict[str, torch.Tensor]) -> None:
    for name in [name for name in state if name.startswith("layers.")]:
        del state[name]


def renamed(state: dict[str, torch.Tensor]) -> None:
    state["entrance.weight"] = state.pop("inside.weight")


def reshaped(state: dict[str, torch.Tensor]) -> None:
    state["outside.bias"] = torch.zeros(5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without, r"do not fit the model: missing layers.0.0.weight, .* and 20 more$"),
        (renamed, r"missing inside.weight; unexpected entrance.weight$"),
        (reshaped, r"outside.bias is \[5\] there and \[4\] in the model$"),
    ],
)
def test_weights_of_another_model(
    change: Callable[[dict[str, torch.Tensor]], None], said: str, tmp_path: Path
) -> None:
    state = Blocks().state_dict()
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    model = on_meta(Blocks)
    for weights in (state, tmp_path / "model.safetensors"):
        with pytest.raises(BadInput, match=said):
            stream(model, k=2, weights=weights)
    assert all(parameter.is_meta for parameter in model.parameters())
    with stream(model, k=2, weights=Blocks().state_dict()):
        model(batch())


def broken(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda path: os.truncate(path, path.stat().st_size - 1),
            "is cut short: outside.weight ends at byte",
        ),
        (lambda path: os.truncate(path, 5), "is no safetensors file, or cut short: 5 bytes"),
        (lambda path: path.write_bytes(b"\xff" * 100), "is no safetensors file, or cut short"),
        (lambda path: path.write_bytes((4).to_bytes(8, "little") + b"[[[["), "its header is not JSON"),
        (
            lambda path: broken(path, lambda header: header["inside.bias"].update(dtype="F4")),
            "inside.bias is of the unknown type F4",
        ),
        (
            lambda path: broken(path, lambda header: header["inside.bias"].update(shape=[17])),
            r"inside.bias is F32 \[17\], which is 68 bytes, and has 64",
        ),
        (
            lambda path: broken(path, lambda header: header["inside.bias"].update(data_offsets=[8, 4])),
            "the entry of inside.bias is not understood",
        ),
        (
            lambda path: broken(path, lambda header: header.update(more=7)),
            "the entry of more is not understood",
        ),
    ],
)
def test_a_damaged_file_is_named_with_the_tensor(
    damage: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    path = saved(Blocks(), tmp_path / "model.safetensors")
    damage(path)
    model = on_meta(Blocks)
    with pytest.raises(BadInput, match=said) as caught:
        stream(model, k=2, weights=path)
    assert str(path) in caught.value.message
    assert all(parameter.is_meta for parameter in model.parameters())


def test_what_has_no_data_is_refused_with_the_way_to_have_it(tmp_path: Path) -> None:
    path = saved(Odd(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = Odd()
    with pytest.raises(Unstreamable, match="the buffer ramp has no data") as caught:
        stream(model, k=2, weights=path)
    assert "parameters_on_meta()" in str(caught.value.hint)
    with pytest.raises(Unstreamable, match="has no data yet") as caught:
        stream(on_meta(Odd), k=2)
    assert "weights=" in str(caught.value.hint)
    with pytest.raises(FileMissing, match=r"no \.safetensors file at"):
        stream(on_meta(Odd), k=2, weights=tmp_path / "nowhere")
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(FileMissing, match=r"no \.safetensors file in"):
        stream(on_meta(Odd), k=2, weights=empty)


def test_the_format_is_read_as_its_own_library_reads_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    types = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool)
    state = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in types}
    state |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    save_file(state, tmp_path / "all.safetensors")
    found = WeightFiles(tmp_path)
    assert set(found) == set(state)
    for name, expected in load_file(tmp_path / "all.safetensors").items():
        into = torch.empty_like(expected)
        found[name].read_into(into)
        assert_equal(into, expected)
