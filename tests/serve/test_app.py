"""What the routes make of a question before the engine sees it: conversations by the tokenizer's own template."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from superpipe_cluster.language_models import load_tokenizer
from superpipe_cluster.serving.app import OpenAIApp
from superpipe_cluster.serving.asking import Request, Said
from superpipe_cluster.serving.engine import Limits
from superpipe_cluster.spec import ModelSection

WORDS = ["<s>", "</s>", "user", "assistant", "system", "hello", "there", ":", "?"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
    "{{ m.role }} : {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


class Listener:
    """In the place of the engine: takes what is asked and answers `yes`."""

    makes_text = True
    limits = Limits(context=32, max_requests=1, queue=0)

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def submit(self, *requests: Request) -> None:
        self.asked += requests
        for request in requests:
            request.hear(Said("yes", "stop", 1))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return load_tokenizer(ModelSection(source=None, config={"model_type": "llama"}, tokenizer=str(folder)))


async def ask(tokenizer: Any, turns: list[dict[str, str]]) -> tuple[httpx.Response, Listener]:
    listener = Listener()
    app = OpenAIApp(listener, tokenizer, max_tokens=8).build()  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://worker") as client:
        return await client.post("/v1/chat/completions", json={"model": "m", "messages": turns}), listener


def run(tokenizer: Any, turns: list[dict[str, str]]) -> tuple[httpx.Response, Listener]:
    return asyncio.run(ask(tokenizer, turns))


def test_a_conversation_is_written_by_the_tokenizers_template(tokenizer: Any) -> None:
    answer, listener = run(tokenizer, [{"role": "user", "content": "hello there"}])
    assert answer.json()["choices"][0]["message"] == {"role": "assistant", "content": "yes"}
    (request,) = listener.asked
    assert " ".join(WORDS[token] for token in request.prompt) == "<s> user : hello there </s> assistant :"
    assert request.max_tokens == 8
    assert answer.json()["usage"] == {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}


def test_what_the_template_refuses_is_said_with_its_words(tokenizer: Any) -> None:
    answer, listener = run(tokenizer, [{"role": "system", "content": "hello"}])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"
    assert "no system turns here" in answer.json()["error"]["message"]
    assert not listener.asked


def test_an_answer_is_as_long_as_there_is_room_for(tokenizer: Any) -> None:
    _, listener = run(tokenizer, [{"role": "user", "content": "hello " * 20}])
    assert len(listener.asked[0].prompt) + listener.asked[0].max_tokens == Listener.limits.context
    answer, _ = run(tokenizer, [{"role": "user", "content": "hello " * 30}])
    assert answer.json()["error"]["code"] == "context_length_exceeded"
