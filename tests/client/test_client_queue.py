"""The client's methods about the queue, its rules and its news, against a real API."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import DEVICE, GIB, Head, job, serving
from superpipe_cluster import errors
from superpipe_cluster.client import Client
from superpipe_cluster.lifecycle import events
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


@pytest.fixture
def admin(head: Head) -> Iterator[Client]:
    with Client(head.url, head.tokens["admin"]) as opened:
        yield opened


def test_a_job_is_held_released_paused_resumed_and_requeued(head: Head, client: Client) -> None:
    job_id = client.submit(parse(job("one"))).id
    assert client.hold("one").state == "HELD"
    assert client.release("one").state == "QUEUED"
    with pytest.raises(errors.Conflict) as refused:
        client.pause(job_id)
    assert "spcluster hold" in str(refused.value.hint)
    head.service.run(job_id)
    assert client.pause("one").pause_asked == "owner"
    assert client.resume("one").pause_asked is None
    assert client.requeue("one").stop_asked == "preempted"


def test_a_job_is_changed(head: Head, client: Client) -> None:
    job_id = client.submit(parse(job("one", time_limit="8h"))).id
    changed = client.change(job_id, priority="interactive", gpu_memory="1GiB..3GiB", time_limit=None)
    assert (changed.priority, changed.budget_max_bytes, changed.time_limit_s) == (2, 3 * GIB, None)
    with pytest.raises(errors.BadInput):
        client.change(job_id, gpu_memory="lots")
    with pytest.raises(errors.BudgetTooSmall):
        client.change(job_id, gpu_memory="1MiB")
    with pytest.raises(errors.BadInput):
        client.change("../users", priority="low")


def test_an_array_is_submitted_and_listed(client: Client) -> None:
    first = client.submit(parse(job("sweep", array="0-4%2")))
    assert (len(first.tasks), first.array_index) == (5, 0)
    assert [each.array_index for each in client.queue()] == [0, 1, 2, 3, 4]
    assert client.show(f"{first.id}_4").id == first.tasks[4]


def test_rules_are_set_listed_and_removed(client: Client, admin: Client) -> None:
    night = admin.set_window("night", days="daily", start="22:00", end="07:00", timezone="UTC")
    assert [window.name for window in client.windows()] == [night.name] == ["night"]
    quota = admin.set_quota("alice", guaranteed="1GiB", limit="2GiB", weight=2.0)
    assert client.quotas() == [quota]
    for act in (
        lambda: client.set_window("day", days="daily", start="07:00", end="22:00", timezone="UTC"),
        lambda: client.remove_window("night"),
        lambda: client.set_quota("alice", limit=None),
        lambda: client.remove_quota("alice"),
    ):
        with pytest.raises(errors.Forbidden):
            act()
    admin.remove_window("night")
    admin.remove_quota("alice")
    assert client.windows() == client.quotas() == []
    for gone in (lambda: admin.remove_window("night"), lambda: admin.remove_quota("alice")):
        with pytest.raises(errors.NotFound):
            gone()
    for wrong in (
        lambda: admin.remove_window("../x"),
        lambda: admin.remove_quota("a/b"),
        lambda: client.usage(user="a b"),
    ):
        with pytest.raises(errors.BadInput):
            wrong()


def test_use_and_the_devices_right_now(head: Head, client: Client) -> None:
    job_id = client.submit(parse(job("one"))).id
    head.service.run(job_id, GIB)
    (device,) = client.top().devices
    assert (device.id, [each.id for each in device.jobs]) == (DEVICE, [job_id])
    found = client.usage(user="alice", since=0.0)
    assert [user.user for user in found.users] == ["alice"]
    assert [each.id for each in found.jobs] == [job_id]


def test_news_are_followed_across_restarts_of_the_head(head: Head) -> None:
    seen: list[tuple[str, str]] = []
    notes: list[str] = []
    over = threading.Event()

    with Client(head.url, head.tokens["alice"], on_retry=notes.append) as client:
        at = client.events(last=0).next
        first = client.submit(parse(job("one"))).id

        def follow() -> None:
            after = at
            while not over.is_set():
                page = client.events(after=after, limit=1, wait_s=0.2, following=True)
                seen.extend((event.job_id, event.kind) for event in page.events)
                after = page.next

        thread = threading.Thread(target=follow)
        thread.start()
        wait_until(lambda: len(seen) == 1, "the follower has seen the submission")
        head.stop()
        head.service.happen(first, events.Placed(DEVICE, GIB))
        head.service.happen(first, events.Started())
        wait_until(lambda: notes, "the follower has noticed")
        head.start()
        head.service.finish(first)
        wait_until(lambda: len(seen) == 4, "the follower has seen everything", timeout_s=20)
        over.set()
        thread.join(timeout=10)
    assert seen == [(first, kind) for kind in ("submitted", "placed", "started", "exited")]


def test_the_latest_news(client: Client) -> None:
    assert client.events(last=5).events == ()
    ids = [client.submit(parse(job())).id for _ in range(3)]
    page = client.events(last=2)
    assert [event.job_id for event in page.events] == ids[1:]
    assert client.events(after=page.next).events == ()
    assert [event.job_id for event in client.events(limit=1).events] == ids[:1]
