"""OpenAI's requests and answers, as far as they are spoken here.

Owns the fields. What OpenAI knows and this does not is refused by name when it would change the answer (`tools`,
`logprobs`, `n`), and ignored when it would not (`user`, `metadata`).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from superpipe_cluster.serving.asking import Sampling
from superpipe_cluster.serving.faults import Fault

#: Fields that would change the answer, with the values that ask for nothing.
_WITHOUT: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False, 0), "top_logprobs": (0,),
    "tools": ([],), "functions": ([],), "response_format": ({"type": "text"},), "logit_bias": ({},),
    "presence_penalty": (0,), "frequency_penalty": (0,), "modalities": (["text"],), "audio": (), "dimensions": (),
}  # fmt: skip


def _listed(value: object) -> object:
    return [] if value is None else [value] if isinstance(value, str) else value


def _prompts(value: object) -> object:
    return (
        [value]
        if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
        else value
    )


def _plain(content: object) -> object:
    """Text given in parts, as one text."""
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


Stops = Annotated[list[str], Field(max_length=4), BeforeValidator(_listed)]
#: Texts, or their tokens.
Prompts = Annotated[list[str | list[int]], Field(min_length=1, max_length=256), BeforeValidator(_prompts)]


class Asked(BaseModel):
    """What every request has."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    model: str


class StreamOptions(BaseModel):
    """About the stream itself."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    include_usage: bool = False


class AskedText(Asked):
    """What requests for text have."""

    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    stop: Stops = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(temperature, 1.0 if self.top_p is None else self.top_p, self.seed)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_plain)]


class AskedChat(AskedText):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None


class AskedCompletion(AskedText):
    """`POST /v1/completions`."""

    prompt: Prompts


class AskedEmbedding(Asked):
    """`POST /v1/embeddings`."""

    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"


Kind = TypeVar("Kind", bound=Asked)


def read(kind: type[Kind], body: bytes) -> Kind:
    """A request's body.

    Raises:
        Fault: it is not JSON, lacks something, or asks for what is not there.
    """
    try:
        said: Any = json.loads(body)
    except ValueError as error:
        raise Fault(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if isinstance(said, dict):
        for name, without in _WITHOUT.items():
            value = said.get(name)
            if value is not None and value not in without:
                raise Fault(
                    400, f"{name} is not supported: leave it out", code="unsupported_parameter", param=name
                )
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{where}: {first['msg']}" if where else "the body must be a JSON object"
        raise Fault(
            400, message, code="invalid_value", param=str(first["loc"][0]) if where else None
        ) from None


def usage(prompt: int, completion: int | None = None) -> dict[str, int]:
    """Tokens, as they are counted in answers."""
    counted = {"prompt_tokens": prompt, "total_tokens": prompt + (completion or 0)}
    return counted if completion is None else {**counted, "completion_tokens": completion}


def embedding(index: int, values: Sequence[float], encoding: Literal["float", "base64"]) -> dict[str, Any]:
    """One vector of an answer."""
    packed = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    return {
        "object": "embedding",
        "index": index,
        "embedding": list(values) if encoding == "float" else packed,
    }
