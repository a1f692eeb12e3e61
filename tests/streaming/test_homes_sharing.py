"""One copy of frozen weights for all processes: found, kept by whoever is left, and gone with the last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from streaming import home_programs
from streaming.home_programs import copies_of
from superpipe_cluster.errors import BadInput
from superpipe_cluster.streaming.homes import shared_copies
from superpipe_cluster.streaming.homes.shared_copies import SharedCopies

PROGRAMS = str(Path(home_programs.__file__))
SHARED = {"width": 64, "layers": 6}
SHARED_BYTES = (2 * 32 * 64 + 6 * 4 * 64 * 64) * 4 + 256  # the last for the bias, 128 bytes


class Program:
    """A program of `home_programs` in a process of its own."""

    def __init__(self, program: str, **arguments: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, PROGRAMS, program, json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("on\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(program: str, **arguments: Any) -> Iterator[Program]:
    started = Program(program, **arguments)
    with started.process:  # closes its pipes
        try:
            yield started
        finally:
            started.kill()


def everybodys_copies() -> set[str]:
    return {name for pid in os.listdir("/proc") if pid.isdigit() for name in copies_of(int(pid))}


def test_a_copy_outlives_each_of_its_sharers_and_ends_with_the_last() -> None:
    seed = int.from_bytes(os.urandom(4), "little")  # copies that no other test run has
    with running("sharer", seed=seed, **SHARED) as first, running("sharer", seed=seed, **SHARED) as second:
        one, other = first.hear(), second.hear()
        assert one["shared"] == other["shared"] == SHARED_BYTES
        assert one["loads"] > len(one["copies"])
        assert one["copies"] == other["copies"], "the same memory"
        assert one["result"] == other["result"]

        first.kill()  # -9, whichever of them made the copies
        second.go_on()
        assert second.hear()["result"] == one["result"]
        with running("sharer", seed=seed, **SHARED) as third:
            late = third.hear()
            assert late["copies"] == one["copies"], "found through who is left"
            assert late["result"] == one["result"]
        assert everybodys_copies() >= set(one["copies"])
    assert not everybodys_copies() & set(one["copies"]), "all were killed, and the memory is gone"
    SharedCopies().close()
    registry = shared_copies._default_folder() / "registry"
    assert not registry.exists() or not any(name[27:91] in registry.read_text() for name in one["copies"])


def test_a_copy_whose_maker_was_killed_half_way_is_made_by_the_next(tmp_path: Path) -> None:
    copies, name, nbytes = SharedCopies(tmp_path), "half", 1 << 20
    found: list[int] = []
    with running("killed_while_filling", folder=str(tmp_path), copy=name, nbytes=nbytes) as maker:
        assert maker.hear() == {"filling": True}

        def wait_for_it() -> None:
            found.append(copies.find_or_fill(name, nbytes, lambda host: host.fill_(2)))

        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        while not copies_of(os.getpid()):  # it has found the copy that is being made, and waits for its lock
            pass
        assert copies_of(os.getpid()) == copies_of(maker.process.pid)
        maker.go_on()
        assert maker.process.wait() == -9
        waiter.join()
    assert os.pread(found[0], nbytes, 0) == b"\2" * nbytes
    copies.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "lock"]


def test_a_full_copy_cannot_be_changed_by_anyone(tmp_path: Path) -> None:
    copies = SharedCopies(tmp_path)
    file = copies.find_or_fill("full", 100, lambda host: host.fill_(1))
    with pytest.raises(PermissionError):
        os.pwrite(file, b"2", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(file, 0)
    copies.close()


def test_what_the_registry_says_is_not_believed(tmp_path: Path) -> None:
    name, nbytes, pid = "wanted", 100, os.getpid()
    shorter = os.memfd_create(f"superpipe_cluster:{name}")
    os.ftruncate(shorter, nbytes - 1)
    another = os.memfd_create("superpipe_cluster:another")
    os.ftruncate(another, nbytes)
    with (tmp_path / "plain").open("wb") as plain:
        plain.truncate(nbytes)
        copies = SharedCopies(tmp_path)
        lines = [f"{name} {pid} {file}" for file in (shorter, another, plain.fileno(), 999_999)]
        lines += [f"{name} 999999999 3", f"{name} {pid}", f"{name} ../self {shorter}", "", "\0\0"]
        (tmp_path / "registry").write_text("\n".join(lines) + "\n")
        file = copies.find_or_fill(name, nbytes, lambda host: host.fill_(3))
        assert file not in (shorter, another, plain.fileno())
        assert os.pread(file, nbytes, 0) == b"\3" * nbytes
        again = SharedCopies(tmp_path)
        same = again.find_or_fill(name, nbytes, lambda host: host.fill_(4))
        assert os.fstat(same).st_ino == os.fstat(file).st_ino
    os.close(shorter)
    os.close(another)
    again.close()
    copies.close()
    assert not (tmp_path / "registry").exists()


def test_a_copy_that_cannot_be_filled_is_not_left_behind(tmp_path: Path) -> None:
    def fails(host: torch.Tensor) -> None:
        raise OSError("the file went")

    copies = SharedCopies(tmp_path)
    before = copies_of(os.getpid())
    with pytest.raises(OSError, match="the file went"):
        copies.find_or_fill("failed", 100, fails)
    assert copies_of(os.getpid()) == before
    file = copies.find_or_fill("failed", 100, lambda host: host.fill_(5))
    assert os.pread(file, 100, 0) == b"\5" * 100
    copies.close()


def test_a_registry_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path

    def elsewhere(path: str) -> Path:
        return real(tmp_path if path == "/dev/shm" else path)

    monkeypatch.setattr(shared_copies, "Path", elsewhere)
    folder = shared_copies._default_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(BadInput, match="not a folder of this user's alone"):
        shared_copies._default_folder()
