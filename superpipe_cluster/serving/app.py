"""OpenAI's routes over an engine, as the worker speaks them at its socket; the head's door passes them on.

Owns reading requests, answers as a whole and as server-sent events, and cancelling for those who leave. Who may ask was
found out by the door.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from superpipe_cluster.errors import first_line
from superpipe_cluster.language_models import Tokenizer
from superpipe_cluster.serving import wire
from superpipe_cluster.serving.asking import News, Request, Said, Vector
from superpipe_cluster.serving.connection import Gone, while_waited_for
from superpipe_cluster.serving.engine import Engine
from superpipe_cluster.serving.faults import Fault


class OpenAIApp:
    """The routes.

    Args:
        engine: answers.
        tokenizer: the model's.
        max_tokens: of an answer whose request does not say.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def build(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={Fault: _refuse, Gone: _nobody})

    async def chat(self, http: HttpRequest) -> Response:
        """`POST /v1/chat/completions`."""
        asked = wire.read(wire.AskedChat, await http.body())
        tokens = self._conversation([{"role": m.role, "content": m.content} for m in asked.messages])
        shape = _Chat(asked.model, asked.with_usage)
        most = asked.max_completion_tokens or asked.max_tokens
        return await self._text(http, asked, [("messages", tokens)], most, shape)

    async def completions(self, http: HttpRequest) -> Response:
        """`POST /v1/completions`."""
        asked = wire.read(wire.AskedCompletion, await http.body())
        prompts = [("prompt", self._tokens(prompt, "prompt")) for prompt in asked.prompt]
        return await self._text(
            http, asked, prompts, asked.max_tokens, _Completion(asked.model, asked.with_usage)
        )

    async def embeddings(self, http: HttpRequest) -> Response:
        """`POST /v1/embeddings`: the mean of the last hidden states over the input's tokens, of length one."""
        asked = wire.read(wire.AskedEmbedding, await http.body())
        inputs = [self._embedded(text) for text in asked.input]
        for tokens in inputs:
            self._check_length(len(tokens), "input")
        talk = _Talk()
        self._engine.submit(*talk.ask([Request(tokens, talk.hear(n)) for n, tokens in enumerate(inputs)]))
        vectors: dict[int, list[float]] = {}

        async def collect() -> None:
            async for index, news in talk.news():
                if isinstance(news, Vector):
                    vectors[index] = news.values

        await while_waited_for(http, collect())
        data = [wire.embedding(index, vectors[index], asked.encoding_format) for index in sorted(vectors)]
        counted = wire.usage(sum(map(len, inputs)))
        return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": counted})

    async def _text(
        self,
        http: HttpRequest,
        asked: wire.AskedText,
        prompts: Sequence[tuple[str, list[int]]],
        most: int | None,
        shape: _Shape,
    ) -> Response:
        if not self._engine.makes_text:
            raise Fault(400, "this model makes vectors and no text", code="no_text", param="model")
        talk = _Talk()
        requests: list[Request] = []
        for index, (param, tokens) in enumerate(prompts):
            left = self._engine.limits.context - len(tokens)
            self._check_length(len(tokens) + (most or 1), param)
            length = most or min(self._max_tokens, left)
            requests.append(Request(tokens, talk.hear(index), length, asked.sampling, tuple(asked.stop)))
        self._engine.submit(*talk.ask(requests))
        if asked.stream:
            return StreamingResponse(_events(talk, shape), media_type="text/event-stream")
        return JSONResponse(await while_waited_for(http, _whole(talk, shape)))

    def _conversation(self, turns: list[dict[str, str]]) -> list[int]:
        """By the tokenizer's template; without one, a line `role: content` for each turn."""
        pretrained = self._tokenizer.pretrained
        if pretrained is not None and pretrained.chat_template:
            try:
                return pretrained.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            except Exception as error:  # a template refuses in its own words what it was not made for
                message = f"messages: {first_line(error)}"
                raise Fault(400, message, code="invalid_value", param="messages") from None
        return self._tokenizer.encode("".join(f"{t['role']}: {t['content']}\n" for t in turns) + "assistant:")

    def _embedded(self, text: str | list[int]) -> list[int]:
        """The tokens of a text to embed: an encoder was trained with its tokenizer's special tokens around it."""
        if isinstance(text, str) and not self._engine.makes_text and self._tokenizer.pretrained is not None:
            return self._tokenizer.pretrained.encode(text)
        return self._tokens(text, "input")

    def _tokens(self, text: str | list[int], param: str) -> list[int]:
        if isinstance(text, str):
            return self._tokenizer.encode(text) or [self._tokenizer.eos_token_id]
        if not text or not all(0 <= token < len(self._tokenizer) for token in text):
            raise Fault(400, f"{param}: not tokens of this model", code="invalid_value", param=param)
        return text

    def _check_length(self, tokens: int, param: str) -> None:
        longest = self._engine.limits.context
        if tokens > longest:
            raise Fault(
                400,
                f"{tokens} tokens are more than the {longest} that a request to this model may have, "
                "prompt and answer together",
                code="context_length_exceeded",
                param=param,
            )


# ---- listening to the engine ---------------------------------------------------------------------------


class _Talk:
    """What the engine says of some requests, brought from its thread into the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        self.requests: list[Request] = []

    def ask(self, requests: list[Request]) -> list[Request]:
        self.requests = requests
        return requests

    def hear(self, index: int) -> Callable[[News], None]:
        def hear(news: News) -> None:
            self._loop.call_soon_threadsafe(self._heard.put_nowait, (index, news))

        return hear

    async def news(self) -> AsyncIterator[tuple[int, News]]:
        """All news until every request is answered; a fault is raised. Who stops listening cancels what is left."""
        open_requests = len(self.requests)
        try:
            while open_requests:
                index, news = await self._heard.get()
                if isinstance(news, Fault):
                    raise news
                if isinstance(news, Vector) or news.finish is not None:
                    open_requests -= 1
                yield index, news
        finally:
            for request in self.requests:
                request.cancelled = True


# ---- what answers look like ----------------------------------------------------------------------------


@dataclass
class _Shape:
    """What answers of one route look like."""

    model: str
    with_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    prefix = kind = chunk_kind = ""

    def whole(self, index: int, text: str, finish: str) -> dict[str, Any]:
        raise NotImplementedError

    def part(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def first(self) -> list[dict[str, Any]]:
        """Choices of the chunk that comes before any text; none for no such chunk."""
        return []

    def envelope(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {
            "id": f"{self.prefix}-{self.name}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }
        return {**head, "choices": choices, **more}


class _Chat(_Shape):
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def whole(self, index: int, text: str, finish: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def part(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}

    def first(self) -> list[dict[str, Any]]:
        return [{**self.part(0, "", None), "delta": {"role": "assistant", "content": ""}}]


class _Completion(_Shape):
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def whole(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

    part = whole


def _counted(talk: _Talk, made: dict[int, int]) -> dict[str, int]:
    return wire.usage(sum(len(request.prompt) for request in talk.requests), sum(made.values()))


async def _whole(talk: _Talk, shape: _Shape) -> dict[str, Any]:
    texts = [""] * len(talk.requests)
    ends: dict[int, str] = {}
    made: dict[int, int] = {}
    async for index, news in talk.news():
        assert isinstance(news, Said)
        texts[index] += news.text
        made[index] = news.tokens
        if news.finish is not None:
            ends[index] = news.finish
    choices = [shape.whole(index, text, ends[index]) for index, text in enumerate(texts)]
    return shape.envelope(shape.kind, choices, usage=_counted(talk, made))


async def _events(talk: _Talk, shape: _Shape) -> AsyncIterator[str]:
    nothing = {"usage": None} if shape.with_usage else {}
    made: dict[int, int] = {}
    if first := shape.first():
        yield _event(shape.envelope(shape.chunk_kind, first, **nothing))
    try:
        async for index, news in talk.news():
            assert isinstance(news, Said)
            made[index] = news.tokens
            yield _event(
                shape.envelope(shape.chunk_kind, [shape.part(index, news.text, news.finish)], **nothing)
            )
    except Fault as fault:
        yield _event(fault.body)
        return
    if shape.with_usage:
        yield _event(shape.envelope(shape.chunk_kind, [], usage=_counted(talk, made)))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def _refuse(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, Fault)
    return JSONResponse(error.body, error.status, error.headers)


def _nobody(_: HttpRequest, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx calls it; there is nobody to read it
