"""The job file as a JSON schema, for editors and for people.

Owns what the schema adds to the types: its dialect, and what `load` fills in. The descriptions are the
fields' own.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from superpipe_cluster.spec.job import JobSpec


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a job file; sizes and durations are strings with a pattern."""
    built: dict[str, Any] = TypeAdapter[Any](JobSpec).json_schema()
    for definition in built["$defs"].values():
        # A file without a name gets its own.
        if "kind" in definition.get("properties", {}):
            definition["required"].remove("name")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A job of spcluster",
        **built,
    }
