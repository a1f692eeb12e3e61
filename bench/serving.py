"""Tokens per second of a served model against the number of requests at once, where passes wait for the link.

    python bench/serving.py [--quick] [--out FOLDER]

The bundled worker, run as a job is, asked over its socket as the head's door asks it: greedy completions of equal
length, some at once. Half of the model's units fit the budget, so every pass brings the others over a virtual link
that takes its time. A pass serves everybody, so eight requests should take little longer than one; the promise is four
times the tokens per second. Both ways of multiplying are measured, see [Note: exact passes] in `serving.packed`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from about import about

from superpipe_cluster import bundled, spec
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.execution.supervisor import Supervisor
from superpipe_cluster.machine import parse_device

MODEL = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 12,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
BUDGET_BYTES = 22 << 20
LINK = "cpu:1GiB@100MB/s"
TOKENS, ROUNDS = 12, 3
AT_ONCE, QUICK_AT_ONCE = (1, 2, 4, 8, 16), (1, 8)


class Worker:
    """The serving worker in a folder of its own."""

    def __init__(self, root: Path, *, exact: bool) -> None:
        root.mkdir()
        job = {
            "kind": "serve", "name": "bench", "model": {"config": MODEL},
            "serve": {"max_requests": max(AT_ONCE), "context": 64, "exact": exact},
        }  # fmt: skip
        folder = JobFolder(root)
        Attempt(
            id="1", attempt=1, epoch=1, job=spec.dump(spec.parse(job)), device=parse_device(LINK),
            budget_bytes=BUDGET_BYTES, program=str(bundled.worker_path("serve")), output=str(folder.output),
        ).write(folder)  # fmt: skip
        self._supervisor = Supervisor(root)
        self._supervisor.start()
        while not folder.door.exists():
            if self._supervisor.wait(0.1) is not None:
                raise SystemExit(folder.log.read_text())
        self._client = httpx.Client(transport=httpx.HTTPTransport(uds=str(folder.door)), timeout=120)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._supervisor.stop("cancelled")
        self._supervisor.wait(20)

    def ask(self, number: int) -> int:
        """Tokens of an answer."""
        asked = {"model": "bench", "prompt": f"def f{number}(", "temperature": 0, "max_tokens": TOKENS}
        answer = self._client.post("http://worker/v1/completions", json=asked)
        return answer.raise_for_status().json()["usage"]["completion_tokens"]

    def tokens_per_s(self, at_once: int) -> float:
        with ThreadPoolExecutor(at_once) as pool:
            began = time.perf_counter()
            made = sum(pool.map(self.ask, range(at_once)))
            return made / (time.perf_counter() - began)


def rows(at_once: tuple[int, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    print(f"{'multiplied':12}" + "".join(f"{count:>10}" for count in at_once))
    for exact in (True, False):
        with tempfile.TemporaryDirectory() as folder, Worker(Path(folder) / "job", exact=exact) as worker:
            worker.tokens_per_s(max(at_once))  # the order is learned in the first passes
            # In turns, for a machine that changes its speed.
            rounds = [[worker.tokens_per_s(count) for count in at_once] for _ in range(ROUNDS)]
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        name = "apart" if exact else "together"
        print(f"{name:12}" + "".join(f"{speed:10.1f}" for speed in medians), flush=True)
        found += [
            {"multiplied": name, "requests": count, "tokens_per_s": speed, "over_one": speed / medians[0]}
            for count, speed in zip(at_once, medians, strict=True)
        ]
    return found


def verdict(found: list[dict[str, Any]]) -> str:
    gains = {row["multiplied"]: row["over_one"] for row in found if row["requests"] == 8}
    return "8 requests at once make " + " and ".join(
        f"{gain:.2f} times the tokens per second of one ({name})" for name, gain in gains.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one and eight requests only")
    parser.add_argument("--out", type=Path, help="folder for serving-virtual.json")
    asked = parser.parse_args()
    found = rows(QUICK_AT_ONCE if asked.quick else AT_ONCE)
    print(f"\ntokens per second by requests at once; {LINK}, {BUDGET_BYTES >> 20} MiB\n{verdict(found)}")
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        path = asked.out / "serving-virtual.json"
        path.write_text(
            json.dumps({"about": about("virtual"), "verdict": verdict(found), "rows": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main())
