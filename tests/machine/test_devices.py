from __future__ import annotations

import pytest

from superpipe_cluster.errors import BadInput
from superpipe_cluster.machine import Device, discover, host_memory, nvml, parse_device


def test_a_virtual_device_is_written_with_capacity_and_speed() -> None:
    device = parse_device("cpu:3GiB@2GB/s", index=1)
    assert (device.id, device.kind) == ("cpu:1", "virtual")
    assert device.capacity_bytes == 3 * 2**30
    assert device.link_bytes_per_s == 2 * 10**9


def test_the_speed_may_be_left_out() -> None:
    assert parse_device("cpu:512MiB").link_bytes_per_s > 0


@pytest.mark.parametrize(
    "text",
    ["", "cpu", "cpu:", "cpu:3", "cpu:3GiB@2GB", "cpu:3GiB@", "cpu:0GiB", "cpu:3GiB@0GB/s", "gpu:3GiB"],
)
def test_what_is_no_device_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_device(text)
    assert caught.value.hint


def test_a_device_survives_json() -> None:
    device = parse_device("cpu:1GiB@1GB/s")
    assert Device(**device.to_json()) == device


def test_virtual_devices_are_numbered_in_the_order_given() -> None:
    assert [device.id for device in discover(["cpu:1GiB", "cpu:2GiB@1GB/s"])] == ["cpu:0", "cpu:1"]


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> nvml.Gpu:
    gpu = nvml.Gpu(uuid="GPU-1f", index=0, name="Test", usable_bytes=2**34, link_bytes_per_s=10**10)
    monkeypatch.setattr(nvml, "gpus", lambda: [gpu])
    return gpu


def test_a_gpu_is_found_by_itself_by_number_and_by_uuid(one_gpu: nvml.Gpu) -> None:
    for explicit in ([], ["cuda:0"], ["GPU-1f"]):
        (device,) = discover(explicit)
        assert (device.id, device.kind, device.capacity_bytes) == (one_gpu.uuid, "cuda", one_gpu.usable_bytes)


def test_a_part_of_a_gpu_is_that_gpu_with_less_memory(one_gpu: nvml.Gpu) -> None:
    (part,) = discover(["cuda:0=3GiB"])
    assert (part.id, part.capacity_bytes) == (one_gpu.uuid, 3 * 2**30)
    for text in ("cuda:0=", "cuda:0=17GiB", "cuda:0=3", "cuda:1=3GiB"):
        with pytest.raises(BadInput) as caught:
            discover([text])
        assert caught.value.hint is not None
    with pytest.raises(BadInput, match="twice"):
        discover(["cuda:0=3GiB", "cuda:0=4GiB"])


def test_a_device_that_is_not_there_or_named_twice_is_refused(one_gpu: nvml.Gpu) -> None:
    with pytest.raises(BadInput, match="cuda:0"):
        discover(["cuda:1"])
    with pytest.raises(BadInput, match="twice"):
        discover(["cuda:0", "GPU-1f"])


def test_without_a_gpu_a_part_of_the_ram_is_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpus", list)
    (device,) = discover()
    assert device.kind == "virtual"
    assert 0 < device.capacity_bytes <= host_memory().total_bytes // 4
