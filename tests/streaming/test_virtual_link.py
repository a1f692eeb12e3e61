"""The link of a virtual device: it takes its time, and those who share it share its speed.

Times are compared with what the declared speed asks for, from below only: a busy machine may be slower, never faster.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from superpipe_cluster.streaming.devices.virtual_device import CpuDevice, VirtualDevice

MIB = 1 << 20
SPEED = 64 * MIB


def _copies(device: CpuDevice, count: int) -> float:
    host, flat = torch.arange(MIB, dtype=torch.uint8), torch.zeros(MIB, dtype=torch.uint8)
    began = time.monotonic()
    last = [device.load(flat, host) for _ in range(count)][-1]
    last.wait()
    assert torch.equal(flat, host)
    return time.monotonic() - began


def test_copies_take_the_time_of_the_link_in_the_background() -> None:
    device = CpuDevice(VirtualDevice(link_bytes_per_s=SPEED), None)
    host, flat = torch.ones(MIB, dtype=torch.uint8), torch.zeros(MIB, dtype=torch.uint8)
    began = time.monotonic()
    there, back = device.load(flat, host), device.store(host.clone(), flat)
    assert not there.done(), "the program goes on while the copy is under way"
    there.wait()
    back.wait()
    assert time.monotonic() - began >= MIB / SPEED
    assert device.stall_s > 0
    assert (device.h2d_bytes, device.d2h_bytes) == (MIB, MIB)
    device.close()


def test_those_who_share_a_link_share_its_speed(tmp_path: Path) -> None:
    shared = VirtualDevice(link_bytes_per_s=SPEED, link_clock=str(tmp_path / "link"))
    one, other = CpuDevice(shared, None), CpuDevice(shared, None)
    began = time.monotonic()
    host, flat = torch.ones(MIB, dtype=torch.uint8), torch.zeros(MIB, dtype=torch.uint8)
    copies = [device.load(flat, host) for _ in range(4) for device in (one, other)]
    for copy in copies:
        copy.wait()
    assert time.monotonic() - began >= 8 * MIB / SPEED
    one.close()
    other.close()


def test_a_clock_of_an_earlier_boot_is_set_again(tmp_path: Path) -> None:
    spec = VirtualDevice(link_bytes_per_s=SPEED, link_clock=str(tmp_path / "link"))
    device = CpuDevice(spec, None)
    _copies(device, 1)
    (clock,) = tmp_path.glob("*.h2d")
    clock.write_bytes(b"\x00\x00\x00\x00\x00\x00\xf0\x7f")  # infinity: never free again
    assert _copies(device, 2) >= 2 * MIB / SPEED
    device.close()
