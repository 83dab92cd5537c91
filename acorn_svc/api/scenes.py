"""Scenes: upload, list, inspect, describe, pause, cancel, retry, delete, download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal, Self

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from acorn_svc.api.callers import CallerDep
from acorn_svc.api.dependencies import (
    JobQueueDep,
    SceneDep,
    SceneId,
    SettingsDep,
    StoreDep,
)
from acorn_svc.api.errors import documented
from acorn_svc.api.files import file_response
from acorn_svc.api.gate import alone
from acorn_svc.api.intake import IntakeDep
from acorn_svc.api.rendering import RendererDep
from acorn_svc.api.uploads import receive, spooled
from acorn_svc.errors import BadRequest
from acorn_svc.field.shape import ShapeField
from acorn_svc.jobs.inspection import Inspection
from acorn_svc.jobs.queue import HIGHEST_PRIORITY, JobQueue
from acorn_svc.settings import Settings
from acorn_svc.store.database import PLAIN_TEXT
from acorn_svc.store.keys import Scope
from acorn_svc.store.scenes import Scene, Status, new_id

MAX_PAGE = 100


def _http_uri(text: str) -> str:
    AnyHttpUrl(text)
    return text


def _empty_is_none(value: object) -> object:
    # A form sends every field, also those that nobody filled in.
    return None if value == "" else value


EmptyIsNone = BeforeValidator(_empty_is_none)
Plain = Annotated[str, Field(pattern=PLAIN_TEXT)]
Title = Annotated[Plain, Field(max_length=500, description="A name.", examples=["Pluto"])]
Description = Annotated[Plain, Field(max_length=10_000, description="A longer text about it.")]
Attribution = Annotated[
    Plain, Field(max_length=1_000, description="Whom to name.", examples=["NASA / JHUAPL / SwRI"])
]
Rights = Annotated[
    Plain,
    AfterValidator(_http_uri),
    Field(
        max_length=2_000,
        description="The http(s) URI of a licence or rights statement; IIIF clients show it.",
        examples=["https://creativecommons.org/licenses/by/4.0/"],
    ),
]


class SceneText(BaseModel):
    """What people say about a scene. What is left out stays as it is; null removes it."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[Title | None, EmptyIsNone] = None
    description: Annotated[Description | None, EmptyIsNone] = None
    attribution: Annotated[Attribution | None, EmptyIsNone] = None
    rights: Annotated[Rights | None, EmptyIsNone] = None


Priority = Annotated[
    int, Field(ge=-HIGHEST_PRIORITY, le=HIGHEST_PRIORITY, description="Higher ones are fitted first.")
]


class SceneChange(SceneText):
    """What people say about a scene, who may see it, how urgent it is. What is left out stays as it is."""

    priority: Priority | None = Field(
        None, strict=True, description="Of a scene that waits: higher ones are fitted first."
    )
    public: bool = Field(False, strict=True, description="Whether anybody may see the scene, without a key.")


class SceneOptions(SceneText):
    """What to call the scene, who may see it, and how to fit it."""

    public: bool | None = Field(
        None, description="Whether anybody may see the scene, without a key; usually not."
    )

    preset: Literal["draft", "standard", "fine"] = Field(
        "standard", description="How much care to take: more is slower, larger and better."
    )
    encoder: Literal["grid", "coordinate"] = Field(
        "grid", description="Where features come from: learned per block, or ACORN's network."
    )
    seconds: float | None = Field(
        None, ge=0.1, le=86_400, allow_inf_nan=False, description="Fit for about this long."
    )
    steps: int | None = Field(None, ge=1, le=10_000_000, description="Fit for this many steps.")
    psnr: float | None = Field(
        None, ge=1, le=100, allow_inf_nan=False, description="Stop at this quality, in dB; images only."
    )
    iou: float | None = Field(
        None,
        ge=0.01,
        le=1,
        allow_inf_nan=False,
        description="Stop when so much of the insides agrees; shapes only.",
    )
    blocks: int | None = Field(None, ge=1, le=1 << 18, description="The most blocks (leaves of the tree).")
    priority: Priority = 0

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.seconds is not None and self.steps is not None:
            raise ValueError("give seconds or steps, not both")
        return self

    def decided(self, settings: Settings) -> Self:
        """The same, with what the settings say where the caller says nothing."""
        return self if self.public is not None else self.model_copy(update={"public": settings.scenes_public})

    def fit_options(self) -> dict[str, Any]:
        """The choices that the preset would make otherwise, as far as they were made."""
        return self.model_dump(include={"seconds", "steps", "psnr", "iou", "blocks"}, exclude_none=True)


class SceneError(BaseModel):
    """Why a job failed."""

    code: str = Field(
        examples=["fit_failed"],
        description="out_of_memory, out_of_time, fit_failed or that of another error.",
    )
    message: str


class SceneProgress(BaseModel):
    """How far the fit has come."""

    stage: str = Field(examples=["fitting"], description="measuring, fitting, evaluating or done.")
    step: int
    steps: int = Field(description="All steps of this fit, as far as known.")
    seconds: float | None = Field(description="Time spent fitting.")
    psnr: float | None = Field(None, description="Quality of an image in dB, as last measured.")
    iou: float | None = Field(
        None, description="Quality of a shape: how much of the insides agrees, 0 to 1, as last measured."
    )
    blocks: int
    parameters: int
    bytes: int = Field(description="Size of the `.acorn` file.")


class SceneLinks(BaseModel):
    """Where everything about the scene is, as absolute URLs.

    Of a scene that is ready, those of what it looks like have its version in them: what is there never
    changes, and may be kept for ever.
    """

    self: str
    events: str
    file: str
    original: str
    tree: str
    query: str
    thumbnail: str = Field(description="A small picture, once there is something to see.")
    region: str | None = Field(description="Of an image; null for a shape.")
    iiif: str | None = Field(description="Of an image; null for a shape.")
    dzi: str | None = Field(description="Of an image; null for a shape.")
    mesh: str | None = Field(description="Of a shape; null for an image.")
    tiles3d: str | None = Field(description="The 3D tileset of a shape; null for an image.")


Corner = tuple[float, float, float]


class SceneShape(BaseModel):
    """What is known of a shape. Positions are in the units of the mesh that was uploaded."""

    vertices: int | None = Field(description="Of the mesh as uploaded; null for an `.acorn` file.")
    faces: int | None = Field(description="Triangles of the mesh as uploaded; null for an `.acorn` file.")
    colours: bool = Field(description="Whether the surface has colours.")
    bounds: tuple[Corner, Corner] = Field(
        description="The lowest and the highest corner of the mesh; of an `.acorn` file, of its box."
    )
    repairs: list[str] = Field(
        description="What was wrong with the mesh and mended before the fit, one sentence each.",
        examples=[["2 faces without area were left out."]],
    )


class SceneOut(BaseModel):
    """One scene."""

    id: str = Field(examples=["01jd3x7k5v9m2q4r8t6w0y1z3b"])
    kind: Literal["image", "shape"]
    status: Status
    error: SceneError | None
    title: str | None
    description: str | None
    attribution: str | None
    rights: str | None
    width: int | None = Field(description="In pixels, as seen; null for a shape.")
    height: int | None = Field(description="In pixels, as seen; null for a shape.")
    channels: int | None = Field(
        description="1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha; null for a shape."
    )
    bit_depth: int | None = Field(description="8 or 16; null for a shape.")
    shape: SceneShape | None = Field(description="Null for an image.")
    bytes_original: int
    format_original: str = Field(examples=["jpeg"])
    preset: str
    encoder: str
    created_at: datetime
    updated_at: datetime
    public: bool = Field(description="Whether anybody may see it, without a key.")
    version: int = Field(description="Snapshots so far; 0 means that there is nothing to see yet.")
    progress: SceneProgress | None
    priority: int = Field(description="Higher ones are fitted first.")
    queue_position: int | None = Field(description="Of a scene that waits, 1 being the next; else null.")
    seconds_left: float | None = Field(description="About how long the fit still takes; null when unknown.")
    links: SceneLinks


class SceneList(BaseModel):
    """Some scenes, newest first."""

    items: list[SceneOut]
    next: str | None = Field(description="The `cursor` that continues the list; null at its end.")
    total: int = Field(description="How many scenes there are in all.")


class Tree(BaseModel):
    """The blocks into which an image is divided."""

    kind: Literal["image"] = "image"
    version: int
    width: int
    height: int
    levels: int
    blocks: list[tuple[int, int, int, int]] = Field(
        description="x, y, side and level of each leaf; x, y and side in pixels. "
        "Blocks at the right and lower border may stick out of the image.",
        examples=[[[0, 0, 64, 1], [64, 0, 32, 2]]],
    )


class ShapeTree(BaseModel):
    """The blocks of a shape that hold surface."""

    kind: Literal["shape"] = "shape"
    version: int
    bounds: tuple[Corner, Corner] = Field(
        description="The lowest and the highest corner of the field's box, in the units of the mesh."
    )
    voxel: float = Field(description="Side of a full-size voxel, in the units of the mesh.")
    levels: int
    blocks: list[tuple[float, float, float, float, int]] = Field(
        description="x, y, z of the lowest corner, side and level of each leaf that holds surface; all but "
        "the level in the units of the mesh. Blocks at the far sides may stick out of the box.",
        examples=[[[-1.0, 0.5, 0.0, 0.25, 3]]],
    )


def scene_out(scene: Scene, base: str, position: int | None = None) -> SceneOut:
    """The scene as the API shows it.

    `base` is the URL of the service, with a slash at its end; `position` the scene's in the queue.
    """
    columns = {name: getattr(scene, name) for name in SceneOut.model_fields if name in COLUMNS}
    error = None
    if scene.error_code is not None:
        error = SceneError(code=scene.error_code, message=scene.error_message or "")
    progress = None if scene.progress is None else SceneProgress(**scene.progress)
    shape = None if scene.shape is None else SceneShape(**scene.shape)
    left = seconds_left(scene.progress) if scene.progress and scene.status == Status.FITTING else None
    return SceneOut(
        **columns,
        error=error,
        progress=progress,
        shape=shape,
        queue_position=position,
        seconds_left=left,
        links=links_of(scene, base),
    )


def seconds_left(progress: Mapping[str, Any]) -> float | None:
    """About how long a fit still takes, when the rest goes as what is behind it; None when unknown."""
    step, steps, seconds = (progress[name] for name in ("step", "steps", "seconds"))
    if not step or not steps or seconds is None:
        return None
    return float(round(seconds / step * (steps - step), 1))


COLUMNS = {column.key for column in Scene.__table__.columns} - {"progress", "shape"}


def links_of(scene: Scene, base: str) -> SceneLinks:
    """Where everything about `scene` is, below `base`."""
    own = f"{base}scenes/{scene.id}"
    # What a finished scene looks like may be kept for ever, under an address with its version.
    name = f"{scene.id}-{scene.version}" if scene.status == Status.READY else scene.id
    looks, iiif = f"{base}scenes/{name}", f"{base}iiif/{name}"
    of_image = {
        "region": f"{looks}/region",
        "iiif": f"{iiif}/info.json",
        "dzi": f"{base}dzi/{name}.dzi",
        "thumbnail": f"{iiif}/full/^!400,400/0/default.jpg",
    }
    of_shape = {
        "mesh": f"{looks}/mesh",
        "tiles3d": f"{base}tiles3d/{name}/tileset.json",
        "thumbnail": f"{looks}/thumbnail.webp",
    }
    absent = dict.fromkeys(of_image.keys() | of_shape.keys())
    links = {
        "self": own,
        **{name: f"{own}/{name}" for name in SCENE_PARTS},
        **absent,
        **(of_shape if scene.kind == "shape" else of_image),
    }
    return SceneLinks.model_validate(links)


SCENE_PARTS = ("events", "file", "original", "tree", "query")


async def get_base(request: Request) -> str:
    """The URL of the service as the client reached it, with a slash at its end."""
    try:
        return str(request.base_url)
    except ValueError:
        raise BadRequest("The Host header isn't a host.") from None


BaseDep = Annotated[str, Depends(get_base)]


class Show:
    """Shows scenes to one client."""

    def __init__(self, base: str, jobs: JobQueue) -> None:
        self._base = base
        self._jobs = jobs

    def __call__(self, scene: Scene) -> SceneOut:
        """One scene; asks for its place in the queue, if it has one."""
        return self.all([scene])[0]

    def all(self, scenes: Sequence[Scene]) -> list[SceneOut]:
        """Several at once."""
        positions = self._jobs.positions(scenes)
        return [scene_out(scene, self._base, positions.get(scene.id)) for scene in scenes]


async def get_show(base: BaseDep, jobs: JobQueueDep) -> Show:
    """What shows scenes to this client."""
    return Show(base, jobs)


ShowDep = Annotated[Show, Depends(get_show)]
router = APIRouter(tags=["Scenes"])
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "description": "The file itself, or a form that holds it.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        **SceneOptions.model_json_schema()["properties"],
                    },
                }
            },
        },
    }
}


@router.post(
    "/scenes",
    status_code=201,
    summary="Upload an image, a mesh or an .acorn file",
    responses=documented(400, 401, 403, 413, 415, 422, 429, 503, 507),
    openapi_extra=UPLOAD_BODY,
)
async def create_scene(
    request: Request,
    response: Response,
    options: Annotated[SceneOptions, Query()],
    store: StoreDep,
    intake: IntakeDep,
    settings: SettingsDep,
    show: ShowDep,
    caller: CallerDep,
) -> SceneOut:
    """Send the file as the body of the request, with the options as parameters of the URL, or as a
    form of the type `multipart/form-data` whose fields are the options and `file`.

    What the file is, is told by its content, not by its name or type. JPEG, PNG, WebP and TIFF
    images and PLY, STL, OBJ, OFF and GLB meshes are checked at once, to the last byte, and then
    fitted: follow `links.events`. What was wrong with a mesh and could be mended is told in
    `shape.repairs`. An `.acorn` file becomes a scene that is ready. When this answers 201, the
    upload is safe on disk. `Content-Digest` or `Repr-Digest` with a `sha-256` is checked, of the body or
    of the file in a form. Large files, and those on shaky connections, are better sent to `/uploads`.
    """
    with spooled(store.blobs) as path:
        received = await receive(request, path, store, settings, intake)
        options = with_fields(options, received.fields).decided(settings)
        making = partial(new_scene, options, caller.owner)
        scene = await intake.check(lambda: intake.admit(path, received.sha256, caller.owner, making))
    created = await anyio.to_thread.run_sync(show, scene)
    response.headers["Location"] = created.links.self
    return created


def with_fields(options: SceneOptions, fields: Mapping[str, str]) -> SceneOptions:
    """The options of the URL, overruled by those of a form."""
    filled = {name: value for name, value in fields.items() if value != ""}
    if not filled:
        return options
    try:
        return SceneOptions.model_validate({**options.model_dump(exclude_unset=True), **filled})
    except ValidationError as error:
        complaints = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(complaints) from None


def new_scene(options: SceneOptions, owner: str | None, inspection: Inspection, size: int) -> Scene:
    """The scene of an upload of `size` bytes; raises BadRequest when the options aren't for its kind."""
    _require_options_of(inspection.kind, options)
    ready = inspection.format == "acorn"
    return Scene(
        id=new_id(),
        owner=owner,
        public=bool(options.public),
        kind=inspection.kind,
        status=Status.READY if ready else Status.QUEUED,
        version=1 if ready else 0,
        progress=inspection.progress and inspection.progress.to_json(),
        width=inspection.width,
        height=inspection.height,
        channels=inspection.channels,
        bit_depth=inspection.bit_depth,
        shape=inspection.shape and inspection.shape.to_json(),
        bytes_original=size,
        format_original=inspection.format,
        preset=inspection.preset or options.preset,
        encoder=inspection.encoder or options.encoder,
        options=options.fit_options(),
        priority=options.priority,
        **options.model_dump(include=set(SceneText.model_fields)),
    )


def _require_options_of(kind: str, options: SceneOptions) -> None:
    """Raise BadRequest when an option is for scenes of another kind."""
    if kind == "shape" and options.psnr is not None:
        raise BadRequest("A shape has no psnr; ask for an iou.")
    if kind == "image" and options.iou is not None:
        raise BadRequest("An image has no iou; ask for a psnr.")


@router.get("/scenes", summary="List scenes", responses=documented(401, 404, 422))
def list_scenes(
    store: StoreDep,
    show: ShowDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="At most this many.")] = 20,
    cursor: Annotated[str | None, Query(max_length=64, description="`next` of the page before.")] = None,
) -> SceneList:
    """The newest scenes first, without a key only public ones. Follow `next` for older ones."""
    page = store.page(limit, cursor, only_public=not caller.may(Scope.READ))
    return SceneList(items=show.all(page.items), next=page.next, total=page.total)


@router.get("/scenes/{id}", summary="Inspect a scene", responses=documented(401, 404))
def get_scene(scene: SceneDep, show: ShowDep) -> SceneOut:
    """Everything that is known about one scene."""
    return show(scene)


@router.patch(
    "/scenes/{id}",
    summary="Describe a scene",
    responses=documented(400, 401, 403, 404, 409, 413, 422),
)
def patch_scene(
    id: SceneId, change: SceneChange, store: StoreDep, jobs: JobQueueDep, show: ShowDep
) -> SceneOut:
    """Set title, description, attribution, rights, who may see it, or the priority of a scene that waits."""
    values = change.model_dump(exclude_unset=True)
    priority = values.pop("priority", None)
    if priority is not None:
        jobs.prioritise(id, priority)
    return show(store.update(id, **values))


@router.delete("/scenes/{id}", status_code=204, summary="Delete a scene", responses=documented(401, 403, 404))
def delete_scene(id: SceneId, jobs: JobQueueDep) -> None:
    """Remove the scene with all its files. A running fit is ended."""
    jobs.delete(id)


@router.post("/scenes/{id}/cancel", summary="Cancel a fit", responses=documented(401, 403, 404, 409))
def cancel_scene(id: SceneId, jobs: JobQueueDep, show: ShowDep) -> SceneOut:
    """End a fit that waits, runs or is paused. What it has shown so far stays, and `retry` takes it up."""
    return show(jobs.cancel(id))


@router.post("/scenes/{id}/pause", summary="Pause a fit", responses=documented(401, 403, 404, 409))
def pause_scene(id: SceneId, jobs: JobQueueDep, show: ShowDep) -> SceneOut:
    """Let a fit that waits or runs wait until `resume`. It keeps where it is within seconds, and
    makes room for others.
    """
    return show(jobs.pause(id))


@router.post(
    "/scenes/{id}/resume", summary="Go on with a fit", responses=documented(401, 403, 404, 409, 429, 503)
)
def resume_scene(id: SceneId, jobs: JobQueueDep, show: ShowDep) -> SceneOut:
    """Queue a fit that was paused. It goes on from where it was, and its result is the same as without the
    pause, to the last bit.
    """
    return show(jobs.resume(id))


@router.post("/scenes/{id}/retry", summary="Fit again", responses=documented(401, 403, 404, 409, 429, 503))
def retry_scene(id: SceneId, jobs: JobQueueDep, show: ShowDep) -> SceneOut:
    """Take up a fit that failed or was cancelled, from its last checkpoint if there is one."""
    return show(jobs.retry(id))


DOWNLOAD = documented(404, 416) | {
    200: {"content": {"application/octet-stream": {}}, "description": "The file."},
    206: {"content": {"application/octet-stream": {}}, "description": "One range of it."},
    304: {"description": "The client has it already."},
}


@router.head("/scenes/{id}/file", include_in_schema=False)
@router.get(
    "/scenes/{id}/file",
    summary="Download the .acorn file",
    response_class=Response,
    responses=DOWNLOAD,
)
def get_file(id: SceneId, request: Request, store: StoreDep) -> Response:
    """The newest snapshot, also while the fit runs. Takes one `Range`, and `If-None-Match`."""
    snapshot = store.snapshot(id)
    return file_response(request, lambda: store.local(snapshot), f"{id}.acorn", f'"{id}-{snapshot.version}"')


@router.head("/scenes/{id}/original", include_in_schema=False)
@router.get(
    "/scenes/{id}/original",
    summary="Download the original",
    response_class=Response,
    responses=DOWNLOAD,
)
def get_original(scene: SceneDep, request: Request, store: StoreDep) -> Response:
    """The file exactly as it was uploaded, always as a download."""
    name = f"{scene.id}.{scene.format_original}"
    return file_response(request, lambda: store.original(scene.id), name, f'"{scene.id}-original"')


@router.get("/scenes/{id}/tree", summary="Show the blocks", responses=documented(404, 503))
async def get_tree(id: SceneId, request: Request, renderer: RendererDep) -> Tree | ShapeTree:
    """The blocks into which the newest snapshot is divided: small where an image is busy, and where the
    surface of a shape is. Of a shape, only blocks that hold surface are told.
    """
    view = await renderer.view(id)
    newest, field = await alone(request, renderer.gate.run(lambda _: renderer.open(view)))
    version = newest.snapshot.version
    if isinstance(field, ShapeField):
        return _shape_tree(field, version)
    return Tree(
        version=version,
        width=field.width,
        height=field.height,
        levels=field.info().levels,
        blocks=field.blocks().tolist(),
    )


def _shape_tree(field: ShapeField, version: int) -> ShapeTree:
    blocks = field.blocks()[field.leaf_signs() == 0]
    corners = field.to_mesh_units(blocks[:, :3].astype(np.float64))
    sides, levels = blocks[:, 3] * field.signal.voxel, blocks[:, 4]
    low, high = field.to_mesh_units(np.array([(0, 0, 0), field.signal.size], np.float64)).tolist()
    return ShapeTree(
        version=version,
        bounds=(low, high),
        voxel=field.signal.voxel,
        levels=field.info().levels,
        blocks=[
            (*corner, side, level)
            for corner, side, level in zip(corners.tolist(), sides.tolist(), levels.tolist(), strict=True)
        ],
    )
