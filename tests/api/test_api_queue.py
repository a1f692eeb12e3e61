"""Routes about the queue: acting on jobs, changing them, rules, use, and what happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import DEVICE, GIB, Head, job, serving
from superpipe_cluster.lifecycle import events
from superpipe_cluster.store.writes import advance


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def alice(head: Head) -> Iterator[httpx.Client]:
    with door(head) as client:
        yield client


@pytest.fixture
def admin(head: Head) -> Iterator[httpx.Client]:
    with door(head, "admin") as client:
        yield client


def door(head: Head, who: str = "alice") -> httpx.Client:
    return httpx.Client(
        base_url=head.url, headers={"Authorization": f"Bearer {head.tokens[who]}"}, trust_env=False
    )


def made(client: httpx.Client, **fields: object) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json={"spec": job(**fields)})
    assert answer.status_code == 201, answer.text
    return answer.json()


def good(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    return error


# ---- acting on jobs ----------------------------------------------------------------------------------


def test_a_waiting_job_is_held_and_released(alice: httpx.Client) -> None:
    job_id = made(alice)["id"]
    for _ in range(2):  # an answer may have got lost
        assert good(alice.post(f"/v1/jobs/{job_id}/hold"))["state"] == "HELD"
    for _ in range(2):
        assert good(alice.post(f"/v1/jobs/{job_id}/release"))["state"] == "QUEUED"
    assert [event["kind"] for event in good(alice.get(f"/v1/jobs/{job_id}"))["events"]] == [
        "submitted", "held", "released",
    ]  # fmt: skip


def test_a_running_job_is_paused_and_resumed(head: Head, alice: httpx.Client) -> None:
    job_id = made(alice)["id"]
    head.service.run(job_id)
    for _ in range(2):
        paused = good(alice.post(f"/v1/jobs/{job_id}/pause"))
        assert (paused["state"], paused["pause_asked"]) == ("RUNNING", "owner")
    head.service.happen(job_id, events.Paused())
    assert good(alice.get("/v1/jobs"))["jobs"][0]["state"] == "PAUSED"
    for _ in range(2):
        assert good(alice.post(f"/v1/jobs/{job_id}/resume"))["pause_asked"] is None
    kinds = [event["kind"] for event in good(alice.get(f"/v1/jobs/{job_id}"))["events"]]
    assert kinds[3:] == ["pause_asked", "paused", "resume_asked"]


def test_what_a_window_has_paused_its_owner_may_pause_and_not_resume(head: Head, alice: httpx.Client) -> None:
    job_id = made(alice)["id"]
    head.service.run(job_id)
    head.service.happen(job_id, events.PauseAsked("window"))
    assert "window" in refused(alice.post(f"/v1/jobs/{job_id}/resume"), 409)["hint"]
    assert good(alice.post(f"/v1/jobs/{job_id}/pause"))["pause_asked"] == "owner"
    assert good(alice.post(f"/v1/jobs/{job_id}/resume"))["pause_asked"] is None


def test_a_running_job_is_requeued_and_loses_no_attempt(head: Head, alice: httpx.Client) -> None:
    job_id = made(alice)["id"]
    head.service.run(job_id)
    for _ in range(2):
        asked = good(alice.post(f"/v1/jobs/{job_id}/requeue"))
        assert (asked["state"], asked["stop_asked"]) == ("STOPPING", "preempted")
    head.service.finish(job_id, "preempted")
    assert good(alice.post(f"/v1/jobs/{job_id}/requeue"))["state"] == "QUEUED"
    assert head.service.store.get(job_id).losses == 0


#: State -> what makes no sense there.
NONSENSE = {
    "QUEUED": ("pause", "resume"),
    "HELD": ("pause", "resume", "requeue"),
    "STARTING": ("hold", "release", "pause", "resume"),
    "RUNNING": ("hold", "release"),
    "STOPPING": ("hold", "release", "pause", "resume", "requeue"),
    "SUCCEEDED": ("hold", "release", "pause", "resume", "requeue"),
}


@pytest.mark.parametrize(("state", "verbs"), NONSENSE.items())
def test_what_makes_no_sense_is_a_conflict_that_says_what_would(
    head: Head, alice: httpx.Client, state: str, verbs: tuple[str, ...]
) -> None:
    job_id = made(alice)["id"]
    if state == "HELD":
        head.service.happen(job_id, events.Held())
    elif state == "STARTING":
        head.service.happen(job_id, events.Placed(DEVICE, GIB))
    elif state != "QUEUED":
        head.service.run(job_id)
    if state == "STOPPING":
        head.service.happen(job_id, events.StopAsked("cancelled"))
    if state == "SUCCEEDED":
        head.service.finish(job_id)
    before = head.service.store.get(job_id)
    assert before.state == state
    for verb in verbs:
        error = refused(alice.post(f"/v1/jobs/{job_id}/{verb}"), 409)
        assert error["code"] == "conflict"
        assert error["hint"]
        assert job_id in error["message"]
    assert head.service.store.get(job_id) == before


def test_only_owners_and_admins_act_on_a_job(head: Head, alice: httpx.Client, admin: httpx.Client) -> None:
    job_id = made(alice)["id"]
    before = head.service.store.get(job_id)
    with door(head, "bob") as bob:
        for verb in ("hold", "release", "pause", "resume", "requeue", "cancel"):
            refused(bob.post(f"/v1/jobs/{job_id}/{verb}"), 403)
        refused(bob.patch(f"/v1/jobs/{job_id}", json={"priority": "low"}), 403)
    assert head.service.store.get(job_id) == before
    assert good(admin.post(f"/v1/jobs/{job_id}/hold"))["state"] == "HELD"


# ---- changing jobs -----------------------------------------------------------------------------------


def test_a_job_is_changed_while_it_waits_and_while_it_runs(
    head: Head, alice: httpx.Client, admin: httpx.Client
) -> None:
    good(admin.put("/v1/windows/night", json=NIGHT))
    job_id = made(alice, time_limit="2h")["id"]
    wishes = {
        "priority": "high",
        "gpu_memory": "1GiB..3GiB",
        "time_limit": None,
        "not_before": "2030-01-01T08:00:00+00:00",
        "window": "night",
        "at_window_end": "requeue",
    }
    changed = good(alice.patch(f"/v1/jobs/{job_id}", json=wishes))
    assert (changed["priority"], changed["budget_min_bytes"], changed["budget_max_bytes"]) == (
        1,
        GIB,
        3 * GIB,
    )
    assert (changed["time_limit_s"], changed["begin_at"], changed["window"]) == (None, 1893484800.0, "night")
    record = head.service.store.get(job_id)
    assert (record.at_window_end, record.budget_min_bytes) == ("requeue", GIB)
    head.service.run(job_id)
    running = good(alice.patch(f"/v1/jobs/{job_id}", json={"gpu_memory": "2GiB", "window": None}))
    assert (running["state"], running["budget_min_bytes"], running["window"]) == ("RUNNING", 2 * GIB, None)
    assert running["priority"] == 1, "what is not named stays"
    before = head.service.store.get(job_id)
    good(alice.patch(f"/v1/jobs/{job_id}", json={"gpu_memory": "2GiB"}))
    assert head.service.store.get(job_id) == before, "the same again is no event"


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"priority": "urgent"},
        {"priority": None},
        {"gpu_memory": 12},
        {"gpu_memory": "3GiB..1GiB"},
        {"gpu_memory": None},
        {"gpu_memory": "100MiB"},
        {"gpu_memory": "9TiB"},
        {"time_limit": "0s"},
        {"time_limit": 8},
        {"not_before": "tomorrow"},
        {"window": "nowhere"},
        {"window": "../x"},
        {"at_window_end": "explode"},
        {"name": "other"},
        {"budget_bytes": 1},
    ],
    ids=str,
)
def test_nonsense_changes_nothing(head: Head, alice: httpx.Client, wishes: dict[str, object]) -> None:
    job_id = made(alice)["id"]
    before = head.service.store.get(job_id)
    refused(alice.patch(f"/v1/jobs/{job_id}", json=wishes), 422)
    refused(alice.patch(f"/v1/jobs/{job_id}", json={"priority": "low", **wishes}), 422) if wishes else None
    assert head.service.store.get(job_id) == before


def test_less_than_the_worker_says_it_needs_is_refused(head: Head, alice: httpx.Client) -> None:
    job_id = made(alice)["id"]
    head.service.run(job_id)
    head.service.report(job_id, floor_bytes=2 * GIB)
    error = refused(alice.patch(f"/v1/jobs/{job_id}", json={"gpu_memory": "1GiB"}), 422)
    assert (error["code"], str(2 * GIB) in error["message"]) == ("budget_too_small", True)


def test_an_ended_job_is_not_changed(head: Head, alice: httpx.Client) -> None:
    job_id = made(alice)["id"]
    alice.post(f"/v1/jobs/{job_id}/cancel")
    refused(alice.patch(f"/v1/jobs/{job_id}", json={"priority": "low"}), 409)


# ---- arrays ------------------------------------------------------------------------------------------


def test_an_array_comes_in_as_its_tasks(head: Head, alice: httpx.Client) -> None:
    first = made(alice, name="sweep", array="0-3%2")
    assert (first["array"], first["array_index"], len(first["tasks"])) == (first["id"], 0, 4)
    records = [head.service.store.get(job_id) for job_id in first["tasks"]]
    assert [(one.array_index, one.array_limit, one.array) for one in records] == [
        (index, 2, first["id"]) for index in range(4)
    ]
    assert len({one.output for one in records}) == 4
    assert good(alice.get(f"/v1/jobs/{first['id']}_3"))["id"] == first["tasks"][3]
    assert good(alice.get(f"/v1/jobs/{first['tasks'][2]}"))["tasks"] == first["tasks"]
    refused(alice.get(f"/v1/jobs/{first['id']}_7"), 404)


def test_the_same_array_again_is_the_same_tasks(head: Head, alice: httpx.Client) -> None:
    body = {"spec": job(array="0-2")}
    answers = [
        alice.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"}).json() for _ in range(2)
    ]
    assert answers[0]["tasks"] == answers[1]["tasks"]
    assert len(head.service.store.list_jobs()) == 3


# ---- rules -------------------------------------------------------------------------------------------

NIGHT = {"days": "mon-fri", "start": "22:00", "end": "07:00", "timezone": "Europe/Berlin"}


def test_windows_are_set_by_admins_and_seen_by_all(
    head: Head, alice: httpx.Client, admin: httpx.Client
) -> None:
    assert good(alice.get("/v1/windows")) == {"windows": []}
    night = good(admin.put("/v1/windows/night", json={**NIGHT, "interactive_floor": "1GiB"}))
    assert (night["name"], night["interactive_floor_bytes"]) == ("night", GIB)
    (seen,) = good(alice.get("/v1/windows"))["windows"]
    assert seen["is_open"] in (True, False)
    assert seen["next_opening"] > time.time()
    refused(alice.put("/v1/windows/night", json=NIGHT), 403)
    refused(alice.delete("/v1/windows/night"), 403)
    job_id = made(alice, schedule={"window": "night", "at_end": "pause"})["id"]
    assert head.service.store.get(job_id).at_window_end == "pause"
    assert job_id in refused(admin.delete("/v1/windows/night"), 409)["message"]
    alice.post(f"/v1/jobs/{job_id}/cancel")
    assert good(admin.delete("/v1/windows/night")) == {"windows": []}
    refused(admin.delete("/v1/windows/night"), 404)
    assert (
        "no window night"
        in refused(alice.post("/v1/jobs", json={"spec": job(schedule={"window": "night"})}), 422)["message"]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"days": "someday"},
        {"start": "25:00"},
        {"timezone": "Mars/Olympus"},
        {"interactive_floor": 5},
        {"x": 1},
    ],
    ids=str,
)
def test_impossible_windows_are_refused(admin: httpx.Client, wrong: dict[str, object]) -> None:
    refused(admin.put("/v1/windows/night", json={**NIGHT, **wrong}), 422)
    assert good(admin.get("/v1/windows")) == {"windows": []}


def test_quotas_are_set_by_admins_and_seen_by_all(alice: httpx.Client, admin: httpx.Client) -> None:
    quota = good(admin.put("/v1/quotas/alice", json={"guaranteed": "1GiB", "limit": "2GiB", "weight": 2}))
    assert quota == {"user": "alice", "guaranteed_bytes": GIB, "limit_bytes": 2 * GIB, "weight": 2.0}
    assert good(alice.get("/v1/quotas")) == {"quotas": [quota]}
    refused(alice.put("/v1/quotas/alice", json={}), 403)
    refused(alice.delete("/v1/quotas/alice"), 403)
    never = refused(alice.post("/v1/jobs", json={"spec": job(resources={"gpu_memory": "3GiB"})}), 422)
    assert (never["code"], "alice" in never["message"]) == ("never_fits", True)
    job_id = made(alice)["id"]
    refused(alice.patch(f"/v1/jobs/{job_id}", json={"gpu_memory": "3GiB"}), 422)
    assert good(admin.delete("/v1/quotas/alice")) == {"quotas": []}
    refused(admin.delete("/v1/quotas/alice"), 404)
    good(alice.patch(f"/v1/jobs/{job_id}", json={"gpu_memory": "3GiB"}))


def test_impossible_quotas_are_refused(admin: httpx.Client) -> None:
    good(admin.put("/v1/quotas/bob", json={"guaranteed": "2GiB"}))
    for wrong in (
        {"guaranteed": "2GiB", "limit": "1GiB"},
        {"guaranteed": "2GiB"},  # bob has that much of the three there are
        {"guaranteed": "-1GiB"},
        {"guaranteed": 5},
        {"weight": 0},
        {"weight": "much"},
        {"surprise": 1},
    ):
        refused(admin.put("/v1/quotas/alice", json=wrong), 422)
    refused(admin.put("/v1/quotas/nobody", json={}), 404)
    assert [quota["user"] for quota in good(admin.get("/v1/quotas"))["quotas"]] == ["bob"]
    good(admin.put("/v1/quotas/bob", json={"guaranteed": "3GiB"}))


# ---- use ---------------------------------------------------------------------------------------------


def test_top_shows_devices_jobs_and_what_is_not_ours(head: Head, alice: httpx.Client) -> None:
    running, waiting = made(alice)["id"], made(alice)["id"]
    head.service.run(running, 2 * GIB)
    head.service.happen(running, events.ResizeAsked(GIB, 1))
    head.service.report(running, step=3, steps=10, k=5, units=14, held_bytes=GIB, step_s=0.5, link_bytes=1000)
    head.service.foreign_bytes = 7
    with door(head, "bob") as bob:
        found = good(bob.get("/v1/top"))
    (device,) = found["devices"]
    assert (device["id"], device["foreign_bytes"], device["used_bytes"]) == (DEVICE, 7, 2 * GIB)
    (shown,) = device["jobs"]
    assert (shown["id"], shown["asked_bytes"], shown["k"], shown["step_s"]) == (running, GIB, 5, 0.5)
    assert (found["queued"], found["host"]["total_bytes"], waiting != running) == (1, 8 * GIB, True)


def test_usage_is_seen_by_all(head: Head, alice: httpx.Client) -> None:
    running = made(alice)["id"]
    head.service.run(running, GIB)
    head.service.report(running, link_bytes=500)
    ended = made(alice)["id"]
    head.service.run(ended, GIB)
    head.service.finish(ended)
    with door(head, "bob") as bob:
        found = good(bob.get("/v1/usage"))
        assert good(bob.get("/v1/usage?user=bob")) == {"users": [], "jobs": []}
        assert [one["id"] for one in good(bob.get(f"/v1/usage?since={time.time() + 60}"))["jobs"]] == [
            running
        ]
        refused(bob.get("/v1/usage?since=yesterday"), 422)
    (user,) = found["users"]
    assert (user["user"], user["jobs"], user["link_bytes"], user["share"]) == ("alice", 2, 500, 1.0)
    assert user["byte_s"] > 0
    assert [one["id"] for one in found["jobs"]] == [running, ended]


def test_a_likely_start_is_in_the_listing(head: Head, alice: httpx.Client) -> None:
    job_id = made(alice)["id"]
    assert good(alice.get("/v1/jobs"))["jobs"][0]["expected_start_at"] is None
    head.service.outlook.replace({job_id: 123.5})
    assert good(alice.get("/v1/jobs"))["jobs"][0]["expected_start_at"] == 123.5
    assert good(alice.get(f"/v1/jobs/{job_id}"))["expected_start_at"] == 123.5


# ---- what happens ------------------------------------------------------------------------------------


def test_news_can_be_followed_from_anywhere(head: Head, alice: httpx.Client) -> None:
    mine = made(alice)["id"]
    with door(head, "bob") as bob:
        his = made(bob)["id"]
    advance(head.service.store, his, events.Placed(DEVICE, GIB))
    found = good(alice.get("/v1/events"))
    assert [(one["job_id"], one["kind"], bool(one["data"])) for one in found["events"]] == [
        (mine, "submitted", True), (his, "submitted", False), (his, "placed", False),
    ]  # fmt: skip
    assert good(alice.get("/v1/events", params={"after": found["next"]})) == {
        "events": [],
        "next": found["next"],
    }
    page = good(alice.get("/v1/events", params={"limit": 2}))
    assert [one["job_id"] for one in page["events"]] == [mine, his]
    rest = good(alice.get("/v1/events", params={"after": page["next"]}))
    assert [one["kind"] for one in rest["events"]] == ["placed"]
    last = good(alice.get("/v1/events", params={"last": 1}))
    assert ([one["kind"] for one in last["events"]], last["next"]) == (["placed"], found["next"])
    assert good(alice.get("/v1/events", params={"last": 0})) == {"events": [], "next": found["next"]}
    refused(alice.get("/v1/events", params={"after": "yesterday"}), 422)


def test_whoever_waits_for_news_gets_them_at_once(head: Head, alice: httpx.Client) -> None:
    at = good(alice.get("/v1/events", params={"last": 0}))["next"]
    answers: list[dict[str, Any]] = []

    def wait() -> None:
        with door(head) as other:
            answers.append(good(other.get("/v1/events", params={"after": at, "wait_s": 20}, timeout=30)))

    waiter = threading.Thread(target=wait)
    waiter.start()
    job_id = made(alice)["id"]
    waiter.join(timeout=10)
    assert [one["job_id"] for one in answers[0]["events"]] == [job_id]


def test_no_news_for_a_while_is_an_answer(alice: httpx.Client) -> None:
    began = time.monotonic()
    assert good(alice.get("/v1/events", params={"wait_s": 0.3}))["events"] == []
    assert time.monotonic() - began >= 0.3
