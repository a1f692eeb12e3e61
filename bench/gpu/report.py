"""Bounds, comparison and the three outputs: JSON, a table, a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def compare(rows: list[Row], machine: Row, samples: dict[str, Any]) -> None:
    """Add to each row its bound, how far above it is, and whether it made what `standard` made.

    The bound is `max(whole model's measured step, bytes that are not on the device / measured link)`: what a run keeps
    off the device, against the whole model's peak, has to come at least once in each step.
    """
    for workload in dict.fromkeys(row["workload"] for row in rows):
        group = [row for row in rows if row["workload"] == workload and "seconds" in row]
        whole = next((row for row in group if row["contender"] == "standard"), None)
        if whole is None:
            continue
        for row in group:
            row["over_standard"] = row["seconds"] / whole["seconds"]
            row["equal"] = row["digest"] == whole["digest"]
            if not row["equal"] and row["sample"] in samples and whole["sample"] in samples:
                one, other = samples[row["sample"]], samples[whole["sample"]]
                row["largest_difference"] = (
                    (one - other).abs().max().item() if one.shape == other.shape else None
                )
            if row["contender"] == "cpu":
                continue
            if "peak_allocated_bytes" in row:
                missing = max(0, whole["peak_allocated_bytes"] - row["peak_allocated_bytes"])
                row["bound_s"] = max(whole["seconds"], missing / machine["h2d_bytes_per_s"])
                row["over_bound"] = row["seconds"] / row["bound_s"]


def table(rows: list[Row], machine: Row, title: str) -> str:
    """The result as text in Markdown."""
    lines = [f"# {title}", ""]
    lines.append(
        f"{machine['device']}; link {machine['h2d_bytes_per_s'] / 1e9:.1f} GB/s to the device, "
        f"{machine['d2h_bytes_per_s'] / 1e9:.1f} GB/s back; context {machine['context_bytes'] / 2**20:.0f} MiB"
    )
    for workload in dict.fromkeys(row["workload"] for row in rows):
        group = [row for row in rows if row["workload"] == workload]
        lines += ["", f"## {workload}: {group[0]['source']} (a step: {group[0]['unit']})", ""]
        lines.append("| contender | setting | peak GB | ms | x whole model | x bound | same output |")
        lines.append("|---|---|---|---|---|---|---|")
        for row in group:
            setting = ", ".join(f"{name}={value}" for name, value in row["setting"].items())
            if row.get("note"):
                setting = f"{setting} ({row['note']})"
            if "seconds" not in row:
                reason = row.get("not_here") or row.get("error") or "no result"
                lines.append(f"| {row['contender']} | {setting} | | | | | {reason.replace('|', '/')} |")
                continue
            peak = row.get("peak_allocated_bytes", row.get("peak_bytes"))
            cells = [
                "" if peak is None else f"{peak / 1e9:.3g}",
                f"{row['seconds'] * 1e3:.4g}",
                _ratio(row.get("over_standard")),
                _ratio(row.get("over_bound")),
                _same(row),
            ]
            lines.append(f"| {row['contender']} | {setting} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _same(row: Row) -> str:
    if "equal" not in row:
        return ""
    if row["equal"]:
        return "bit for bit"
    difference = row.get("largest_difference")
    far = "no" if difference is None else f"off by {difference:.2g}"
    return f"{far}{', and should not be' if row['exact'] else ''}"


def plot(rows: list[Row], path: Path) -> bool:
    """Time against peak memory, one panel per workload; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [
        row for row in rows if "seconds" in row and row.get("peak_allocated_bytes", row.get("peak_bytes"))
    ]
    workloads = list(dict.fromkeys(row["workload"] for row in drawn))
    if not workloads:
        return False
    figure, axes = pyplot.subplots(1, len(workloads), figsize=(4.5 * len(workloads), 4), squeeze=False)
    for axis, workload in zip(axes[0], workloads, strict=True):
        series: dict[str, list[tuple[float, float]]] = {}
        for row in drawn:
            if row["workload"] == workload:
                name = row["contender"]
                if name == "ours":
                    name = f"ours, {row['setting'].get('policy', 'optimal')}"
                peak = row.get("peak_allocated_bytes", row.get("peak_bytes"))
                series.setdefault(name, []).append((peak / 1e9, row["seconds"] * 1e3))
        for name, points in series.items():
            points.sort()
            axis.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=1)
        axis.set(title=workload, xlabel="peak device memory, GB", ylabel="ms per step", yscale="log")
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True


def write(folder: Path, name: str, rows: list[Row], about: Row, machine: Row) -> str:
    """Write `NAME.json`, `NAME.md` and `NAME.png`; the table."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [{key: value for key, value in row.items() if key not in ("digest", "sample")} for row in rows]
    document = {"about": about, "machine": machine, "rows": kept}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    text = table(rows, machine, f"bench/gpu, {about['scale']}")
    (folder / f"{name}.md").write_text(text)
    plot(rows, folder / f"{name}.png")
    return text
