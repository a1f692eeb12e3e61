"""A picture taken after many others shows what the first one of a new head would."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.situations import job
from superpipe_cluster.errors import StoreUnavailable
from superpipe_cluster.head.picture import Camera
from superpipe_cluster.lifecycle.events import Exited, Held, Placed, Released, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.lifecycle.step import step
from superpipe_cluster.machine import parse_device
from superpipe_cluster.scheduling.snapshot import Snapshot
from superpipe_cluster.store.memory_store import MemoryStore

HOST_BYTES = 1000


class Cluster:
    """A store, whose answers may fail, and a camera that has seen it all."""

    def __init__(self) -> None:
        self.now = 1e9
        self.store = MemoryStore(lambda: self.now)
        self.camera = self.new_camera()

    def new_camera(self) -> Camera:
        return Camera(
            self.store, [parse_device("cpu:1GiB")], lambda: HOST_BYTES, lambda *_: 0, lambda: self.now
        )

    def take(self, camera: Camera) -> Snapshot:
        return camera.take(self.active())

    def active(self) -> Sequence[JobRecord]:
        return self.store.list_jobs(active_only=True)

    def submit(self, user: str, after: tuple[str, ...]) -> None:
        record = job(self.store.next_job_id(), 10, user=user, after=after, host_bytes=7)
        self.store.submit(record.model_copy(update={"submitted_at": self.now}))

    def happen(self, record: JobRecord) -> None:
        """The next thing in its life."""
        event = {
            JobState.HELD: Released(),
            JobState.QUEUED: Placed("cpu:0", 10) if int(record.id) % 3 else Held(),
            JobState.STOPPING: Exited("cancelled"),
        }.get(record.state, Exited("ok") if int(record.id) % 2 else StopAsked("cancelled"))
        self.store.transition(record, step(record, event, self.now), event)


def same(one: Snapshot, other: Snapshot) -> bool:
    def by_id(picture: Snapshot) -> dict[str, JobRecord]:
        return {record.id: record for record in picture.others}

    assert one.usage == pytest.approx(other.usage, rel=1e-3)  # spread over time, each in its way
    assert by_id(one) == by_id(other)
    return (one.queued, one.host_free_bytes) == (other.queued, other.host_free_bytes)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_it_shows_what_the_first_picture_of_a_new_head_shows(data: st.DataObject) -> None:
    cluster = Cluster()
    for _ in range(data.draw(st.integers(1, 30))):
        cluster.now += 10.0
        active = cluster.active()
        if not active or data.draw(st.booleans(), label="submit"):
            known = [record.id for record in cluster.store.list_jobs()]
            after = data.draw(st.lists(st.sampled_from(known), max_size=1)) if known else []
            cluster.submit(data.draw(st.sampled_from(["ann", "bob"])), tuple(after))
        else:
            record = data.draw(st.sampled_from(active))
            if record.state is JobState.QUEUED:  # nobody places a job without having seen it
                cluster.take(cluster.camera)
            cluster.happen(record)
        if data.draw(st.booleans(), label="look"):
            assert same(cluster.take(cluster.camera), cluster.take(cluster.new_camera()))


@pytest.mark.parametrize("question", ["list_jobs", "get", "settings"])
def test_where_the_store_does_not_answer_nothing_is_taken_in_twice(
    question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    for _ in range(4):
        cluster.submit("ann", ())
    before = cluster.active()
    if question != "list_jobs":
        cluster.take(cluster.camera)
    for record in cluster.active():
        cluster.happen(record)
    (ended, *_) = [record for record in cluster.active() if record.state is JobState.STARTING]
    cluster.now += 100.0
    cluster.happen(ended)
    cluster.submit("bob", (before[0].id,))
    active = cluster.active()

    def fails(*_: object, **__: object) -> None:
        raise StoreUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.store, question, fails)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                cluster.camera.take(active)
    assert same(cluster.take(cluster.camera), cluster.take(cluster.new_camera()))
