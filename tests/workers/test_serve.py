"""The serving worker behind the head's door, asked by the `openai` client as it is."""

from __future__ import annotations

import os
import re
import runpy
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from plain_runs.generation import greedy, random_model
from serving import Head, serving
from superpipe_cluster import bundled, spec
from superpipe_cluster.client import Client
from superpipe_cluster.errors import BadInput
from superpipe_cluster.execution.supervisor import Supervisor
from waiting import wait_until
from worker_runs import Run

LLAMA = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
JOB = {
    "kind": "serve", "name": "tiny", "model": {"config": LLAMA},
    "serve": {"max_requests": 8, "queue": 32, "max_tokens": 16, "idle_after": "1s"},
    "resources": {"gpu_memory": "2400KiB..3MiB"},
}  # fmt: skip
BUDGET = 3 << 20
SIZE = 5_000_000  # of the model: less than a part of it is on the device at once
PROMPTS = [f"{'import ' * (n % 5)}def f{n}(" for n in range(32)]


class Served:
    """A worker at work, and a head whose door leads to it."""

    def __init__(self, root: Path, head: Head) -> None:
        self.head = head
        self.run = Run(root / "job", JOB, BUDGET)
        for_head = {
            name: value for name, value in JOB.items() if name != "resources"
        }  # its planner says 1 GiB
        with Client(head.url, head.tokens["alice"]) as client:
            self.id = client.submit(spec.parse(for_head)).id
        head.service.run(self.id)
        head.service.door = lambda job_id: self.run.folder.door  # type: ignore[method-assign]
        self.supervisor = self.start()

    def start(self) -> Supervisor:
        self.supervisor = self.run.start()
        wait_until(lambda: self.answers() or self.supervisor.wait(0), "the worker answers", 60)
        assert self.supervisor.wait(0) is None, self.run.log()
        return self.supervisor

    def answers(self) -> bool:
        return self.ask(max_tokens=1).status_code == 200

    def ask(self, path: str = "completions", **fields: Any) -> httpx.Response:
        asked = {"model": "tiny", "prompt": "x", **fields}
        token = {"Authorization": f"Bearer {self.head.tokens['bob']}"}
        return httpx.post(
            f"{self.head.url}/v1/{path}", json=asked, headers=token, timeout=60, trust_env=False
        )

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.head.url}/v1", api_key=self.head.tokens["bob"], max_retries=0)

    def progress(self) -> dict[str, Any]:
        self.run.progress.update(self.supervisor.take_progress())
        return self.run.progress


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("lab")
    with serving(root / "head") as head:
        made = Served(root, head)
        yield made
        made.supervisor.stop("cancelled")
        end = made.supervisor.wait(20)
        assert end is not None
        assert end.reason == "cancelled", made.run.log()


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client() as made:
        yield made


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """What transformers itself answers to each prompt, alone and greedily."""
    return dict(zip(PROMPTS, greedy(LLAMA, PROMPTS, 16), strict=True))


def test_32_clients_at_once_each_get_what_transformers_says_alone(
    served: Served, client: openai.OpenAI, alone: dict[str, str]
) -> None:
    def ask(prompt: str) -> str:
        return client.completions.create(model="tiny", prompt=prompt, temperature=0).choices[0].text

    def floor() -> int:
        told = wait_until(
            lambda: p if not (p := served.progress())["metrics"]["active"] else None, "it is idle"
        )
        return told["floor_bytes"]

    before = floor()
    with ThreadPoolExecutor(32) as pool:
        answers = dict(zip(PROMPTS, pool.map(ask, PROMPTS), strict=True))
    assert answers == alone
    assert len(set(answers.values())) > 20, "the model says something of its own to most prompts"
    progress = wait_until(
        lambda: p if (p := served.progress())["metrics"].get("requests", 0) >= 32 else None, "told"
    )
    assert progress["loads"] > 2 * progress["units"]
    assert progress["peak_bytes"] <= BUDGET < SIZE
    made, passes = progress["metrics"]["tokens"], progress["loads"] / progress["units"]
    assert made > 2 * passes, "a pass serves many"
    assert floor() == before, "what it needs is what it rehearsed, however much it has answered at once"


def test_chat_streams_what_it_says_at_once(client: openai.OpenAI) -> None:
    turns: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    whole = client.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=12)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    text = "system: Be brief.\nuser: Hi\nassistant:"  # a tokenizer without a template
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(text), 12)
    same = client.completions.create(model="tiny", prompt=text, temperature=0, max_tokens=12)
    assert same.choices[0].text == whole.choices[0].message.content

    stream = client.chat.completions.create(
        model="tiny", messages=turns, temperature=0, max_completion_tokens=12, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])


def test_a_seed_draws_the_same_whoever_else_is_there(client: openai.OpenAI) -> None:
    def draw(seed: int) -> str:
        asked = client.completions.create(
            model="tiny", prompt="a", seed=seed, temperature=1.2, top_p=0.9, max_tokens=20
        )
        return asked.choices[0].text

    quiet = [draw(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, (1, 2, 3, 4, 5, 6, 1, 2)))
    assert together[:2] == together[6:] == quiet
    assert len(set(together)) == 6


def test_an_answer_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    free = client.completions.create(model="tiny", prompt=PROMPTS[3], temperature=0, max_tokens=16).choices[0]
    stop = free.text[5:7]
    cut = client.completions.create(
        model="tiny", prompt=PROMPTS[3], temperature=0, max_tokens=16, stop=[stop, "never"]
    )
    assert cut.choices[0].text == free.text[: free.text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    pieces = client.completions.create(
        model="tiny", prompt=PROMPTS[3], temperature=0, max_tokens=16, stop=stop, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == cut.choices[0].text


def test_embeddings_are_the_mean_of_the_last_hidden_states(client: openai.OpenAI) -> None:
    model = random_model(LLAMA)
    answer = client.embeddings.create(model="tiny", input=["first text", "second"])
    assert answer.usage.prompt_tokens == len("first text") + len("second")
    for text, said in zip(("first text", "second"), answer.data, strict=True):
        with torch.no_grad():
            hidden = model.model(torch.tensor([list(text.encode())])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        assert torch.equal(torch.tensor(said.embedding), expected)
    plain = client.embeddings.create(model="tiny", input="second", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(answer.data[1].embedding)


def test_models_and_what_is_none(served: Served, client: openai.OpenAI) -> None:
    assert [(model.id, model.owned_by) for model in client.models.list()] == [("tiny", "alice")]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-5", prompt="x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.head.url}/v1", api_key="nobody", max_retries=0).models.list()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x" * 120, "max_tokens": 9}, "prompt"),
        ({"prompt": [400]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"logprobs": 3}, "logprobs"),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_said_in_openais_shape(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    answer = served.ask(**fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_whoever_leaves_is_not_answered(served: Served, client: openai.OpenAI) -> None:
    before = served.progress()["metrics"]["tokens"]
    stream = client.completions.create(model="tiny", prompt="a", max_tokens=100, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{served.head.url}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 120},
            headers={"Authorization": f"Bearer {served.head.tokens['bob']}"}, timeout=0.05, trust_env=False,
        )  # fmt: skip
    wait_until(lambda: served.progress()["metrics"]["active"] == 0, "nobody is answered")
    assert served.ask(max_tokens=1).status_code == 200
    wait_until(lambda: served.progress()["metrics"]["active"] == 0, "nobody is answered")
    assert served.progress()["metrics"]["tokens"] < before + 200


def test_a_full_queue_is_said_with_the_time_to_come_again(served: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as full:
        client.completions.create(model="tiny", prompt=["a"] * 41, max_tokens=1)
    assert int(full.value.response.headers["retry-after"]) >= 1
    assert full.value.code == "queue_full"


def test_the_cluster_takes_bytes_and_gives_them_back_while_it_answers(
    served: Served, client: openai.OpenAI, alone: dict[str, str]
) -> None:
    def ask(prompt: str) -> str:
        return client.completions.create(model="tiny", prompt=prompt, temperature=0).choices[0].text

    def in_force(budget: int) -> bool:
        return served.progress().get("budget_bytes") == budget

    smaller = 2400 << 10
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(ask, prompt) for prompt in PROMPTS[:16]]
        served.supervisor.ask_budget(smaller, 1)
        wait_until(lambda: in_force(smaller), "it has given bytes back")
        assert served.progress()["budget_refused"] is None
        served.supervisor.ask_pause(True)
        wait_until(lambda: served.progress().get("paused"), "it stands still")
        served.supervisor.ask_budget(BUDGET, 2)
        served.supervisor.ask_pause(False)
        wait_until(lambda: in_force(BUDGET), "it has them again")
        assert [answer.result(60) for answer in answers] == [alone[prompt] for prompt in PROMPTS[:16]]


def test_an_idle_model_is_small_and_grows_back(
    served: Served, client: openai.OpenAI, alone: dict[str, str]
) -> None:
    def is_small(budget: int) -> bool:
        told = served.progress()
        return (told["k"], told.get("wants_bytes"), told.get("budget_bytes", BUDGET)) == (1, 0, budget)

    wait_until(lambda: is_small(BUDGET), "it is small, and has use for no more than its guarantee", 20)
    assert served.progress()["held_bytes"] < BUDGET / 4
    smaller = 2400 << 10
    served.supervisor.ask_budget(smaller, 3)
    wait_until(lambda: is_small(smaller), "it is as small in the budget that it is left", 20)
    said = client.completions.create(model="tiny", prompt=PROMPTS[7], temperature=0)
    assert said.choices[0].text == alone[PROMPTS[7]]

    def units(budget: int) -> int | None:
        assert served.answers()  # or it is idle again before this is looked at
        told = served.progress()
        is_large = told["k"] > 1 and (told["wants_bytes"], told["budget_bytes"]) == (None, budget)
        return told["k"] if is_large else None

    before = wait_until(lambda: units(smaller), "it has use for all of it, and holds what it has") or 0
    served.supervisor.ask_budget(BUDGET, 4)
    assert (wait_until(lambda: units(BUDGET), "it is as large as ever") or 0) > before


def test_a_killed_worker_is_a_clean_503_and_comes_back(served: Served, client: openai.OpenAI) -> None:
    stream = client.completions.create(model="tiny", prompt="a", max_tokens=120, stream=True)
    next(iter(stream))
    os.kill(int(served.run.folder.pid.read_text().split()[0]), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="does not answer"):
        list(stream)
    refused = served.ask()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "model_not_ready"
    assert served.run.finish(served.supervisor).reason == "worker_lost"
    served.start()
    assert served.ask(max_tokens=3).status_code == 200


def test_a_cancelled_job_finishes_what_it_has_begun(served: Served, client: openai.OpenAI) -> None:
    pieces: list[Any] = []
    # As few tokens as leave the answer unfinished when the worker stands still: a slow machine has to be done in time.
    for max_tokens in (8, 16, 32, 64, 120):
        stream = iter(
            client.completions.create(
                model="tiny", prompt="a", max_tokens=max_tokens, temperature=0, stream=True
            )
        )
        pieces = [next(stream)]
        served.supervisor.ask_pause(True)
        wait_until(lambda: served.progress().get("paused"), "it stands still")
        if served.progress()["metrics"]["active"]:
            break
        served.supervisor.ask_pause(False)
        wait_until(lambda: not served.progress()["paused"], "it goes on")
    assert served.progress()["metrics"]["active"] == 1, "it is in the middle of the answer"
    served.supervisor.stop("cancelled")
    pieces += list(stream)
    assert pieces[-1].choices[0].finish_reason in ("length", "stop")
    end = served.supervisor.wait(20)
    assert end is not None
    assert end.reason == "cancelled"
    assert not served.run.folder.door.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"serve": {"context": 129}}, "serve.context: 129 tokens are more than the 128 positions"),
        (
            {"model": {"config": {"model_type": "mamba", "hidden_size": 64}}},
            "mamba cannot answer many requests",
        ),
        (
            {"model": {"config": {**LLAMA, "model_type": "diffllama", "num_key_value_heads": 2}}},
            "diffllama cannot answer many requests",
        ),
        ({"model": {"config": LLAMA, "tokenizer": "/nowhere"}}, "model.tokenizer: cannot load /nowhere"),
        ({"model": {"config": {"model_type": "vit"}}}, "cannot build vit"),
    ],
    ids=["context", "mamba", "diffllama", "tokenizer", "vit"],
)
def test_what_cannot_be_served_is_refused_when_it_is_planned(change: dict[str, Any], said: str) -> None:
    program = runpy.run_path(str(bundled.worker_path("serve")))
    with pytest.raises(BadInput, match=re.escape(said)) as refused:
        program["probe"](spec.parse({**JOB, **change})).step()
    assert refused.value.hint


def test_a_sentence_model_gives_the_vectors_of_transformers(minilm: Path, tmp_path: Path) -> None:
    texts = [
        "A cat sits on the mat.",
        "Weights are streamed.",
        "Ein ganz anderer Satz, und länger als die anderen.",
    ]
    job = {
        "kind": "serve", "name": "minilm", "model": {"source": str(minilm)},
        "serve": {"task": "embed", "context": 64, "end_after": "2s"},
    }  # fmt: skip
    run = Run(tmp_path / "job", job, 64 << 20)

    def ask(client: httpx.Client) -> tuple[Any, Any]:
        said = client.post("/v1/embeddings", json={"model": "minilm", "input": texts})
        refused = client.post("/v1/completions", json={"model": "minilm", "prompt": "x"})
        return said.json(), refused.json()

    said, refused = run.asked(ask)
    assert refused["error"]["code"] == "no_text"
    assert "nobody has asked for 2 s: ending" in run.log()
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= 64 << 20 < run.progress["model_bytes"]

    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()
    for text, one in zip(texts, said["data"], strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        assert torch.equal(torch.tensor(one["embedding"]), expected)
