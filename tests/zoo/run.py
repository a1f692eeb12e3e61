"""`python tests/zoo/run.py`: every specimen's trial, one table in the end.

    --only PATTERN   specimens whose `library/name` contains it (several: any of them)
    --jobs N         processes side by side
    --failed         only those that were not exact or resident in the table as it is
    --list           print the names and stop

Owns the processes: specimens are tried in batches, each in a process of its own, so that one that crashes or hangs is
a row of the table and not the end of it. Rows of an earlier run stay in the table until they are run again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import select
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
if str(_HERE.parent) not in sys.path:
    sys.path.insert(0, str(_HERE.parent))

LIBRARIES = ("torch", "timm", "diffusers", "transformers")
RESULTS_JSON, RESULTS_MD = _HERE / "RESULTS.json", _HERE / "RESULTS.md"
_BATCH = 12
_LIMIT_S = 240.0  # for one specimen


def library(name: str) -> Any:
    """The module with the specimens of `name`: `names()`, `version()`, `specimen(name)`."""
    return importlib.import_module(f"zoo.{name}_models")


def main() -> int:
    """Parse the arguments, run, write the table. Returns 1 if a specimen failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--failed", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--batch", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch is not None:
        return _try_batch(options.batch)
    listed = {(lib, name) for lib in LIBRARIES for name in library(lib).names()}
    before = {key: row for row in _read() if (key := (row["library"], row["name"])) in listed}
    wanted = [
        f"{lib}/{name}"
        for lib in LIBRARIES
        for name in library(lib).names()
        if not options.only or any(pattern in f"{lib}/{name}" for pattern in options.only)
    ]
    if options.failed:
        good = {f"{lib}/{name}" for (lib, name), row in before.items() if row["status"] in _GOOD}
        wanted = [one for one in wanted if one not in good]
    if options.list:
        print("\n".join(wanted))
        return 0
    batches = [wanted[at : at + _BATCH] for at in range(0, len(wanted), _BATCH)]
    failed = False
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        for rows in pool.map(_in_processes, batches):
            for row in rows:
                before[row["library"], row["name"]] = row
                failed = failed or row["status"] == "failed"
                print(f"{row['library']}/{row['name']}: {row['status']} {row['reason']}", flush=True)
            write(list(before.values()))
    print(summary(list(before.values())))
    return int(failed)


# ---- processes ------------------------------------------------------------------------------------------


def _in_processes(names: list[str]) -> list[dict[str, Any]]:
    """Rows of `names`, from as many processes as it takes."""
    rows: list[dict[str, Any]] = []
    while names:
        command = [sys.executable, str(_HERE / "run.py"), "--batch", *names]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            came = list(_rows(process))
        rows += came
        names = names[len(came) :]
        if names:  # it died, or was ended, in the midst of the next one
            lib, _, name = names[0].partition("/")
            reason = f"the process ended with {process.returncode}"
            rows.append(asdict(importlib.import_module("zoo.trial").Row(lib, name, "", "failed", reason)))
            names = names[1:]
    return rows


def _rows(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    descriptor, held = process.stdout.fileno(), b""
    deadline = time.monotonic() + _LIMIT_S
    while True:
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            process.kill()
            return
        came = os.read(descriptor, 1 << 16)
        if not came:
            return
        *lines, held = (held + came).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                deadline = time.monotonic() + _LIMIT_S
                yield json.loads(line)


def _try_batch(names: list[str]) -> int:
    import torch

    from zoo.trial import Row, try_out

    warnings.simplefilter("ignore")  # the libraries' own
    torch.set_num_threads(1)
    for full_name in names:
        lib, _, name = full_name.partition("/")
        try:
            module = library(lib)
            row = try_out(module.specimen(name), module.version())
        except Exception as error:
            row = Row(lib, name, "", "unfit", f"{type(error).__name__}: {error}")
        print("\n" + json.dumps(asdict(row)), flush=True)
    return 0


# ---- the table ------------------------------------------------------------------------------------------

_GOOD = ("exact", "resident")


def _read() -> list[dict[str, Any]]:
    return json.loads(RESULTS_JSON.read_text())["rows"] if RESULTS_JSON.exists() else []


def write(rows: list[dict[str, Any]]) -> None:
    """The JSON and the table, sorted by library and name."""
    rows.sort(key=lambda row: (LIBRARIES.index(row["library"]), row["name"]))
    RESULTS_JSON.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    told = [row for row in rows if row["status"] != "unfit"]
    lines = [
        "# The zoo",
        "",
        "Generated by `python tests/zoo/run.py`. Each model is tiny, with random weights. Its plain run and its",
        "streamed ones (all on the device; with the fewest units; with about the smallest budget; with one half way",
        "from there to the whole; evicted memory filled with NaN) are compared bit for bit: outputs, loss, every",
        "gradient and every weight in each of three AdamW steps, then outputs in eval mode, then weights and buffers",
        "after `close()`.",
        "",
        "`k` is the range of units on the device with which it runs. Bytes are of the whole training run. Not listed:",
        f"{len(rows) - len(told)} whose default settings do not make a tiny model that trains, by the rules here.",
        "",
        *summary(rows).split("\n"),
        "",
        "| model | library | units | k | model, bytes | smallest budget | whole | exact |",
        "|---|---|---:|---:|---:|---:|---:|---|",
        *[_line(row) for row in told],
    ]
    RESULTS_MD.write_text("\n".join(lines) + "\n")


def _line(row: dict[str, Any]) -> str:
    verdict = {
        "exact": "yes",
        "resident": "yes, resident",
        "failed": "NO",
        "irreproducible": "not reproducible",
    }
    exact = verdict.get(row["status"], row["status"])
    exact += f": {row['reason']}" if row["reason"] else ""
    k = f"{row['k_smallest']} to {row['units']}" if row["k_smallest"] else ""
    return (
        f"| {row['name']} | {row['library']} {row['version']} | {row['units']} | {k} | {row['model_bytes']} "
        f"| {row['smallest_bytes']} | {row['whole_bytes']} | {exact.replace('|', '/')} |"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """Counts by library, as a table."""
    kinds = ("exact", "resident", "refused", "failed", "irreproducible")
    lines = [f"| library | {' | '.join(kinds)} |", f"|---|{'---:|' * len(kinds)}"]
    for lib in LIBRARIES:
        counts = [sum(1 for row in rows if row["library"] == lib and row["status"] == kind) for kind in kinds]
        lines.append(f"| {lib} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
