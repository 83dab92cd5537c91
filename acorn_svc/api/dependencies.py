"""What the routes ask for: the parts of the running application, and the scene of the path.

What only hands out a part is `async`: everything else is called in a thread, which costs more than it does.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Response
from fastapi.routing import APIRoute

from acorn_svc.jobs.inspection import Inspector
from acorn_svc.jobs.queue import JobQueue
from acorn_svc.settings import Settings
from acorn_svc.store.scenes import Scene, SceneStore
from acorn_svc.store.uploads import UploadStore


async def get_store(request: Request) -> SceneStore:
    """The store of this application."""
    store: SceneStore = request.app.state.store
    return store


async def get_settings(request: Request) -> Settings:
    """The settings of this application."""
    settings: Settings = request.app.state.settings
    return settings


async def get_jobs(request: Request) -> JobQueue:
    """The job queue of this application."""
    jobs: JobQueue = request.app.state.jobs
    return jobs


async def get_inspector(request: Request) -> Inspector:
    """What checks uploads for this application."""
    inspector: Inspector = request.app.state.inspector
    return inspector


async def get_uploads(request: Request) -> UploadStore:
    """The resumable uploads of this application."""
    uploads: UploadStore = request.app.state.uploads
    return uploads


StoreDep = Annotated[SceneStore, Depends(get_store)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
JobQueueDep = Annotated[JobQueue, Depends(get_jobs)]
InspectorDep = Annotated[Inspector, Depends(get_inspector)]
UploadsDep = Annotated[UploadStore, Depends(get_uploads)]
SceneId = Annotated[str, Path(description="The scene's id.", examples=["01jd3x7k5v9m2q4r8t6w0y1z3b"])]
SceneName = Annotated[
    str,
    Path(
        description="The scene's id, for its newest version, or `{id}-{version}`, for ever that one.",
        examples=["01jd3x7k5v9m2q4r8t6w0y1z3b", "01jd3x7k5v9m2q4r8t6w0y1z3b-7"],
    ),
]


def find_scene(id: SceneId, store: StoreDep) -> Scene:
    """The scene named in the path; raises NotFound."""
    return store.get(id)


SceneDep = Annotated[Scene, Depends(find_scene)]


class PathRoute(APIRoute):
    """A route whose endpoint takes `request` and the texts of the path, and returns a response.

    It is documented as any other, but nothing is checked or looked up for it: that takes longer than
    finding a picture in the cache.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers requests."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request=request, **request.path_params)
            return response

        return handle
