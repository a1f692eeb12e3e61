"""The files that travel with a script, through the API's door."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Head, serving
from superpipe_cluster import spec as job_files
from superpipe_cluster.api import CodeFile
from superpipe_cluster.client import Client
from superpipe_cluster.client.program import files_of
from superpipe_cluster.errors import BadInput

SCRIPT = {"kind": "script", "name": "s", "run": "python a.py", "resources": {"gpu_memory": "1GiB"}}


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with serving(tmp_path) as running:
        yield running


def file(path: str, data: bytes = b"x") -> dict[str, Any]:
    return {"path": path, "content": base64.b64encode(data).decode()}


def post(head: Head, files: list[dict[str, Any]], spec: dict[str, Any] = SCRIPT) -> httpx.Response:
    headers = {"Authorization": f"Bearer {head.tokens['alice']}"}
    return httpx.post(
        f"{head.url}/v1/jobs", headers=headers, json={"spec": spec, "files": files}, trust_env=False
    )


def test_they_arrive_as_they_were(head: Head, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "a.py").write_text("import lib\n")
    (tmp_path / "lib" / "__init__.py").write_bytes(b"")
    (tmp_path / "lib" / "table.bin").write_bytes(bytes(range(256)))
    (tmp_path / "a.py").chmod(0o755)
    path = tmp_path / "job.yaml"
    path.write_text("kind: script\nrun: python a.py\nresources: {gpu_memory: 1GiB}\n")
    with Client(head.url, head.tokens["alice"]) as client:
        job_id = client.submit(path).id
    assert head.service.codes[job_id] == (
        CodeFile("a.py", b"import lib\n", executable=True),
        CodeFile("lib/__init__.py", b""),
        CodeFile("lib/table.bin", bytes(range(256))),
    )


@pytest.mark.parametrize(
    "path", ["../a.py", "/etc/passwd", "a/../b", "a//b", "./a", "a/", "", "a\0b", "é" * 121, "x/" * 600 + "x"]
)
def test_a_path_leads_nowhere_else(head: Head, path: str) -> None:
    assert post(head, [file(path)]).status_code == 422
    assert head.service.codes == {}


@pytest.mark.parametrize("paths", [("a", "a"), ("a/b", "a")])
def test_a_path_is_one_thing(head: Head, paths: tuple[str, ...]) -> None:
    refused = post(head, [file(path) for path in paths])
    assert refused.status_code == 422
    assert "a is there twice" in refused.json()["error"]["message"]


def test_they_travel_with_scripts_alone(head: Head) -> None:
    train = {"kind": "train", "name": "t", "worker": "/x/mine.py", "resources": {"gpu_memory": "1GiB"}}
    assert "with a script only" in post(head, [file("a")], train).json()["error"]["message"]


def test_too_much_is_refused_here_and_data_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    (tmp_path / "data.bin").write_bytes(bytes(3 << 20))
    path = tmp_path / "job.yaml"
    path.write_text("kind: script\nrun: python a.py data.bin\nresources: {gpu_memory: 1GiB}\n")
    with pytest.raises(BadInput, match=r"data\.bin \(3145728 bytes\)") as refused:
        files_of(job_files.load(path))
    assert "absolute path" in str(refused.value.hint)
