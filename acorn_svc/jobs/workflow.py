"""The durable part of a fit: what happens when, and when a process dies.

A job is one DBOS workflow whose only step watches one child until it ends. When the child dies, the step
says so and is run again, `job_attempts` times at most without a new checkpoint; the child goes on from
its last one. When the worker dies, its lease runs out and the job is queued again under a new run
(`jobs.reaper`); when it is stopping, it does that itself.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from dbos import DBOS, WorkflowSerializationFormat

from acorn_svc.errors import Conflict, FitFailed, NotFound, OutOfTime, Unavailable
from acorn_svc.jobs import endings, life
from acorn_svc.jobs.inspection import file_limits
from acorn_svc.jobs.lease import Lease
from acorn_svc.jobs.process import Message, end, lines, spawn_child
from acorn_svc.jobs.queue import WORKFLOW, JobQueue
from acorn_svc.jobs.words import Failed, GoesOn, Made, Started, understand
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Scene, SceneStore, Status

Child = subprocess.Popen[bytes]
Heard = queue.SimpleQueue[bytes]

LOOK_SECONDS = 0.25
TROUBLE_SECONDS = 5
LAST_WORDS_SECONDS = 5  # between the end of a child and the last of what it says, whichever comes first
UNHEARD_LINES = 1000  # a fit has a few lines a second: far more than a slow database makes wait
CHILD_SHARE = 0.8  # of the time to shut down; then the job is given back without what the child was doing
ENDED = b""
LEASE_IS_OVER = "the lease is over"
NOT_WANTED = "the job is not wanted here any more"

log = structlog.get_logger()


def register(watch: Callable[[str, int], bool]) -> None:
    """Tell DBOS what a job is: `watch(scene id, run)` until it says that the job is over."""

    @DBOS.step(name="watch")
    def once(scene_id: str, run: int) -> bool:
        with structlog.contextvars.bound_contextvars(scene=scene_id, run=run):
            log.info("fit starts")
            over = watch(scene_id, run)
            log.info("fit ends", over=over)
            return over

    @DBOS.workflow(name=WORKFLOW, serialization_type=WorkflowSerializationFormat.PORTABLE)
    def fit_scene(scene_id: str, run: int) -> None:
        while not once(scene_id, run):
            pass


def begin_fit(request: Message) -> Child:
    """Start the child that fits."""
    return spawn_child("fit", request)


class Watcher:
    """Starts the child of a job, keeps what it makes, and ends it when nobody wants it any more."""

    def __init__(
        self,
        store: SceneStore,
        jobs: JobQueue,
        settings: Settings,
        begin: Callable[[Message], Child] = begin_fit,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._settings = settings
        self._begin = begin
        self._stopping = threading.Event()
        self._place = threading.Lock()

    def watch(self, scene_id: str, run: int) -> bool:
        """One start of the job; true when it is over or left, false when it should be started again."""
        with self._place:  # DBOS may hand out two jobs that come close together
            over = not self._stopping.is_set() and self._watch_safely(scene_id, run)
            if self._stopping.is_set() and not over:
                self._jobs.give_back(scene_id, run)
        if self._stopping.is_set():
            threading.Event().wait()  # never returns, so that no other job is handed out
        return over

    def stop(self, seconds: float) -> None:
        """Ask a running child for a last checkpoint, and wait for its end, `seconds` at most."""
        self._stopping.set()
        self._place.acquire(timeout=seconds)

    def _watch_safely(self, scene_id: str, run: int) -> bool:
        try:
            return self._watch(scene_id, run)
        except (NotFound, Conflict):  # deleted, cancelled or replaced
            log.info(NOT_WANTED)
            return True
        except Exception:
            # A full disk, for example: the job is not to blame. It is left as if this worker were lost, goes
            # on after a lease, and lets others have their turn meanwhile.
            log.exception("job interrupted", scene=scene_id, run=run)
            return not self._stopping.wait(TROUBLE_SECONDS)

    def _watch(self, scene_id: str, run: int) -> bool:
        scene = self._take(scene_id, run)
        if scene.status != Status.FITTING:
            return True
        try:
            with self._store.blobs.spool_folder() as spool:
                return self._run(scene, spool)
        except (NotFound, Conflict):
            raise
        except FitFailed as error:  # it would end so again
            return self._fail(scene, error.code, error.message)
        except Exception:
            self._forgive(scene)
            raise

    def _run(self, scene: Scene, spool: Path) -> bool:
        child = self._begin(self._request(scene, spool))
        heard = _listen(child)
        try:
            with self._lease(scene, child, spool) as lease:
                over = self._follow(child, heard, scene, spool)
                return over or self._ended(scene, _exit_status(child), lease)
        finally:
            end(child, heard=True)

    def _lease(self, scene: Scene, child: Child, spool: Path) -> Lease:
        def beat() -> None:
            self._store.beat(scene.id, scene.run)
            os.utime(spool)  # or it would look as if somebody had left it in the spool

        def let_go() -> None:
            log.warning(LEASE_IS_OVER, scene=scene.id, run=scene.run)
            child.kill()

        return Lease(
            beat,
            let_go,
            lease_seconds=self._settings.lease_seconds,
            heartbeat_seconds=self._settings.heartbeat_seconds,
        )

    def _take(self, scene_id: str, run: int) -> Scene:
        """Count one more start; a job that keeps dying without progress is given up.

        Raises Conflict when there is nothing to start: it was paused, for example.
        """
        with self._store.edit(scene_id, run) as scene:
            starts = scene.attempts
            life.start(scene)
            if starts >= self._settings.job_attempts:
                reason = endings.ended_too_often(starts)
                life.fail(scene, reason.code, reason.message)
        return scene

    def _request(self, scene: Scene, spool: Path) -> Message:
        settings = self._settings
        shared = {
            "preset": scene.preset,
            "encoder": scene.encoder,
            "threads": settings.job_threads,
            "device": settings.job_device,
        }
        return {
            "original": str(self._original(scene)),
            "checkpoints": [str(path) for path in self._store.checkpoints(scene.id)],
            "spool": str(spool),
            "limits": file_limits(settings),
            "options": {**scene.options, **shared},
            "checkpoint_seconds": settings.checkpoint_seconds,
            "memory_bytes": settings.job_memory_bytes,
            "cpu_seconds": settings.job_wall_seconds * settings.job_threads,
        }

    def _original(self, scene: Scene) -> Path:
        try:
            return self._store.original(scene.id)
        except FileNotFoundError:
            raise FitFailed("The original is lost.") from None

    def _follow(self, child: Child, heard: Heard, scene: Scene, spool: Path) -> bool:
        """Take in what the child says until it ends; true when that said that the job is over."""
        deadline = time.monotonic() + self._settings.job_wall_seconds
        asked = gone = False
        while (line := _next(heard)) != ENDED:
            if line is not None and self._hear(scene, spool, line):
                return True
            if self._should_end(scene) and not asked:
                asked = True
                child.terminate()
                deadline = time.monotonic() + CHILD_SHARE * self._settings.shutdown_seconds
            if child.poll() is not None and not gone:
                gone = True
                deadline = time.monotonic() + LAST_WORDS_SECONDS
            if time.monotonic() > deadline:
                if gone:
                    break  # something that it has started still holds the pipe
                if not asked:
                    return self._out_of_time(scene)
                child.kill()  # the job goes on from the checkpoint before
        return False

    def _out_of_time(self, scene: Scene) -> bool:
        reason = endings.out_of_time(self._settings.job_wall_seconds)
        return self._fail(scene, reason.code, reason.message)

    def _should_end(self, scene: Scene) -> bool:
        """Whether the child is to keep where it is and end; raises Conflict when nobody wants even that."""
        present = self._store.get(scene.id)
        if present.run != scene.run:
            raise Conflict("This job is not wanted any more.")
        return present.status == Status.PAUSED or self._stopping.is_set()

    def _hear(self, scene: Scene, spool: Path, line: bytes) -> bool:
        """Keep what the child says; true when it was the last."""
        match understand(line):
            case Started(step=step):
                self._store.forget_progress_after(scene.id, scene.run, step)
            case GoesOn(progress=progress):
                self._store.note_progress(scene.id, scene.run, progress.to_json())
            case Made(say="snapshot") as made:
                self._publish(scene, spool, made)
            case Made() as made:
                self._publish(scene, spool, made, life.finish)
                return True
            case Failed(error=error):
                return self._fail(scene, error.code, error.message)
        return False

    def _publish(
        self, scene: Scene, spool: Path, made: Made, then: Callable[[Scene], None] | None = None
    ) -> None:
        checkpoint = _own_file(spool, made.checkpoint) if made.checkpoint else None
        snapshot, progress = _own_file(spool, made.file), made.progress.to_json()
        self._store.publish_snapshot(scene.id, scene.run, snapshot, progress, checkpoint, then)

    def _ended(self, scene: Scene, status: int, lease: Lease) -> bool:
        """The child ended without a last word, as it was asked to or in a crash; true when that was all.

        Raises Unavailable when it was killed because the lease was over, which says nothing of the job.
        """
        if lease.is_over:
            raise Unavailable("No sign of life of this job could be given.")
        if self._store.get(scene.id).status == Status.PAUSED:
            return True
        if self._stopping.is_set():
            self._forgive(scene)
            return False
        log.warning("fit died", scene=scene.id, run=scene.run, exit=status)
        reason = endings.reason_of(status, self._settings.job_wall_seconds)
        left = self._store.get(scene.id).attempts < self._settings.job_attempts
        if left and not isinstance(reason, OutOfTime):
            return False
        return self._fail(scene, reason.code, reason.message)

    def _fail(self, scene: Scene, code: str, reason: str) -> bool:
        with self._store.edit(scene.id, scene.run) as row:
            life.fail(row, code, reason)
        return True

    def _forgive(self, scene: Scene) -> None:
        """A start that was ended by us doesn't count; a database that is away is waited for."""
        while True:
            try:
                with self._store.edit(scene.id, scene.run) as row:
                    row.attempts = max(0, row.attempts - 1)
                return
            except (NotFound, Conflict):
                raise
            except Exception:
                if self._stopping.wait(TROUBLE_SECONDS):
                    raise


def _own_file(spool: Path, name: str) -> Path:
    """A file that the child made in its folder of the spool.

    It can name no other, for a hostile original may have taken it over; raises FitFailed.
    """
    path = Path(name)
    if path not in spool.iterdir() or path.is_symlink() or not path.is_file():
        raise FitFailed("The fit named a file that isn't its own.")
    return path


def _listen(child: Child) -> Heard:
    """What the child says, to be waited for with a time limit; ENDED comes last.

    No more is read when far too much waits to be heard, so that a hostile child cannot fill the memory.
    """
    heard: Heard = queue.SimpleQueue()
    threading.Thread(target=_pass_on, args=(child, heard), daemon=True).start()
    return heard


def _pass_on(child: Child, heard: Heard) -> None:
    assert child.stdout is not None
    try:
        with child.stdout as stream:
            for line in lines(stream):
                heard.put(line)
                if _is_too_much(heard):
                    break
    finally:
        heard.put(ENDED)


def _is_too_much(heard: Heard) -> bool:
    return heard.qsize() > UNHEARD_LINES


def _next(heard: Heard) -> bytes | None:
    """What is to be heard now, if anything; raises FitFailed when it is far too much."""
    if _is_too_much(heard):
        raise FitFailed("The process of the fit said more than a fit has to say.")
    try:
        return heard.get(timeout=LOOK_SECONDS)
    except queue.Empty:
        return None


def _exit_status(child: Child) -> int:
    """How the child ended, now that it says no more; it does not stay for that."""
    try:
        return child.wait(LAST_WORDS_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
