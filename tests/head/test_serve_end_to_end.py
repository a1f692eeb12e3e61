"""A served model in a real cluster: submitted, asked by the `openai` client, killed, idle, back, and cancelled."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

import round_figures
from superpipe_cluster import spec
from superpipe_cluster.client import Client
from superpipe_cluster.execution.remains import last_child
from superpipe_cluster.head.cluster import UpOptions, down, up
from superpipe_cluster.head.home import Home
from waiting import wait_until

JOB = {
    "kind": "serve",
    "name": "tiny",
    "model": {
        "config": {
            "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8,
            "num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.2,
        }
    },
    "serve": {"max_requests": 4, "max_tokens": 8},
    "resources": {"gpu_memory": "3MiB"},
}  # fmt: skip


MIB = 2**20

#: Holds its bytes until a file is there.
NEIGHBOUR = """
import time
from pathlib import Path

def main(job):
    while not Path(job.params["until"]).exists() and not job.should_stop:
        time.sleep(0.05)
"""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    home = Home(tmp_path_factory.mktemp("lab") / "home")
    up(UpOptions(home.root, port=port, devices=("cpu:8MiB@2GB/s",)))
    round_figures.give_to(home, speed=100)
    yield home
    down(home.root)


def test_an_idle_model_gives_back_what_it_has_no_use_for(home: Home, tmp_path: Path) -> None:
    url, token = home.read_cluster().url, home.token.read_text()
    served = {
        **JOB,
        "serve": {"max_requests": 4, "max_tokens": 8, "idle_after": "1s"},
        "resources": {"gpu_memory": "3MiB..6MiB"},
    }
    program, until = tmp_path / "neighbour.py", tmp_path / "until"
    program.write_text(NEIGHBOUR)
    with (
        Client(url, token) as client,
        openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as asking,
    ):

        def answer() -> str | None:
            try:
                asked = asking.completions.create(model="tiny", prompt="def f(", temperature=0)
            except (openai.InternalServerError, openai.NotFoundError):
                state = client.show(job.id)
                assert not state.is_over, state.message
                return None
            return asked.choices[0].text

        def budget() -> int:
            return client.show(job.id).promised_bytes

        job = client.submit(spec.parse(served))
        said = wait_until(answer, "the model answers", 100)
        wait_until(lambda: budget() == 3 * MIB, "it has given back all but its guarantee", 30)
        wait_until(lambda: client.show(job.id).k == 1, "it is as small in that", 30)
        idle = client.show(job.id)
        assert (idle.state, idle.most_bytes) == ("RUNNING", 3 * MIB)
        (placed,) = (event.data["budget_bytes"] for event in idle.events if event.kind == "placed")
        assert placed == 6 * MIB
        asks = [event.data["why"] for event in idle.events if event.kind == "resize_asked"]
        assert asks == ["its program has no use for more now"]

        neighbour = client.submit(
            spec.parse(
                {
                    "kind": "train",
                    "name": "neighbour",
                    "worker": str(program),
                    "params": {"until": str(until)},
                    "resources": {"gpu_memory": "5MiB"},
                }
            )
        )
        wait_until(lambda: client.show(neighbour.id).state == "RUNNING", "a second job runs beside it", 60)
        assert answer() == said
        beside = client.show(job.id)
        assert (beside.state, beside.promised_bytes) == ("RUNNING", 3 * MIB)
        assert sum(event.kind == "resize_asked" for event in beside.events) == 1, "nobody had to ask for room"
        assert beside.peak_bytes <= 6 * MIB
        until.touch()
        wait_until(
            lambda: answer() == said and budget() == 6 * MIB, "it has them back once they are free", 30
        )
        client.cancel(job.id)
        ended = client.wait(job.id, timeout_s=40)
        assert (ended.state, ended.attempt) == ("CANCELLED", 1)


def test_a_served_model_from_submit_to_cancel(home: Home) -> None:
    url, token = home.read_cluster().url, home.token.read_text()
    with (
        Client(url, token) as client,
        openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as asking,
    ):

        def answers() -> str | None:
            try:
                return ask(0)
            except (openai.InternalServerError, openai.NotFoundError):
                state = client.show(job.id)
                assert not state.is_over, state.message
                return None

        def ask(number: int) -> str:
            asked = asking.completions.create(model="tiny", prompt=f"def f{number}(", temperature=0)
            return asked.choices[0].text

        job = client.submit(spec.parse(JOB))
        assert job.plan is not None, "the worker's probe made a plan"
        first = wait_until(answers, "the model answers", 100)
        assert [model.id for model in asking.models.list()] == ["tiny"]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, (0, 1, 2, 3) * 2))
        assert together[0] == together[4] == first
        assert len(asking.embeddings.create(model="tiny", input="x").data[0].embedding) == 128

        child = last_child(home.job(job.id))
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(openai.InternalServerError) as lost:
            wait_until(lambda: ask(0) and None, "it does not answer", 10)
        assert lost.value.status_code == 503
        assert int(lost.value.response.headers["retry-after"]) > 0
        assert wait_until(answers, "the model is back", 100) == first
        assert client.show(job.id).attempt == 2

        client.cancel(job.id)
        assert client.wait(job.id, timeout_s=40).state == "CANCELLED"
        with pytest.raises(openai.NotFoundError):
            ask(0)
