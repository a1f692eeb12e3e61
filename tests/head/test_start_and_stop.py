"""Starts that fail, and the pieces of `up` that need no cluster. A real one is in `test_cluster_end_to_end.py`."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from superpipe_cluster.errors import BadInput, NotRunning, StartFailed, StoreUnavailable
from superpipe_cluster.head import cluster, own_ray
from superpipe_cluster.head.cluster import UpOptions, down, up
from superpipe_cluster.head.home import ClusterFile, Home, RayPlace, write_private
from superpipe_cluster.machine import parse_device, processes
from superpipe_cluster.store import embedded
from superpipe_cluster.store.interface import hash_token
from superpipe_cluster.store.redis_store import RedisStore


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def nothing_runs(home: Home) -> bool:
    return not home.cluster.exists() and own_ray.find(home, None) == []


def test_what_is_written_about_a_cluster_is_read_back_and_private(tmp_path: Path) -> None:
    home = Home(tmp_path)
    written = ClusterFile(
        url="http://127.0.0.1:7077",
        host="127.0.0.1",
        port=7077,
        redis_url="unix:///x/redis.sock",
        redis_pid=12,
        ray=RayPlace("127.0.0.1:1", "/x/ray", 13),
        devices=(parse_device("cpu:1GiB@1GB/s"),),
        started_at=1.5,
    )
    old = os.umask(0)
    try:
        write_private(home.cluster, written.to_json())
    finally:
        os.umask(old)
    assert home.read_cluster() == written
    assert home.cluster.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "x"}'])
def test_a_cluster_file_that_cannot_be_read_is_no_cluster(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.cluster.write_text(text)
    with pytest.raises(NotRunning) as caught:
        home.read_cluster()
    assert caught.value.hint


def test_down_without_a_cluster_says_so_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        down(tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartFailed, match="home"):
        up(UpOptions(tmp_path / "file" / "home"))


def test_a_device_that_cannot_be_read_is_refused_before_anything_starts(tmp_path: Path, port: int) -> None:
    with pytest.raises(BadInput):
        up(UpOptions(tmp_path, port=port, devices=("cpu:lots",)))
    assert nothing_runs(Home(tmp_path))


def test_a_redis_that_does_not_answer_stops_the_start(tmp_path: Path, port: int) -> None:
    with pytest.raises(StoreUnavailable):
        up(UpOptions(tmp_path, port=port, devices=("cpu:1GiB",), redis=f"redis://127.0.0.1:{port}/0"))
    assert nothing_runs(Home(tmp_path))


@pytest.mark.parametrize("failing", ["ray", "head"])
def test_a_start_that_fails_takes_back_what_it_started(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    stopped: list[str] = []

    def no_ray(home: Home) -> RayPlace:
        if failing == "ray":
            raise StartFailed("Ray did not start")
        return RayPlace("127.0.0.1:1", session=None)

    def no_head(home: Home, cluster: ClusterFile) -> bool:
        raise StartFailed("the head did not start")

    def stop_ray(home: Home, place: RayPlace | None) -> list[int]:
        stopped.append("ray")
        return []

    monkeypatch.setattr(own_ray, "start", no_ray)
    monkeypatch.setattr(own_ray, "stop", stop_ray)
    monkeypatch.setattr(cluster, "_start_head", no_head)
    with pytest.raises(StartFailed, match=f"(?i){failing} did not start"):
        up(UpOptions(tmp_path, port=port, devices=("cpu:1GiB",)))
    home = Home(tmp_path)
    assert not home.cluster.exists()
    assert not home.token.exists()
    assert not (home.redis / "redis.sock").exists()
    assert [
        entry for entry in processes.all_processes() if str(home.redis) in processes.title(entry.pid)
    ] == []
    assert stopped.count("ray") == (1 if failing == "ray" else 2)


def test_the_admins_token_is_kept_and_replaced_when_it_was_lost(tmp_path: Path) -> None:
    home = Home(tmp_path)
    redis = embedded.start(home.redis)
    store = RedisStore(redis.url)
    try:
        cluster._ensure_admin(home, store)
        first = home.token.read_text()
        cluster._ensure_admin(home, store)
        assert home.token.read_text() == first
        home.token.unlink()
        cluster._ensure_admin(home, store)
        second = home.token.read_text()
        users = [store.user_by_token(hash_token(token)) for token in (first, second)]
        assert [user.role for user in users if user] == ["admin", "admin"]
        assert second != first
        assert home.token.stat().st_mode & 0o777 == 0o600
    finally:
        store.close()
        embedded.stop(redis.url, redis.pid)


def test_rays_settings_are_ours_whatever_the_environment_says(tmp_path: Path) -> None:
    env = own_ray.environment(
        Home(tmp_path), {"RAY_ADDRESS": "elsewhere:1", "RAY_AUTH_MODE": "disabled", "HOME": "/h"}
    )
    assert "RAY_ADDRESS" not in env
    assert (env["RAY_AUTH_MODE"], env["RAY_USAGE_STATS_ENABLED"], env["HOME"]) == ("token", "0", "/h")
    assert env["RAY_AUTH_TOKEN_PATH"] == str(Home(tmp_path).ray_token)


def test_ray_gets_a_short_folder_when_the_home_is_far_away(tmp_path: Path) -> None:
    near, far = Home(Path("/tmp/h")), Home(tmp_path / ("long" * 20))
    assert len(os.fsencode(near.ray)) <= own_ray._LONGEST_TEMP_DIR
    folder = own_ray._temp_dir(far)
    try:
        assert len(os.fsencode(folder)) <= own_ray._LONGEST_TEMP_DIR
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        folder.rmdir()
