"""What is promised when a server cannot start, and when the process of a fit dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_server import Server, picture, wait_until


@pytest.mark.slow
def test_a_second_server_on_the_same_folder_refuses_to_start(tmp_path: Path) -> None:
    with Server(tmp_path):
        second = Server(tmp_path)
        with pytest.raises(AssertionError, match="ended at its start"):
            second.start()
        second.kill()


@pytest.mark.slow
def test_a_fit_that_keeps_dying_fails_with_a_reason(tmp_path: Path) -> None:
    with Server(tmp_path, checkpoint_seconds=3600, job_attempts=2) as server:
        scene = server.upload(picture(256), steps=10_000_000)
        killed: set[int] = set()

        def failed() -> bool:
            for child in server.processes("acorn_svc.jobs.child"):
                if child.pid not in killed:
                    killed.add(child.pid)
                    child.kill()
            return bool(server.scene(scene["id"])["status"] == "failed")

        wait_until(failed, "the job has failed")
        error = server.scene(scene["id"])["error"]
        assert error["code"] == "fit_failed"
        assert len(killed) == 2


@pytest.mark.slow
def test_a_fit_that_needs_too_much_memory_says_so_and_its_neighbour_finishes(tmp_path: Path) -> None:
    small: dict[str, object] = {"max_image_pixels": 4 * 10**6, "max_image_side": 2000}
    small |= {"max_mesh_vertices": 1000, "max_mesh_faces": 1000}
    memory = 380 * 1024 * 1024
    with Server(tmp_path, **small, job_memory_bytes=memory) as server:
        large, neighbour = server.upload(picture(2000), steps=100), server.upload(picture(), steps=5)
        server.wait_for_status(neighbour["id"], "ready")
        error = server.scene(large["id"])["error"]
        assert error["code"] == "out_of_memory"
        assert f"job_memory_bytes allows: {memory}" in error["message"]
