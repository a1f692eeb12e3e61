"""What runs have taught: measured over forecast seconds, by program, kept in the home directory.

Owns the file. Needs no torch, so that the head can write down what a job measured.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

#: A run that was further off than this was disturbed, or was another program.
_FURTHEST = 10.0
_MOST_KEPT = 1000


def profiles_folder() -> Path:
    """Where figures of devices and programs are kept."""
    return Path(os.environ.get("SPCLUSTER_HOME") or Path.home() / ".spcluster") / "profiles"


def correction_of(fingerprint: str, folder: Path | None = None) -> float:
    """Measured over forecast seconds of the last run of this program, 1 if there was none."""
    return _read(folder).get(fingerprint, 1.0)


def keep_correction(
    fingerprint: str,
    forecast_s: float,
    measured_s: float,
    *,
    corrected: float = 1.0,
    folder: Path | None = None,
) -> None:
    """Remember a run.

    Args:
        fingerprint: of its program.
        forecast_s: seconds of a step as they were forecast.
        measured_s: as they were.
        corrected: what the forecast had been multiplied by already.
        folder: where, by default in the home directory.
    """
    if not fingerprint or forecast_s <= 0 or not 1 / _FURTHEST < measured_s / forecast_s < _FURTHEST:
        return
    kept = _read(folder)
    kept.pop(fingerprint, None)
    kept[fingerprint] = corrected * measured_s / forecast_s  # last: the youngest
    path = _path(folder)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(dict(list(kept.items())[-_MOST_KEPT:]), indent=1), encoding="utf-8")
    fresh.replace(path)


def _read(folder: Path | None) -> dict[str, float]:
    try:
        stored = json.loads(_path(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): float(value) for name, value in stored.items()} if isinstance(stored, dict) else {}


def _path(folder: Path | None) -> Path:
    return (profiles_folder() if folder is None else folder) / "corrections.json"
