"""Programs that the tests of homes run in processes of their own: `python home_programs.py NAME JSON`."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superpipe_cluster.streaming import stream
from superpipe_cluster.streaming.homes.memory import trim_heap
from superpipe_cluster.streaming.homes.shared_copies import SharedCopies


class Deep(nn.Module):
    """A toy language model: a table of tokens, `layers` residual blocks, scores of the next token."""

    def __init__(self, width: int, layers: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.table = nn.Embedding(32, width, dtype=dtype)
        self.layers = nn.ModuleList([_Block(width, dtype) for _ in range(layers)])
        self.scores = nn.Linear(width, 32, dtype=dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens).mean(1)
        for layer in self.layers:
            x = x + layer(x)
        return self.scores(x)


class _Block(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * width, bias=False, dtype=dtype)
        self.outer = nn.Linear(2 * width, width, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x)))


def train_and_generate(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[Any]:
    """Losses of a few steps, then tokens."""
    seen: list[Any] = []
    tokens = torch.arange(12).reshape(3, 4)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(tokens), torch.tensor([1, 2, 3]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    with torch.no_grad():
        for _ in range(2):
            tokens = torch.cat([tokens, model(tokens).argmax(1, keepdim=True)], 1)
    return [*seen, tokens.tolist()]


def weights_digest(model: nn.Module) -> str:
    digest = hashlib.blake2b()
    for parameter in model.parameters():
        digest.update(memoryview(parameter.detach().numpy()).cast("B"))
    return digest.hexdigest()


def on_disk(width: int, layers: int, weights: str, folder: str, limit_bytes: int, budget: int) -> None:
    """Train a model from files under a limit of memory, its master copies on the disk.

    A negative limit is one on what is taken beyond what torch itself and a first small model take.
    """
    threading.stack_size(1 << 20)  # the limit counts all of a stack, used or not
    with stream(Deep(8, 1), k=1, host="disk") as streamer:
        train_and_generate(streamer.model, streamer.optimizer(torch.optim.SGD, lr=0.1), 1)
    with torch.device("meta"):
        model = Deep(width, layers)
    limit_bytes = limit_bytes if limit_bytes > 0 else status_bytes("VmData") - limit_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    with stream(model, budget, host="disk", host_folder=Path(folder), weights=weights) as streamer:
        seen = train_and_generate(model, streamer.optimizer(torch.optim.SGD, lr=0.1), 2)
        stats = streamer.stats()
    digest = weights_digest(model)
    tell(
        seen=seen, digest=digest, loads=stats.loads, units=stats.units, peak_bytes=stats.peak_bytes,
        disk_bytes=stats.disk_bytes, host_bytes=stats.host_bytes, files=os.listdir(folder),
        data_bytes=status_bytes("VmData"),
    )  # fmt: skip


def plain(width: int, layers: int, weights: str) -> None:
    """The same without streaming."""
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = Deep(width, layers)
    model.load_state_dict(load_file(weights), assign=True)
    seen = train_and_generate(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    tell(seen=seen, digest=weights_digest(model))


def loaded(width: int, layers: int, weights: str, host: str, budget: int, dtype: str) -> None:
    """What the master copies of a model from files take, as booked and as measured."""
    small = Deep(8, 1)  # all of torch that is used below has its memory before the measurement
    with stream(small, k=1) as streamer:
        small(torch.zeros(1, 1, dtype=torch.long))
    del small, streamer
    with torch.device("meta"):
        model = Deep(width, layers, getattr(torch, dtype)).requires_grad_(False)
    trim_heap()
    before = status_bytes("RssAnon") + status_bytes("RssShmem")
    reset_peak()
    peak_before = status_bytes("VmHWM")
    with stream(model, budget, host=host, weights=weights) as streamer:
        taken = status_bytes("RssAnon") + status_bytes("RssShmem") - before
        peak = status_bytes("VmHWM") - peak_before
        result = model(torch.arange(12).reshape(3, 4))
        stats = streamer.stats()
        tell(
            booked=stats.host_bytes, shared=stats.shared_bytes, taken=taken, peak=peak, loads=stats.loads,
            units=stats.units, result=result.tolist(), in_copies=bytes_of_copies(os.getpid()),
        )  # fmt: skip


def sharer(seed: int, width: int, layers: int) -> None:
    """Stream a frozen model from the shared home; a forward pass for every line that comes."""
    torch.manual_seed(seed)
    model = Deep(width, layers).requires_grad_(False)
    with stream(model, k=2, host="shared") as streamer:
        model(torch.zeros(1, 1, dtype=torch.long))
        while True:
            result = model(torch.arange(12).reshape(3, 4))
            stats = streamer.stats()
            tell(
                result=result.tolist(),
                shared=stats.shared_bytes,
                loads=stats.loads,
                copies=copies_of(os.getpid()),
            )
            if not sys.stdin.readline():
                break


def killed_while_filling(folder: str, copy: str, nbytes: int) -> None:
    """Die in the middle of making a shared copy, when told to."""

    def fill(host: torch.Tensor) -> None:
        host[: nbytes // 2].fill_(1)
        tell(filling=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)

    SharedCopies(Path(folder)).find_or_fill(copy, nbytes, fill)


def copies_of(pid: int) -> dict[str, int]:
    """The shared copies that a process has open: name -> inode."""
    return {name: found.st_ino for name, found in _open_copies(pid)}


def bytes_of_copies(pid: int) -> int:
    """Memory that the shared copies take which a process has open."""
    return sum({found.st_ino: found.st_blocks * 512 for _, found in _open_copies(pid)}.values())


def _open_copies(pid: int) -> Iterator[tuple[str, os.stat_result]]:
    try:
        entries = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # the process went, or is not ours
        return
    for entry in entries:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{entry}")
            if target.startswith("/memfd:superpipe_cluster:"):
                yield target, os.stat(f"/proc/{pid}/fd/{entry}")
        except OSError:  # closed meanwhile
            continue


def status_bytes(name: str) -> int:
    line = next(
        one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(f"{name}:")
    )
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))
