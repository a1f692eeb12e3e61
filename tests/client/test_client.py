"""The client against a real API: what it promises when all is well, and when the head comes and goes."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving import DEVICE, Head, job, serving
from superpipe_cluster import errors
from superpipe_cluster.client import Client
from superpipe_cluster.spec import parse
from waiting import wait_until


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def client(head: Head) -> Iterator[Client]:
    with Client(head.url, head.tokens["alice"]) as opened:
        yield opened


def test_submit_queue_show_cancel(head: Head, client: Client) -> None:
    made = client.submit(parse(job("one")))
    assert (made.state, made.user) == ("QUEUED", "alice")
    assert [each.id for each in client.queue()] == [made.id]
    assert client.show("one").spec["train"]["steps"] == 10
    assert client.cancel("one").state == "CANCELLED"
    assert client.queue() == []
    assert [each.state for each in client.queue(ended=True, user="alice")] == ["CANCELLED"]
    with pytest.raises(errors.Conflict):
        client.cancel(made.id)


def test_a_job_file_travels_with_its_program(head: Head, client: Client, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def main(job):\n    print('schön')\n", encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text("kind: train\nworker: ./mine.py\n", encoding="utf-8")
    made = client.submit(path, overrides=["max_attempts=2"])
    (tmp_path / "mine.py").write_text("changed later", encoding="utf-8")
    kept = head.service.codes[made.id]
    assert kept is not None
    assert (kept.name, "schön" in kept.text) == ("mine.py", True)
    assert (made.name, made.max_attempts) == ("mine", 2)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * 3 * 2**20])
def test_what_is_no_program_is_not_sent(client: Client, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises(errors.BadInput, match=r"mine\.py"):
        client.submit(parse(job(worker=str(tmp_path / "mine.py"))))


def test_errors_come_back_as_what_they_were(head: Head, client: Client) -> None:
    with pytest.raises(errors.NotFound) as missing:
        client.show("77")
    assert missing.value.hint == "`spcluster queue -a` lists all jobs"
    with Client(head.url, head.tokens["bob"]) as bob:
        job_id = client.submit(parse(job())).id
        with pytest.raises(errors.Forbidden, match="belongs to alice"):
            bob.show(job_id)
        with pytest.raises(errors.Forbidden, match="admin"):
            bob.users()
    with Client(head.url, "stale") as stranger, pytest.raises(errors.Unauthorized):
        stranger.queue()
    head.service.away = True
    with pytest.raises(errors.StoreUnavailable):
        client.queue()


@pytest.mark.parametrize("ref", ["../users", "..", "a/b", "1?x=1", "", "ä", "1\n", "A"])
def test_what_is_no_reference_is_never_asked_for(client: Client, ref: str) -> None:
    with pytest.raises(errors.BadInput):
        client.show(ref)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "schlüssel"])
def test_what_is_no_token_is_never_sent(head: Head, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPCLUSTER_TOKEN", raising=False)
    monkeypatch.setenv("SPCLUSTER_HOME", "/nowhere")
    with Client(head.url, token) as client, pytest.raises(errors.Unauthorized):
        client.queue()


def test_users_and_devices(head: Head) -> None:
    with Client(head.url, head.tokens["admin"]) as admin:
        new = admin.add_user("carol")
        assert [user.name for user in admin.users()] == ["admin", "alice", "bob", "carol"]
        assert admin.devices().devices[0].id == DEVICE
        assert admin.cluster().url == head.url
    with Client(head.url, new.token) as carol:
        assert carol.submit(parse(job())).user == "carol"


# ---- following ------------------------------------------------------------------------------------


def test_a_log_is_read_to_its_present_end(head: Head, client: Client) -> None:
    job_id = client.submit(parse(job())).id
    head.service.run(job_id)
    head.service.write_log(job_id, b"one\ntwo\nthree\n")
    assert "".join(piece.text for piece in client.logs(job_id)) == "one\ntwo\nthree\n"
    assert "".join(piece.text for piece in client.logs(job_id, tail=1)) == "three\n"
    assert "".join(piece.text for piece in client.logs(job_id, offset=4)) == "two\nthree\n"


def test_a_follower_outlives_restarts_of_the_head_and_loses_nothing(head: Head) -> None:
    notes: list[str] = []
    got: list[str] = []
    ended = threading.Event()

    with Client(head.url, head.tokens["alice"], on_retry=notes.append) as client:
        job_id = client.submit(parse(job())).id
        head.service.run(job_id)

        def follow() -> None:
            got.extend(piece.text for piece in client.logs(job_id, follow=True, wait_s=0.2))
            ended.set()

        thread = threading.Thread(target=follow)
        thread.start()
        written: list[str] = []

        def write(line: str) -> None:
            written.append(line)
            head.service.write_log(job_id, line.encode())

        for outage in range(3):
            write(f"before outage {outage}\n")
            wait_until(lambda: "".join(got) == "".join(written), "the follower has all that there is")
            head.stop()
            # The job goes on without the head.
            write(f"größe during outage {outage}\n")
            wait_until(lambda: len(notes) > outage, "the follower has noticed")  # noqa: B023
            head.start()
        write("the last words\n")
        head.service.finish(job_id)
        assert ended.wait(timeout=20)
        thread.join()
    assert "".join(got) == "".join(written)
    assert len(notes) == 3
    assert "trying again" in notes[0]


def test_following_a_name_stays_with_its_job(head: Head, client: Client) -> None:
    first = client.submit(parse(job("same"))).id
    head.service.run(first)
    head.service.write_log(first, b"first\n")
    pieces = client.logs("same", follow=True, wait_s=0.1)
    assert next(pieces).text == "first\n"
    second = client.submit(parse(job("same"))).id
    head.service.write_log(second, b"second\n")
    head.service.write_log(first, b"still first\n")
    head.service.finish(first)
    assert "".join(piece.text for piece in pieces) == "still first\n"


def test_wait_outlives_a_restart_and_redis(head: Head, client: Client) -> None:
    job_id = client.submit(parse(job())).id
    head.service.run(job_id)
    states: list[str] = []
    waiter = threading.Thread(target=lambda: states.append(client.wait(job_id).state))
    waiter.start()
    head.stop()
    head.service.away = True
    head.start()
    head.service.away = False
    head.service.finish(job_id, "error", "boom", 3)
    waiter.join(timeout=20)
    assert states == ["FAILED"]


def test_a_follower_is_more_patient_than_a_passer_by(head: Head) -> None:
    with Client(head.url, head.tokens["alice"], patience_s=0, following_patience_s=20) as client:
        job_id = client.submit(parse(job())).id
        head.stop()
        with pytest.raises(errors.NotRunning):
            client.show(job_id)
        threading.Timer(0.5, head.start).start()
        assert client.show(job_id, patient=True).id == job_id


def test_waiting_has_an_end(client: Client) -> None:
    job_id = client.submit(parse(job())).id
    with pytest.raises(TimeoutError, match=f"job {job_id} is still QUEUED"):
        client.wait(job_id, timeout_s=0.2)


@contextmanager
def cutting_proxy(port: int) -> Iterator[tuple[str, threading.Event]]:
    """A way to the head that, when the event is set, swallows the next answer to a POST and hangs up."""
    cut, stop = threading.Event(), threading.Event()

    def relay(near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            posting = False
            while not stop.is_set():
                ready, _, _ = select.select([near, far], [], [], 0.05)
                for source in ready:
                    data = source.recv(2**16)
                    if not data:
                        return
                    if source is near:
                        posting = data.startswith(b"POST") or (posting and not data.startswith(b"GET"))
                        far.sendall(data)
                    elif posting and cut.is_set():
                        cut.clear()
                        return
                    else:
                        near.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.05)
        threads: list[threading.Thread] = []

        def accept() -> None:
            while not stop.is_set():
                try:
                    near, _ = door.accept()
                except TimeoutError:
                    continue
                threads.append(threading.Thread(target=relay, args=(near,)))
                threads[-1].start()

        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}", cut
        finally:
            stop.set()
            for thread in threads:
                thread.join(timeout=10)


# ---- nobody there ---------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nobody_there_is_said_after_a_bounded_time() -> None:
    now, notes = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    url = f"http://127.0.0.1:{_free_port()}"
    with (
        Client(url, "token", patience_s=30, sleep=sleep, clock=lambda: now, on_retry=notes.append) as client,
        pytest.raises(errors.NotRunning, match="nobody listens") as gone,
    ):
        client.queue()
    assert 25 < now <= 30
    assert len(notes) == 1
    assert gone.value.hint is not None
    assert "spcluster up" in gone.value.hint


def test_a_submit_that_may_have_arrived_is_repeated_with_its_key(head: Head) -> None:
    """The head takes the job and dies before it answers; the second try finds the job and makes no other."""
    with cutting_proxy(head.port) as (url, cut), Client(url, head.tokens["alice"]) as client:
        cut.set()
        made = client.submit(parse(job("once")))
        assert [each.id for each in client.queue()] == [made.id]


def test_a_new_user_is_not_asked_for_twice(head: Head) -> None:
    """Were the first answer lost, a second try could only say `taken`."""
    with cutting_proxy(head.port) as (url, cut), Client(url, head.tokens["admin"]) as admin:
        cut.set()
        with pytest.raises(errors.NotRunning, match="may or may not"):
            admin.add_user("carol")
        assert [user.name for user in admin.users()].count("carol") == 1
