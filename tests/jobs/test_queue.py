"""The queue on its database alone: order, priorities, what workers lose, what is forgotten."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest

from acorn_svc.errors import Conflict, NotFound, Unavailable
from acorn_svc.jobs import life
from acorn_svc.jobs import queue as queue_module
from acorn_svc.jobs.queue import JobQueue, Sign
from acorn_svc.jobs.reaper import Reaper
from acorn_svc.jobs.worker import tidy
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Scene, SceneStore, Status, new_id, now


class Line:
    """A queue, and a worker that asks DBOS's own tables what a worker would get next."""

    def __init__(self, data: Path, database_url: str = "") -> None:
        self.store = SceneStore(Settings(data=data, database_url=database_url))
        self.jobs = JobQueue(self.store, limit=5)
        self.client = self.jobs._client

    def add(self, priority: int = 0) -> Scene:
        upload = self.store.blobs.spool_file()
        upload.write_bytes(b"an image")
        scene = Scene(
            id=new_id(),
            status=Status.QUEUED,
            bytes_original=8,
            format_original="png",
            preset="draft",
            encoder="grid",
            priority=priority,
        )
        return self.jobs.accept(scene, upload)

    def start(self, scene: Scene) -> Scene:
        """What a worker does first; the job leaves the line of DBOS."""
        self.client.cancel_workflow(f"{scene.id}-{scene.run}")
        with self.store.edit(scene.id, scene.run) as row:
            life.start(row)
        return row

    def order(self) -> list[str]:
        """The ids of the scenes that wait, as DBOS would hand them out."""
        waiting = self.client.list_workflows(status="ENQUEUED")
        current = {f"{job.id}-{job.run}" for job in self.store.jobs(Status.QUEUED)}
        mine = [workflow for workflow in waiting if workflow.workflow_id in current]
        mine.sort(key=lambda workflow: (workflow.priority, workflow.created_at or 0))
        return [workflow.workflow_id.rpartition("-")[0] for workflow in mine]

    def entries(self) -> set[str]:
        """What waits in the tables of DBOS, whether it is needed or not."""
        return {workflow.workflow_id for workflow in self.client.list_workflows(status="ENQUEUED")}

    def positions(self) -> list[str]:
        scenes = [self.store.get(job.id) for job in self.store.jobs(*Status)]
        found = self.jobs.positions(scenes)
        return sorted(found, key=lambda scene_id: found[scene_id])


@pytest.fixture
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    """In SQLite, or in the database that a fixture named by the test's parameter gives."""
    elsewhere = getattr(request, "param", "")
    line = Line(tmp_path, request.getfixturevalue(elsewhere) if elsewhere else "")
    yield line
    line.jobs.close()
    line.store.close()


anywhere = pytest.mark.parametrize("line", ["", "database_url"], ids=["sqlite", "postgres"], indirect=True)


def test_urgent_jobs_come_first_and_then_those_that_have_begun(line: Line) -> None:
    late, soon, lost = line.add(-10), line.add(10), line.start(line.add())
    second = line.add()
    line.jobs.give_back(lost.id, lost.run)
    expected = [soon.id, lost.id, second.id, late.id]
    assert line.order() == expected
    assert line.positions() == expected


@anywhere
def test_a_job_that_is_queued_again_keeps_its_place(line: Line) -> None:
    lost, stopped, last = line.add(), line.add(), line.add()
    line.client.cancel_workflow(f"{lost.id}-0")  # as one whose worker died between finding and starting it
    line.jobs.take_over(Sign(lost.id, 0, 0))
    line.start(stopped)
    with line.store.edit(stopped.id, 0) as row:
        row.attempts = 0  # its worker was stopped before there was a checkpoint
    line.jobs.give_back(stopped.id, 0)
    assert line.order() == line.positions() == [lost.id, stopped.id, last.id]


def test_a_priority_may_change_while_a_job_waits(line: Line) -> None:
    first, second = line.add(), line.add()
    assert line.jobs.prioritise(second.id, 1).run == 1
    assert line.order() == line.positions() == [second.id, first.id]
    line.jobs.pause(first.id)
    line.jobs.prioritise(first.id, 2)
    assert line.order() == [second.id]
    line.jobs.resume(first.id)
    assert line.order() == line.positions() == [first.id, second.id]
    line.start(line.store.get(first.id))
    with pytest.raises(Conflict):
        line.jobs.prioritise(first.id, 3)


@anywhere
def test_no_job_is_in_the_line_twice_or_without_need(line: Line) -> None:
    scene_id = line.add().id
    line.jobs.prioritise(scene_id, 1)
    assert line.entries() == {f"{scene_id}-1"}
    line.jobs.take_over(Sign(scene_id, 1, 0))
    assert line.entries() == {f"{scene_id}-2"}
    line.jobs.pause(scene_id)
    assert line.entries() == set()
    line.jobs.resume(scene_id)
    assert line.entries() == {f"{scene_id}-3"}
    line.jobs.cancel(scene_id)
    assert line.entries() == set()
    line.jobs.retry(scene_id)
    assert line.entries() == {f"{scene_id}-5"}
    line.jobs.delete(scene_id)
    assert line.entries() == set()


def test_what_a_crash_leaves_in_the_line_does_no_harm(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, other = line.add(), line.add()
    monkeypatch.setattr(line.client, "cancel_workflow", Mock(side_effect=RuntimeError("a crash")))
    with pytest.raises(RuntimeError, match="a crash"):
        line.jobs.prioritise(scene.id, -1)
    assert line.entries() == {f"{scene.id}-0", f"{scene.id}-1", f"{other.id}-0"}
    assert line.order() == line.positions() == [other.id, scene.id]
    assert line.jobs.signs() == set()
    with pytest.raises(Conflict):
        line.store.beat(scene.id, 0)


def test_a_paused_job_takes_no_place_until_it_is_resumed(line: Line) -> None:
    scene, other = line.add(), line.add()
    assert line.jobs.pause(scene.id).status == Status.PAUSED
    assert line.positions() == [other.id]
    with pytest.raises(Conflict):
        line.jobs.pause(scene.id)
    with pytest.raises(Conflict):
        line.start(line.store.get(scene.id))
    resumed = line.jobs.resume(scene.id)
    assert (resumed.status, resumed.run) == (Status.QUEUED, 1)
    assert line.positions() == [other.id, scene.id]
    with pytest.raises(Conflict):
        line.jobs.resume(scene.id)


def test_paused_jobs_leave_room_and_need_it_to_go_on(line: Line) -> None:
    paused = line.jobs.pause(line.add().id)
    for _ in range(5):
        line.jobs.require_room()
        line.add()
    with pytest.raises(Unavailable) as refused:
        line.jobs.resume(paused.id)
    assert (refused.value.limit, refused.value.value) == ("max_queued_jobs", 5)


def test_what_waits_in_its_place_shows_no_sign(line: Line) -> None:
    line.add()
    line.jobs.pause(line.add().id)
    assert line.jobs.signs() == set()


def test_a_job_of_a_dead_worker_is_taken_over_once(line: Line) -> None:
    scene = line.start(line.add())
    (sign,) = line.jobs.signs()
    assert sign == Sign(scene.id, 0, 1)
    line.jobs.take_over(sign)
    taken = line.store.get(scene.id)
    assert (taken.status, taken.run, taken.attempts) == (Status.QUEUED, 1, 1)
    assert line.order() == [scene.id]
    with pytest.raises(Conflict):
        line.jobs.take_over(sign)
    with pytest.raises(Conflict):
        line.store.beat(scene.id, 0)
    with pytest.raises(Conflict):
        line.store.note_progress(scene.id, 0, {"step": 1})
    with pytest.raises(Conflict):
        line.store.forget_progress_after(scene.id, 0, 0)


def test_a_worker_that_gives_a_sign_in_the_last_moment_keeps_its_job(line: Line) -> None:
    scene = line.start(line.add())
    (sign,) = line.jobs.signs()
    line.store.beat(scene.id, scene.run)
    with pytest.raises(Conflict):
        line.jobs.take_over(sign)
    assert line.store.get(scene.id).status == Status.FITTING


def test_a_job_that_fell_out_of_the_line_is_queued_again(line: Line) -> None:
    scene = line.add()
    line.client.cancel_workflow(f"{scene.id}-0")  # as one whose worker died between finding and starting it
    clock = iter([0.0, 30.0])
    reaper = Reaper(line.jobs, 30, lambda: next(clock))
    assert reaper.look() == []
    assert reaper.look() == [Sign(scene.id, 0, 0)]
    assert line.order() == [scene.id]
    assert line.jobs.signs() == set()


def test_a_job_that_was_deleted_is_not_taken_over(line: Line) -> None:
    scene = line.start(line.add())
    (sign,) = line.jobs.signs()
    line.store.delete(scene.id)
    with pytest.raises(NotFound):
        line.jobs.take_over(sign)
    line.jobs.give_back(scene.id, 0)


def test_old_jobs_are_forgotten_but_those_that_wait_or_run(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled, waiting, running = line.add(), line.add(), line.start(line.add())
    line.jobs.cancel(cancelled.id)
    kept = {f"{waiting.id}-0", f"{running.id}-0"}
    line.jobs.prune()
    assert len(line.client.list_workflows()) == 3
    monkeypatch.setattr(queue_module, "KEPT_WORKFLOWS", timedelta(days=-1))
    line.jobs.prune()
    assert {workflow.workflow_id for workflow in line.client.list_workflows()} == kept


def test_the_course_of_old_fits_is_forgotten_but_not_their_end(line: Line) -> None:
    done, running = line.start(line.add()), line.start(line.add())
    for scene in (done, running):
        line.store.note_progress(scene.id, 0, {"step": 1})
    with line.store.edit(done.id) as row:
        life.finish(row)
    line.store.forget_history(now() - timedelta(days=1), *life.OVER)
    assert len(line.store.progress_after(done.id, 0)) == 1
    line.store.forget_history(now(), *life.OVER)
    assert line.store.progress_after(done.id, 0) == []
    assert line.store.get(done.id).progress == {"step": 1}
    assert len(line.store.progress_after(running.id, 0)) == 1


def test_workers_remove_what_others_left_in_the_spool_when_they_were_killed(line: Line) -> None:
    settings, spool = line.store.settings, line.store.blobs.spool
    left, used = spool / "left", spool / "used"
    for folder in (left, used):
        folder.mkdir()
        (folder / "checkpoint").write_bytes(b"half of it")
    long_ago = time.time() - 2 * settings.gc_age_seconds
    for path in (left / "checkpoint", left):
        os.utime(path, (long_ago, long_ago))
    tidy(line.store, line.jobs, settings)
    assert list(spool.iterdir()) == [used]
