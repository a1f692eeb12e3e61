"""What all of the wire format is made of: lenient answers, strict requests, numbers that JSON can carry."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer

#: The largest request body that is read: a job file and a program are text written by a person.
MAX_BODY_BYTES = 4 * 2**20


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity, a diverged run has both: they travel as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


# Looked at when they are written, and not when they are read: a client reads ten thousand jobs at once.
JsonObject = Annotated[dict[str, Any], PlainSerializer(finite, return_type=dict[str, Any])]
#: A measured number; null when it is not finite (a loss that became NaN).
Metric = Annotated[float | None, PlainSerializer(finite, return_type=float | None)]


class View(BaseModel):
    """Base of what is answered: fields that this version does not know are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Request(BaseModel):
    """Base of what is taken: a field that this version does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
