"""What the engine is asked, and what it tells: the words between its thread and those who talk HTTP. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from superpipe_cluster.serving.faults import Fault


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: choose among the most likely tokens that have so much of the probability together.
        seed: the same seed draws the same tokens; None for new ones each time.
        top_k: choose among so many most likely tokens; 0 for all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """A part of an answer; the last one says why it ended: `stop` (the model's or the request's) or `length`.

    Attributes:
        text: what comes next.
        finish: None while there is more.
        tokens: made so far.
    """

    text: str
    finish: Literal["stop", "length"] | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Vector:
    """The whole answer to who asked for an embedding: a vector of length one."""

    values: list[float]


News = Said | Vector | Fault


@dataclass(eq=False)
class Request:
    """Somebody who waits.

    Attributes:
        prompt: its tokens, at least one.
        hear: told all news, in the engine's thread; the last is a `Vector`, a `Fault`, or a `Said` that is finished.
        max_tokens: of the answer; 0 for an embedding of the prompt.
        sampling: how tokens are chosen.
        stops: texts before which the answer ends.
        cancelled: set, by anybody, when nobody listens any more.
    """

    prompt: list[int]
    hear: Callable[[News], None]
    max_tokens: int = 0
    sampling: Sampling = Sampling()
    stops: tuple[str, ...] = ()
    cancelled: bool = False

    @property
    def wants_vector(self) -> bool:
        """Whether an embedding is asked for, and no text."""
        return self.max_tokens == 0

    @property
    def reserves(self) -> int:
        """Tokens whose keys and values it may come to hold."""
        return 0 if self.wants_vector else len(self.prompt) + self.max_tokens
