"""The API as a program sees it: over HTTP, on a real port."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving import GIB, Head, job, serving


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with serving(tmp_path) as running:
        yield running


def door(head: Head, who: str = "alice") -> httpx.Client:
    return httpx.Client(
        base_url=head.url, headers={"Authorization": f"Bearer {head.tokens[who]}"}, trust_env=False
    )


def submitted(head: Head, who: str = "alice", **fields: object) -> str:
    with door(head, who) as client:
        answer = client.post("/v1/jobs", json={"spec": job(**fields)})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def test_a_job_goes_through_the_door(head: Head) -> None:
    with door(head) as client:
        answer = client.post("/v1/jobs", json={"spec": job("first", resources={"gpu_memory": "1GiB..2GiB"})})
        assert answer.status_code == 201
        made = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{made['id']}"
        assert made["state"] == "QUEUED"
        assert (made["budget_min_bytes"], made["budget_max_bytes"]) == (GIB, 2 * GIB)
        assert made["plan"]["units"] == 14

        head.service.run(made["id"])
        head.service.report(made["id"], step=3, steps=10, k=5, units=14, loads=40, metrics={"loss": 2.5})
        listed = client.get("/v1/jobs").json()["jobs"]
        assert [(each["id"], each["state"], each["step"], each["k"]) for each in listed] == [
            (made["id"], "RUNNING", 3, 5)
        ]

        head.service.finish(made["id"])
        assert client.get("/v1/jobs").json()["jobs"] == []
        assert [each["state"] for each in client.get("/v1/jobs?all=1").json()["jobs"]] == ["SUCCEEDED"]
        shown = client.get("/v1/jobs/first").json()
        assert shown["spec"]["train"]["steps"] == 10
        assert [event["kind"] for event in shown["events"]] == ["submitted", "placed", "started", "exited"]


def test_the_same_key_makes_one_job(head: Head) -> None:
    with door(head) as client:
        headers = {"Idempotency-Key": "once"}
        first = client.post("/v1/jobs", json={"spec": job()}, headers=headers).json()
        again = client.post("/v1/jobs", json={"spec": job()}, headers=headers).json()
    assert again["id"] == first["id"]
    with door(head, "bob") as other:
        assert other.post("/v1/jobs", json={"spec": job()}, headers=headers).json()["id"] != first["id"]


def test_everybody_sees_the_queue_and_only_owners_see_inside(head: Head) -> None:
    job_id = submitted(head, "alice", name="secret-plans")
    head.service.run(job_id)
    head.service.report(job_id, step=1, metrics={"loss": 3.0}, peak_bytes=5)
    with door(head, "bob") as bob:
        (seen,) = bob.get("/v1/jobs").json()["jobs"]
        assert (seen["name"], seen["user"], seen["peak_bytes"]) == ("secret-plans", "alice", 5)
        assert (seen["metrics"], seen["first_loss"], seen["output"], seen["message"]) == (
            {},
            None,
            None,
            None,
        )
        assert "spec" not in seen
        for answer in (
            bob.get(f"/v1/jobs/{job_id}"),
            bob.get("/v1/jobs/secret-plans"),
            bob.get(f"/v1/jobs/{job_id}/logs"),
            bob.post(f"/v1/jobs/{job_id}/cancel"),
        ):
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "forbidden"
    assert head.service.store.get(job_id).state == "RUNNING"
    with door(head, "admin") as admin:
        assert admin.get("/v1/jobs").json()["jobs"][0]["metrics"] == {"loss": 3.0}
        assert admin.post(f"/v1/jobs/{job_id}/cancel", json={"force": True}).json()["state"] == "STOPPING"


def test_the_queue_of_one_user(head: Head) -> None:
    submitted(head, "alice", name="hers")
    submitted(head, "bob", name="his")
    with door(head) as client:
        assert [each["name"] for each in client.get("/v1/jobs?user=bob").json()["jobs"]] == ["his"]


def test_cancel_of_an_ended_job_is_a_conflict(head: Head) -> None:
    job_id = submitted(head)
    with door(head) as client:
        assert client.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "CANCELLED"
        answer = client.post(f"/v1/jobs/{job_id}/cancel")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "conflict"


def test_a_diverged_job_can_be_shown(head: Head) -> None:
    job_id = submitted(head)
    head.service.run(job_id)
    head.service.report(job_id, metrics={"loss": math.nan, "grad_norm": math.inf})
    with door(head) as client:
        assert client.get(f"/v1/jobs/{job_id}").json()["metrics"] == {"loss": None, "grad_norm": None}
        assert client.get("/v1/jobs").json()["jobs"][0]["first_loss"] is None


def test_own_programs_arrive_as_text_and_only_where_they_belong(head: Head, tmp_path: Path) -> None:
    spec = job(worker=str(tmp_path / "mine.py"))
    code = {"name": "mine.py", "text": "def main(job):\n    print('größe')\n"}
    with door(head) as client:
        made = client.post("/v1/jobs", json={"spec": spec, "code": code})
        assert made.status_code == 201
        without = client.post("/v1/jobs", json={"spec": spec})
        unasked = client.post("/v1/jobs", json={"spec": job(), "code": code})
    kept = head.service.codes[made.json()["id"]]
    assert kept is not None
    assert kept.text == code["text"]
    assert without.status_code == unasked.status_code == 422


def test_devices_show_who_holds_them(head: Head) -> None:
    job_id = submitted(head, "alice", name="big")
    head.service.run(job_id, 2 * GIB)
    with door(head, "bob") as bob:
        found = bob.get("/v1/devices").json()
    (device,) = found["devices"]
    assert device["used_bytes"] == 2 * GIB
    assert [(each["id"], each["user"]) for each in device["jobs"]] == [(job_id, "alice")]
    assert found["host"]["total_bytes"] == 8 * GIB


def test_users_are_a_matter_for_admins(head: Head) -> None:
    with door(head, "bob") as bob:
        assert bob.get("/v1/users").status_code == 403
        assert bob.post("/v1/users", json={"name": "eve", "role": "admin"}).status_code == 403
        assert bob.get("/v1/cluster").status_code == 403
    with door(head, "admin") as admin:
        made = admin.post("/v1/users", json={"name": "carol"})
        assert made.status_code == 201
        head.tokens["carol"] = made.json()["token"]
        assert admin.post("/v1/users", json={"name": "carol"}).status_code == 409
        assert {"name": "carol", "role": "user"} in admin.get("/v1/users").json()["users"]
        assert admin.get("/v1/cluster").json()["store"] == "memory"
    assert submitted(head, "carol")


def test_health_needs_no_token_and_tells_trouble(head: Head) -> None:
    assert httpx.get(f"{head.url}/v1/health", trust_env=False).json()["status"] == "ok"
    head.service.away = True
    sick = httpx.get(f"{head.url}/v1/health", trust_env=False)
    assert (sick.status_code, sick.json()["status"]) == (503, "degraded")


def test_redis_gone_is_said_and_nothing_is_done(head: Head) -> None:
    with door(head) as client:
        head.service.away = True
        answer = client.post("/v1/jobs", json={"spec": job()})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_unavailable"
        head.service.away = False
        assert client.get("/v1/jobs?all=1").json()["jobs"] == []
