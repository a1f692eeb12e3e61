"""The paper's figure 5: a unit's tensors moved one by one, or all as one flat copy.

    python bench/batch_transfer.py [--device cuda:0] [--quick]

For layers of several shapes (the paper's models) and k layers at a time, bytes per second of both ways, and of one
copy per layer, which is what the runtime does. Everything is a ratio within one run: each round times all ways in turn,
and the best times are compared. On a GPU the host memory is pinned, copies are queued without waiting (but where it is
said), and both directions are timed; on a CPU a copy is a copy in RAM, and the figure says what the calls cost.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from about import about

#: Shapes of a layer's tensors. The first three are the paper's models, the last is one with many small tensors.
LAYERS: dict[str, list[tuple[int, ...]]] = {
    "ViT-bigG block": [
        (1664,), (1664,), (4992, 1664), (4992,), (1664, 1664), (1664,), (1664,), (1664,), (8192, 1664), (8192,),
        (1664, 8192), (1664,),
    ],
    "LLaMA2-7B block": [(4096,), (4096,), *[(4096, 4096)] * 4, *[(11008, 4096)] * 2, (4096, 11008)],
    "Stable Diffusion block": [
        (320,), (320,), (640, 320, 3, 3), (640,), (640, 1280), (640,), (640,), (640,), (640, 640, 3, 3), (640,),
        (640, 320, 1, 1), (640,), *[(640, 640)] * 8, *[(640,)] * 12, (5120, 640), (640, 2560),
    ],
    "LoRA adapters": [(8, 1024), (1024, 8)] * 64,
}  # fmt: skip
DTYPE = torch.bfloat16
_ALIGNMENT = 256


class Layer:
    """One layer's memory: separate tensors, and the same bytes in one flat piece; on the host and on the device."""

    def __init__(self, shapes: list[tuple[int, ...]], device: torch.device) -> None:
        sizes = [torch.Size(shape).numel() * DTYPE.itemsize for shape in shapes]
        self.nbytes = sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)
        self.apart = [
            (_host(size, device), torch.empty(size, dtype=torch.uint8, device=device)) for size in sizes
        ]
        self.flat = (_host(self.nbytes, device), torch.empty(self.nbytes, dtype=torch.uint8, device=device))


def _host(nbytes: int, device: torch.device) -> torch.Tensor:
    host = torch.zeros(nbytes, dtype=torch.uint8)
    return host.pin_memory() if device.type == "cuda" else host


def _ways(layers: list[Layer], device: torch.device, *, back: bool) -> dict[str, Callable[[], None]]:
    total = sum(layer.nbytes for layer in layers)
    host, there = _host(total, device), torch.empty(total, dtype=torch.uint8, device=device)

    def copy(on_host: torch.Tensor, on_device: torch.Tensor) -> None:
        source, destination = (on_device, on_host) if back else (on_host, on_device)
        destination.copy_(source, non_blocking=True)

    def tensor_by_tensor(*, wait: bool = False) -> None:
        for layer in layers:
            for pair in layer.apart:
                copy(*pair)
                if wait:
                    _wait(device)

    def layer_by_layer() -> None:
        for layer in layers:
            copy(*layer.flat)

    ways: dict[str, Callable[[], None]] = {
        "tensor by tensor": tensor_by_tensor,
        "one copy per layer": layer_by_layer,
        "one copy": lambda: copy(host, there),
    }
    if device.type == "cuda":
        ways["tensor by tensor, waiting for each"] = lambda: tensor_by_tensor(wait=True)
    return ways


def measure(name: str, k: int, device: torch.device, rounds: int, *, back: bool) -> dict[str, Any]:
    layers = [Layer(LAYERS[name], device) for _ in range(k)]
    ways = _ways(layers, device, back=back)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in ways.items():
            _wait(device)
            began = time.perf_counter()
            run()
            _wait(device)
            if number:  # the first touches the memory
                times[way].append(time.perf_counter() - began)
    nbytes = sum(layer.nbytes for layer in layers)
    seconds = {way: min(of) for way, of in times.items()}
    return {
        "layer": name,
        "direction": "to the host" if back else "to the device",
        "k": k,
        "tensors": len(LAYERS[name]) * k,
        "bytes": nbytes,
        "seconds": seconds,
        "bytes_per_s": {way: nbytes / of for way, of in seconds.items()},
        "speedup": {way: seconds["tensor by tensor"] / of for way, of in seconds.items()},
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plot(rows: list[dict], path: Path) -> None:
    try:
        import matplotlib
    except ModuleNotFoundError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["layer"] for row in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3.5), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        group = [row for row in rows if row["layer"] == name and row["direction"] == "to the device"]
        for way in group[0]["bytes_per_s"]:
            axis.plot(
                [row["k"] for row in group], [row["bytes_per_s"][way] / 1e9 for row in group], "o-", label=way
            )
        axis.set(title=name, xlabel="layers at a time (k)", ylabel="GB/s", ylim=(0, None))
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer layers and rounds")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    asked = parser.parse_args()
    device = torch.device(asked.device)
    rows = []
    print(
        f"{'layer':24} {'k':>2} {'tensors':>8} {'MB':>8}   GB/s: tensor by tensor, one per layer, one; speedup"
    )
    for back in (False, True) if device.type == "cuda" else (False,):
        print("to the host" if back else "to the device")
        for name in asked.layers:
            for k in (1, 2) if asked.quick else (1, 2, 4):
                row = measure(name, k, device, 3 if asked.quick else 9, back=back)
                rows.append(row)
                speeds = "".join(f"{speed / 1e9:9.2f}" for speed in row["bytes_per_s"].values())
                faster = row["speedup"]["one copy per layer"]
                print(
                    f"{name:24} {k:2} {row['tensors']:8} {row['bytes'] / 1e6:8.1f}   {speeds}   {faster:5.2f}x"
                )
    asked.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu: copies within RAM"
    stem = asked.out / f"batch-transfer-{device.type}"
    stem.with_suffix(".json").write_text(json.dumps({"about": about(name), "rows": rows}, indent=1) + "\n")
    plot(rows, stem.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())
