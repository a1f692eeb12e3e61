"""OpenAI's routes on the head's door: who is asked, what is passed on, and what is said when nobody answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serving import Head, serving
from superpipe_cluster import spec
from superpipe_cluster.api.views import MAX_BODY_BYTES
from superpipe_cluster.client import Client
from superpipe_cluster.lifecycle import events
from superpipe_cluster.serving.house import open_house
from waiting import wait_until

SERVE = {"kind": "serve", "model": {"config": {"model_type": "llama", "hidden_size": 64}}}


class FakeWorker:
    """Speaks at a job's door in the place of a model; its answer says who answered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[dict[str, Any]] = []
        self.left = threading.Event()
        self.go_on = threading.Event()
        self.status, self.headers = 200, {}

    def app(self) -> Starlette:
        paths = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
        return Starlette(routes=[Route(path, self._answer, methods=["POST"]) for path in paths])

    async def _answer(self, request: Request) -> Response:
        asked = json.loads(await request.body())
        self.asked.append(asked)
        if self.status != 200:
            return JSONResponse(
                {"error": {"message": "full", "code": "queue_full"}}, self.status, self.headers
            )
        if asked.get("stream"):
            return StreamingResponse(self._events(), media_type="text/event-stream")
        if asked.get("prompt") == "wait":
            while not self.go_on.is_set() and not await request.is_disconnected():
                await asyncio.sleep(0.01)
            if not self.go_on.is_set():
                self.left.set()
        return JSONResponse({"object": "text_completion", "choices": [{"index": 0, "text": self.name}]})

    async def _events(self) -> AsyncIterator[str]:
        try:
            for number in range(10_000):
                yield f"data: {json.dumps({'choices': [{'index': 0, 'text': str(number)}]})}\n\n"
                if number == 2:
                    while not self.go_on.is_set():
                        await asyncio.sleep(0.01)
                    return
        except asyncio.CancelledError:
            self.left.set()
            raise


class Lab:
    """A head, its users' jobs, and workers behind them."""

    def __init__(self, head: Head, stack: ExitStack) -> None:
        self.head = head
        self._stack = stack

    def submit(self, name: str, who: str = "alice") -> str:
        with Client(self.head.url, self.head.tokens[who]) as client:
            return client.submit(spec.parse({**SERVE, "name": name})).id

    def serve(self, name: str, who: str = "alice", says: str | None = None) -> FakeWorker:
        job_id = self.submit(name, who)
        self.head.service.run(job_id)
        worker = FakeWorker(says or name)
        self._stack.enter_context(open_house(self.head.service.door(job_id), worker.app()))
        return worker

    def client(self, who: str = "bob", **options: Any) -> openai.OpenAI:
        made = openai.OpenAI(
            base_url=f"{self.head.url}/v1", api_key=self.head.tokens[who], **{"max_retries": 0, **options}
        )
        self._stack.callback(made.close)
        return made

    def post(self, content: bytes | None = None, **asked: Any) -> httpx.Response:
        body = content if content is not None else json.dumps({"model": "m", "prompt": "x", **asked}).encode()
        headers = {"Authorization": f"Bearer {self.head.tokens['bob']}"}
        return httpx.post(f"{self.head.url}/v1/completions", content=body, headers=headers, trust_env=False)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    # Deeper than the name of a unix socket can be.
    root = tmp_path / ("deep" * 20) / ("deeper" * 10)
    root.mkdir(parents=True)
    with serving(root) as head, ExitStack() as stack:
        yield Lab(head, stack)


def text(client: openai.OpenAI, model: str, **asked: Any) -> str:
    return client.completions.create(model=model, **{"prompt": "x", **asked}).choices[0].text


def test_a_model_is_called_as_its_job_and_ones_own_comes_first(lab: Lab) -> None:
    lab.serve("m", "alice", says="alice's")
    lab.serve("m", "bob", says="bob's")
    lab.serve("other", "alice")
    assert text(lab.client("bob"), "m") == "bob's"
    assert text(lab.client("alice"), "m") == "alice's"
    assert text(lab.client("admin"), "m") == "bob's", "the newest"
    assert text(lab.client("bob"), "1") == "alice's", "by its id"
    served = {model.id: model.owned_by for model in lab.client("alice").models.list()}
    assert served == {"m": "alice", "other": "alice"}


def test_what_is_asked_goes_through_as_it_is(lab: Lab) -> None:
    worker = lab.serve("m")
    text(lab.client(), "m", prompt=["a", "b"], temperature=0.5, extra_body={"anything": {"at": "all"}})
    assert worker.asked == [
        {"model": "m", "prompt": ["a", "b"], "temperature": 0.5, "anything": {"at": "all"}}
    ]


def test_a_job_that_does_not_run_is_503_and_one_that_has_ended_404(lab: Lab) -> None:
    job_id = lab.submit("m")
    for event in (events.Placed("cpu:0", 2**30), events.Started()):
        waiting = lab.post()
        assert waiting.status_code == 503
        assert waiting.json()["error"]["code"] == "model_not_ready"
        assert int(waiting.headers["retry-after"]) > 0
        lab.head.service.happen(job_id, event)
        assert [model.id for model in lab.client().models.list()] == (
            ["m"] if event == events.Started() else []
        )
    loading = lab.post()
    assert (loading.status_code, loading.json()["error"]["code"]) == (503, "model_not_ready")
    lab.head.service.finish(job_id)
    gone = lab.post()
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert gone.json()["error"]["param"] == "model"


def test_the_openai_client_comes_again_by_itself(lab: Lab) -> None:
    worker = lab.serve("m")
    worker.status, worker.headers = 429, {"Retry-After": "0.05"}
    asking = lab.client(max_retries=5)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(text, asking, "m")
        wait_until(lambda: len(worker.asked) >= 2, "it has come again")
        worker.status = 200
        assert answer.result(20) == "m"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[1]", "model"),
        (b'{"model": 7}', "model"),
        (b"[" * 100_000, None),
        (b"\xff", None),
    ],
    ids=["empty", "broken", "list", "number", "deep", "bytes"],
)
def test_broken_questions(lab: Lab, body: bytes, param: str | None) -> None:
    answer = lab.post(body)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["param"] == param


def test_strangers_and_giants(lab: Lab) -> None:
    lab.serve("m")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{lab.head.url}/v1", api_key="nobody", max_retries=0).models.list()
    giant = lab.post(prompt="x" * MAX_BODY_BYTES)
    assert giant.status_code == 413
    assert giant.json()["error"]["type"] == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        lab.client().models.retrieve("none")


def test_a_stream_comes_as_it_is_made(lab: Lab) -> None:
    worker = lab.serve("m")
    stream = iter(lab.client().completions.create(model="m", prompt="x", stream=True))
    assert [next(stream).choices[0].text for _ in range(3)] == ["0", "1", "2"], "while the worker waits"
    worker.go_on.set()
    assert list(stream) == []


def test_who_leaves_is_gone_for_the_worker_too(lab: Lab) -> None:
    worker = lab.serve("m")
    stream = lab.client().completions.create(model="m", prompt="x", stream=True)
    next(iter(stream))
    stream.close()
    assert worker.left.wait(10)
    worker.left.clear()
    with pytest.raises(openai.APITimeoutError):
        text(lab.client(timeout=0.3), "m", prompt="wait")
    assert worker.left.wait(10)


def test_questions_under_way_keep_nobody_from_the_queue(lab: Lab) -> None:
    worker = lab.serve("m")
    client = lab.client()
    with ThreadPoolExecutor(64) as pool:
        waiting = [pool.submit(text, client, "m", prompt="wait") for _ in range(64)]
        wait_until(lambda: len(worker.asked) == 64, "all have been asked")
        with Client(lab.head.url, lab.head.tokens["alice"]) as other:
            assert [job.name for job in other.queue()] == ["m"]
        worker.go_on.set()
        assert [answer.result(20) for answer in waiting] == ["m"] * 64
