from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from superpipe_cluster.machine import foreign, nvml, parse_device

GIB = 2**30
GPU = replace(parse_device("cpu:20GiB"), id="GPU-1f", kind="cuda")


def readings(monkeypatch: pytest.MonkeyPatch, used_bytes: int, by_process: dict[int, int]) -> None:
    monkeypatch.setattr(nvml, "memory", lambda uuid: nvml.Memory(20 * GIB, used_bytes, by_process))


def test_the_neighbour_of_a_virtual_device_is_a_file(tmp_path: Path) -> None:
    device = parse_device("cpu:1GiB")
    assert foreign.on_virtual(device, tmp_path) == 0
    (tmp_path / "foreign-cpu:0.json").write_text('{"bytes": 1000}')
    assert foreign.on_virtual(device, tmp_path) == 1000


@pytest.mark.parametrize("text", ["", "{", "[]", '{"bytes": "many"}', '{"bytes": -5}', "{}"])
def test_a_file_that_says_nothing_is_no_neighbour(tmp_path: Path, text: str) -> None:
    (tmp_path / "foreign-cpu:0.json").write_text(text)
    assert foreign.on_virtual(parse_device("cpu:1GiB"), tmp_path) == 0


def test_a_living_process_that_is_not_ours_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    readings(monkeypatch, 9 * GIB, {os.getpid(): 3 * GIB, os.getppid(): 6 * GIB})
    assert foreign.on_gpu(GPU, {os.getppid()}, promised_bytes=10 * GIB) == 3 * GIB


def test_numbers_of_another_machine_are_not_taken_for_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    readings(monkeypatch, 6 * GIB, {2**22 + 1: 6 * GIB})
    assert foreign.on_gpu(GPU, (), promised_bytes=8 * GIB) == 0


def test_what_is_used_beyond_all_promises_is_foreign_whoever_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings(monkeypatch, 12 * GIB, {})
    assert foreign.on_gpu(GPU, (), promised_bytes=8 * GIB) == 4 * GIB


def test_the_part_that_is_not_the_clusters_is_there_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    readings(monkeypatch, 12 * GIB, {})
    part = replace(GPU, capacity_bytes=10 * GIB)
    assert foreign.on_gpu(part, (), promised_bytes=2 * GIB) == 0
    assert foreign.on_gpu(part, (), promised_bytes=0) == 2 * GIB


def test_a_gpu_that_cannot_be_read_has_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "memory", lambda uuid: None)
    assert foreign.on_gpu(GPU, (), promised_bytes=0) == 0
