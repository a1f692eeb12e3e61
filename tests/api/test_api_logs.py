"""Logs over HTTP: by byte offset, without holes or repetitions, and never half a character."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import Head, job, serving
from superpipe_cluster.api.logs import whole_characters


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def client(head: Head) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {head.tokens['alice']}"}
    with httpx.Client(base_url=head.url, headers=headers, trust_env=False) as opened:
        yield opened


@pytest.fixture
def job_id(client: httpx.Client) -> str:
    return client.post("/v1/jobs", json={"spec": job()}).json()["id"]


def piece(client: httpx.Client, job_id: str, **query: float) -> dict[str, object]:
    answer = client.get(f"/v1/jobs/{job_id}/logs", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_before_the_first_line(client: httpx.Client, job_id: str) -> None:
    assert piece(client, job_id) == {"text": "", "next_offset": 0, "size": 0, "ended": False}


@pytest.mark.parametrize("limit", [1, 3, 5, 64])
def test_pieces_join_to_the_whole(head: Head, client: httpx.Client, job_id: str, limit: int) -> None:
    text = "schön 漢字 😀\n" * 5
    head.service.run(job_id)
    head.service.write_log(job_id, text.encode())
    got, offset = "", 0
    while offset < len(text.encode()):
        said = piece(client, job_id, offset=offset, limit=limit)
        assert said["text"]
        got += str(said["text"])
        offset = int(str(said["next_offset"]))
    assert got == text


def test_half_a_character_waits_for_its_other_half(head: Head, client: httpx.Client, job_id: str) -> None:
    head.service.run(job_id)
    whole = "é".encode()
    head.service.write_log(job_id, b"a" + whole[:1])
    assert piece(client, job_id)["next_offset"] == 1
    head.service.write_log(job_id, whole[1:])
    assert piece(client, job_id, offset=1)["text"] == "é"
    head.service.write_log(job_id, whole[:1])
    head.service.finish(job_id)
    # Its other half will never come.
    assert piece(client, job_id, offset=3) == {"text": "\ufffd", "next_offset": 4, "size": 4, "ended": True}


def test_the_end_is_said_with_the_last_byte_and_not_before(
    head: Head, client: httpx.Client, job_id: str
) -> None:
    head.service.run(job_id)
    head.service.write_log(job_id, b"0123456789")
    assert piece(client, job_id, offset=10)["ended"] is False
    head.service.finish(job_id)
    assert piece(client, job_id, limit=5)["ended"] is False
    assert piece(client, job_id, offset=5)["ended"] is True
    assert piece(client, job_id, offset=10)["ended"] is True


def test_waiting_ends_with_news(head: Head, client: httpx.Client, job_id: str) -> None:
    head.service.run(job_id)
    timer = threading.Timer(0.3, head.service.write_log, (job_id, b"news\n"))
    timer.start()
    began = time.monotonic()
    said = piece(client, job_id, wait_s=10)
    timer.join()
    assert said["text"] == "news\n"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("log", "lines", "text"),
    [
        (b"", 3, ""),
        (b"one\ntwo\nthree\n", 0, ""),
        (b"one\ntwo\nthree\n", 1, "three\n"),
        (b"one\ntwo\nthree\n", 2, "two\nthree\n"),
        (b"one\ntwo\nthree\n", 3, "one\ntwo\nthree\n"),
        (b"one\ntwo\nthree\n", 9, "one\ntwo\nthree\n"),
        (b"one\ntwo\nthr", 1, "thr"),
        (b"one\ntwo\nthr", 2, "two\nthr"),
        (b"\n\n\n", 2, "\n\n"),
    ],
)
def test_the_last_lines(
    head: Head, client: httpx.Client, job_id: str, log: bytes, lines: int, text: str
) -> None:
    head.service.write_log(job_id, log)
    assert piece(client, job_id, tail=lines)["text"] == text


def test_the_last_lines_of_a_long_log(head: Head, client: httpx.Client, job_id: str) -> None:
    # Longer than the block in which line ends are looked for.
    lines = [f"{number} {'x' * 1000}\n" for number in range(200)]
    head.service.write_log(job_id, "".join(lines).encode())
    assert piece(client, job_id, tail=150, limit=2**20)["text"] == "".join(lines[50:])


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(text=st.text(max_size=40), cuts=st.lists(st.integers(0, 160), max_size=6))
def test_text_cut_anywhere_comes_out_whole(text: str, cuts: list[int]) -> None:
    data = text.encode("utf-8")
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    got, offset = "", 0
    for end in ends:
        part, used = whole_characters(data[offset:end], final=end == len(data))
        got, offset = got + part, offset + used
    assert got == text
