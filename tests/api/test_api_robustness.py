"""What the API does with input that no friend would send: a 4xx with a message, and nothing changed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from serving import Head, job, serving
from superpipe_cluster.api.views import MAX_BODY_BYTES


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with serving(tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture
def client(head: Head) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {head.tokens['admin']}"}
    with httpx.Client(base_url=head.url, headers=headers, trust_env=False) as opened:
        yield opened
        # Whatever was tried, the API works on and no job came into being.
        assert opened.get("/v1/jobs?all=1").json() == {"jobs": []}


def refused(answer: httpx.Response, status: int) -> dict[str, object]:
    """The error of an answer, which has the one form that all errors have."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert set(error) == {"code", "message", "hint", "problems"}
    assert "Traceback" not in answer.text
    return error


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic YTpi", "Bearer nobody", "Bearer \xff\xfe"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs",
        "/v1/devices",
        "/v1/users",
        "/v1/cluster",
        "/v1/jobs/1/logs",
        "/v1/top",
        "/v1/usage",
        "/v1/events",
        "/v1/quotas",
        "/v1/windows",
    ],
)
def test_no_token_no_answer(head: Head, header: str | None, path: str) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    answer = httpx.get(f"{head.url}{path}", headers=headers, trust_env=False)
    assert refused(answer, 401)["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"spec": null}',
        b'{"spec": []}',
        b'{"spec": {}}',
        b'{"spec": {"kind": 7}}',
        b'{"spec": {"kind": "train"}, "more": 1}',
        b'{"spec": {"name": "\\ud800", "kind": "train"}}',
        b'{"spec": {"kind": "train", "params": {"x": NaN}}}',
        b'{"spec": {"kind": "train", "params": {"x": 1e999}}}',
        b'{"spec": {"kind": "train", "params": {"\\udc00": 1}}}',
        b'{"spec": {"kind": "train", "train": {"steps": ' + b"9" * 5000 + b"}}}",
        b'{"spec": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b'{"spec": {"kind": "train"}, "code": {"name": "../../mine.py", "text": ""}}',
        b'{"spec": {"kind": "train"}, "code": {"name": ".hidden.py", "text": ""}}',
        b'{"spec": {"kind": "train"}, "code": {"name": "a.py", "text": 5}}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_broken_bodies(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    error = refused(answer, answer.status_code)
    assert answer.status_code in (400, 422)
    assert error["code"] in ("bad_input", "bad_job_file")


def test_every_mistake_of_a_job_is_listed(client: httpx.Client) -> None:
    spec = job(train={"steps": 0, "lr": "fast"}, priority="urgent", resources={"gpu_memory": 12})
    error = refused(client.post("/v1/jobs", json={"spec": spec}), 422)
    assert error["code"] == "bad_job_file"
    problems = error["problems"]
    assert isinstance(problems, list)
    assert len(problems) == 4


def test_what_the_service_refuses_arrives_with_its_hint(client: httpx.Client) -> None:
    error = refused(client.post("/v1/jobs", json={"spec": job(after=["nobody"])}), 422)
    assert "`spcluster queue -a` lists all jobs" in str(error["hint"])


def test_a_huge_body_is_refused(client: httpx.Client) -> None:
    body = json.dumps({"spec": {"params": {"x": "a" * MAX_BODY_BYTES}}}).encode()
    assert refused(client.post("/v1/jobs", content=body), 413)["code"] == "bad_input"


def test_a_huge_body_of_unannounced_length_is_refused(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2 + MAX_BODY_BYTES // 2**16):
            yield b" " * 2**16

    refused(client.post("/v1/jobs", content=endless()), 413)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/jobs/../../etc/passwd",
        "/v1/jobs/..%2f..%2fetc%2fpasswd",
        "/v1/jobs/%2e%2e/logs",
        "/v1/jobs/..%5c..%5cx",
        "/v1/jobs/%00",
        "/v1/jobs/1%0a",
        "/v1/jobs/-1",
        "/v1/jobs/%F0%9F%98%80",
        "/v1/jobs/%ff%fe",
        "/v1/jobs/" + "a" * 64,
        "/v1/jobs/" + "a" * 5000,
        "/v1/jobs/UPPER",
        "/v1/jobs/9999999999999999999999999999",
        "/v1/nothing",
        "/v2/jobs",
    ],
)
def test_strange_paths(head: Head, target: str) -> None:
    # By hand: an HTTP library would tidy the path up before sending it.
    with socket.create_connection(("127.0.0.1", head.port), timeout=10) as wire:
        wire.sendall(
            f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {head.tokens['admin']}\r\n"
            "Connection: close\r\n\r\n".encode("latin-1")
        )
        answer = b"".join(iter(lambda: wire.recv(65536), b""))
    top, _, body = answer.partition(b"\r\n\r\n")
    assert int(top.split()[1]) in (404, 422), top
    assert json.loads(body)["error"]["code"] in ("not_found", "bad_input")


@pytest.mark.parametrize(
    "query",
    [
        "offset=-1",
        "offset=x",
        f"offset={2**70}",
        "limit=0",
        "limit=99999999",
        "wait_s=1e9",
        "wait_s=nan",
        "tail=-1",
    ],
)
def test_figures_out_of_range(client: httpx.Client, query: str) -> None:
    assert refused(client.get(f"/v1/jobs/1/logs?{query}"), 422)["code"] == "bad_input"


@pytest.mark.parametrize(
    "body",
    [
        {"name": "../admin"},
        {"name": ""},
        {"name": "Ünïcode"},
        {"name": "a" * 64},
        {"name": 5},
        {"name": "a\nb"},
        {"name": "eve", "role": "root"},
        {"name": "eve", "token": "chosen"},
    ],
)
def test_strange_users(client: httpx.Client, body: dict[str, object]) -> None:
    before = client.get("/v1/users").json()
    refused(client.post("/v1/users", json=body), 422)
    assert client.get("/v1/users").json() == before


@pytest.mark.parametrize("body", [b"{", b'{"force": "maybe"}', b'{"force": true, "x": 1}', b"[]"])
def test_strange_cancels(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/jobs/1/cancel", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 422)


def test_strange_keys(client: httpx.Client) -> None:
    for key in (b"", b"a b", b"x" * 201, b"\xff"):
        answer = client.post("/v1/jobs", json={"spec": job()}, headers=[(b"Idempotency-Key", key)])
        refused(answer, 422)


def test_wrong_methods(client: httpx.Client) -> None:
    refused(client.delete("/v1/jobs/1"), 405)
    refused(client.put("/v1/jobs", json={}), 405)


def test_a_bug_tells_nothing_of_the_inside(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(head.service, "devices", broken)
    answer = httpx.get(
        f"{head.url}/v1/devices", headers={"Authorization": f"Bearer {head.tokens['bob']}"}, trust_env=False
    )
    assert refused(answer, 500)["code"] == "error"
    assert "hunter2" not in answer.text


def test_the_description_is_complete(head: Head) -> None:
    document = httpx.get(f"{head.url}/openapi.json", trust_env=False).json()
    operations = [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)
    for path, method, operation in operations:
        name = f"{method} {path}"
        assert operation["summary"], name
        assert operation["description"], name
        success = next(code for code in operation["responses"] if code.startswith("2"))
        assert operation["responses"][success]["content"]["application/json"]["schema"], name
        for status in ("401", "404", "422"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorView"}, name
        assert path == "/v1/health" or operation["security"] == [{"token": []}], name
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    for shown in ("SubmitRequest", "JobView", "LogView", "DeviceView", "ErrorBody"):
        assert schemas[shown]["examples"], shown
