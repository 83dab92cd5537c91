"""The command line: `acorn fit | render | mesh | info | eval | serve | worker | keys | audit | demo | doctor
| gc | backup | restore`.

Heavy libraries are imported by the commands that need them, so that help comes at once.
"""

from __future__ import annotations

import getpass
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from acorn_svc.errors import AcornError, BadRequest

if TYPE_CHECKING:
    from types import FrameType

    from pydantic import ValidationError

    from acorn_svc.field.kinds import AnyField
    from acorn_svc.field.model import Field
    from acorn_svc.field.shape import ShapeField
    from acorn_svc.formats.checkpoint import Checkpoint
    from acorn_svc.formats.mesh_files import MeshEncoding
    from acorn_svc.settings import Settings
    from acorn_svc.store.backup import Backup
    from acorn_svc.store.database import Database
    from acorn_svc.store.keys import KeyStore
    from acorn_svc.store.scenes import SceneStore
    from acorn_svc.training.loop import Progress as FitProgress
    from acorn_svc.training.state import FitState

CHECKPOINT_SECONDS = 15.0
DURATIONS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
INTERRUPTED = 130
PICTURE_SUFFIXES = {".png": "png", ".tif": "tif", ".tiff": "tif", ".jpg": "jpg", ".jpeg": "jpg",
                    ".webp": "webp"}  # fmt: skip
MESH_SUFFIXES = (".glb", ".ply", ".stl", ".obj")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Images and 3D shapes as adaptive neural fields: fit one, look at it at any scale, serve it.\n\n"
    "A first try:  `acorn fit photo.jpg -o photo.acorn`, then "
    "`acorn render photo.acorn -o again.png`. Or see it all at once: `acorn demo`.",
)
keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of the service.")
app.add_typer(keys_app, name="keys")
out = Console()
err = Console(stderr=True)

Model = Annotated[
    Path, typer.Argument(metavar="X.acorn", exists=True, dir_okay=False, help="A fitted field.")
]
Preset = Literal["draft", "standard", "fine"]
Encoder = Literal["grid", "coordinate"]
Device = Literal["cpu", "cuda"]
Mlp = Literal["own", "tiny-cuda-nn"]
Data = Annotated[Path | None, typer.Option(help="The folder for everything kept.")]
ScopeName = Literal["read", "write", "admin"]
Box = tuple[float, float, float, float]
N = TypeVar("N", int, float)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the program; errors that may happen become one sentence and exit code 1, wrong usage 2."""
    try:
        app(arguments)
    except AcornError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'The system'}: {error.strerror or error}.")
    except Exception as error:
        from acorn_svc.api.errors import of_storage

        known = of_storage(error)
        if known is None:
            raise
        reason = str(getattr(error, "orig", "")).partition("\n")[0]
        _fail(f"{known} {escape(reason)}".rstrip())
    sys.exit(0)


def _fail(sentence: str) -> NoReturn:
    err.print(f"[bold red]Error:[/] {sentence}", highlight=False, soft_wrap=True)
    sys.exit(1)


@app.command(
    epilog="**Examples**\n\n"
    "`acorn fit photo.jpg -o photo.acorn` - the standard preset\n\n"
    "`acorn fit photo.jpg -o photo.acorn --preset draft --seconds 10` - a quick look\n\n"
    "`acorn fit photo.jpg -o photo.acorn --psnr 40` - stop when it is as good as that\n\n"
    "`acorn fit photo.jpg -o photo.acorn --resume` - go on after Ctrl-C or a loss of power\n\n"
    "`acorn fit scan.ply -o scan.acorn` - a 3D shape"
)
def fit(
    original: Annotated[
        Path,
        typer.Argument(
            metavar="ORIGINAL",
            exists=True,
            dir_okay=False,
            help="An image (JPEG, PNG, WebP, TIFF) or a mesh (PLY, STL, OBJ, OFF, GLB).",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="X.acorn", help="The file to write.")],
    preset: Annotated[Preset, typer.Option(help="How much effort to spend.")] = "standard",
    seconds: Annotated[float | None, typer.Option(min=0.1, max=1e7, help="Fit for about this long.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=10**9, help="Fit for this many steps.")] = None,
    psnr: Annotated[
        float | None, typer.Option(min=1, max=120, help="Stop at this quality of an image, in dB.")
    ] = None,
    iou: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Stop when so much of a shape's inside agrees.")
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(min=1, max=4_000_000, help="At most this many leaf blocks.")
    ] = None,
    encoder: Annotated[
        Encoder | None,
        typer.Option(help="Where blocks get their features: learned (grid) or made by a network."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processor threads; default all.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute; cuda needs an NVIDIA GPU.")] = "cpu",
    mlp: Annotated[Mlp, typer.Option(help="What runs the coordinate encoder's network on a GPU.")] = "own",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of all random choices.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint X.acorn.state.")
    ] = False,
) -> None:
    """Fit a field to an image or a mesh and write it to a file.

    A checkpoint is kept beside the output while the fit runs and on Ctrl-C, and removed at the end.
    """
    options = {
        "preset": preset, "seconds": seconds, "steps": steps, "psnr": psnr, "iou": iou, "blocks": blocks,
        "encoder": encoder, "threads": threads, "device": device, "mlp": mlp, "seed": seed,
    }  # fmt: skip
    _check_folder(output)
    last = _fit(original, output, options, resume=resume)
    size = output.stat().st_size
    out.print(
        f"{output}: {_quality(last)}, {last.blocks} blocks, {last.parameters} parameters, "
        f"{size} bytes, {last.seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


@app.command(
    epilog="**Examples**\n\n"
    "`acorn render photo.acorn -o whole.png` - all of it, at its own size\n\n"
    "`acorn render photo.acorn -o small.jpg --size 800,600` - at any other size\n\n"
    "`acorn render photo.acorn -o eye.png --region 210,90,64,64 --size 512,512` - a part, enlarged"
)
def render(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A .png, .tif, .jpg or .webp file to write.")
    ],
    region: Annotated[
        str | None,
        typer.Option(metavar="x,y,w,h", help="In pixels of the full image; default all."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="w,h", help="Of the output; default that of the region.")
    ] = None,
) -> None:
    """Render a field, or a region of it, as a picture of any size."""
    suffix = output.suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        known = ", ".join(PICTURE_SUFFIXES)
        raise typer.BadParameter(f"the output's name must end in one of {known}")
    box = _numbers(region, "x,y,w,h", float) if region else None
    pixels = _numbers(size, "w,h", int) if size else None
    _check_folder(output)
    from acorn_svc.field.kinds import as_image

    _render(as_image(_read_field(model)), output, PICTURE_SUFFIXES[suffix], box, pixels)


@app.command(
    epilog="**Examples**\n\n"
    "`acorn mesh scan.acorn -o scan.glb` - 256 cells along the longest side\n\n"
    "`acorn mesh scan.acorn -o small.glb --resolution 64 --draco` - a few kilobytes\n\n"
    "`acorn mesh scan.acorn -o print.stl --resolution 1000` - for a printer"
)
def mesh(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .glb, .ply, .stl or .obj file to write.")],
    resolution: Annotated[
        int, typer.Option(min=1, max=8192, help="Cells along the longest side of the shape's box.")
    ] = 256,
    draco: Annotated[bool, typer.Option("--draco", help="Compress a .glb; needs the extra `draco`.")] = False,
) -> None:
    """Write the surface of a shape as a watertight mesh of any resolution."""
    suffix = output.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise typer.BadParameter(f"the output's name must end in one of {', '.join(MESH_SUFFIXES)}")
    _check_folder(output)
    from acorn_svc.field.kinds import as_shape

    _mesh(as_shape(_read_field(model)), output, cast(Any, suffix[1:]), resolution, draco=draco)


@app.command()
def info(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what a file holds.

    Examples: `acorn info photo.acorn`, `acorn info photo.acorn --json | jq .psnr`
    """
    facts = _read_field(model).info().to_json() | {"bytes": model.stat().st_size}
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    out.print(_two_columns(facts.items()))


@app.command(
    "eval",
    epilog="**Examples**\n\n"
    "`acorn eval photo.acorn photo.jpg` - PSNR of every scale\n\n"
    "`acorn eval scan.acorn scan.ply --points 1000000` - overlap, distances, normals, colours\n\n"
    "`acorn eval scan.acorn scan.ply --json | jq .iou`",
)
def evaluate(
    model: Model,
    original: Annotated[
        Path,
        typer.Argument(metavar="ORIGINAL", exists=True, dir_okay=False, help="What it was fitted to."),
    ],
    points: Annotated[
        int, typer.Option(min=1, max=100_000_000, help="Random points for each measure of a shape.")
    ] = 300_000,
    resolution: Annotated[
        int, typer.Option(min=1, max=8192, help="Cells along the longest side of a shape's extracted mesh.")
    ] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure how good a field is, against the image or mesh that it was fitted to."""
    facts = _measured(_read_field(model), original, points, resolution)
    facts["bytes"] = model.stat().st_size
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    out.print(_two_columns((name, _short(value)) for name, value in facts.items()))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Port to listen on.")] = None,
    data: Data = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Listen on any address, though there is no key to keep others out."),
    ] = None,
) -> None:
    """Start the service: page, REST API, IIIF and Deep Zoom, and the worker that fits.

    All else is set by environment variables, ACORN_...; `docs/settings.md` and `docs/limits.md` list
    them.
    """
    from acorn_svc.api.app import serve as run

    run(_settings(host=host, port=port, data=data, insecure=insecure))


@keys_app.command(
    "create",
    epilog="**Examples**\n\n"
    "`acorn keys create --name me --scope admin` - the first one\n\n"
    "`acorn keys create --name camera --scope write --expires-in 90d`",
)
def create_key(
    name: Annotated[str, typer.Option(help="Who or what it is for.")],
    scope: Annotated[
        ScopeName, typer.Option(help="read: see everything; write: also upload; admin: also all else.")
    ] = "read",
    expires_in: Annotated[
        str | None, typer.Option(metavar="TIME", help="Such as 90d, 12h or 30m; default never.")
    ] = None,
    data: Data = None,
) -> None:
    """Make a key and print it. It is shown now and never again.

    From the first key on, the service asks for one.
    """
    lifetime = _duration(expires_in) if expires_in else None
    from acorn_svc.store.keys import Scope

    if not 0 < len(name) <= 100:
        raise typer.BadParameter("the name must have 1 to 100 characters")
    with _access(data) as (keys, note):
        key, text = keys.create(name, Scope(scope), lifetime)
        note("keys create", key.id)
    err.print(f"The key {key.id}, {scope}; keep it, it is not shown again:", highlight=False)
    print(text)


@keys_app.command("list")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    data: Data = None,
) -> None:
    """List all keys, but not the keys themselves."""
    columns = ("id", "name", "scope", "created_at", "expires_at", "revoked_at", "used_at")
    with _access(data) as (keys, _):
        _show_rows([{name: getattr(key, name) for name in columns} for key in keys.all()], as_json=as_json)


@keys_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID")], data: Data = None) -> None:
    """Let a key open nothing any more; a running service knows within two seconds."""
    with _access(data) as (keys, note):
        keys.revoke(key_id)
        note("keys revoke", key_id)


@keys_app.command("end-links")
def end_links(data: Data = None) -> None:
    """End every signed link and every session of the page; keys stay as they are."""
    with _access(data) as (keys, note):
        keys.renew_signing_secret()
        note("keys end-links", None)


@app.command("audit")
def show_audit_log(
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most this many.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    data: Data = None,
) -> None:
    """Show who changed what, newest first."""
    from acorn_svc.store.audit import AuditLog

    columns = ("at", "caller", "name", "action", "target", "address", "status")
    with _database(data) as (database, settings):
        entries = AuditLog(database, settings.max_audit_entries).newest(limit)
        _show_rows([{name: getattr(entry, name) for name in columns} for entry in entries], as_json=as_json)


@app.command()
def worker(
    data: Annotated[Path | None, typer.Option(help="The folder for everything kept.")] = None,
) -> None:
    """Run fits for a service, one after the other, until SIGTERM or Ctrl-C.

    Set it as the server is set, by ACORN_...; as many may run as there is work for. More in `docs/jobs.md`.
    """
    from acorn_svc.jobs.worker import run

    run(_settings(data=data))


@app.command()
def demo(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Default 8000, or a free one.")] = None,
    data: Data = None,
    browser: Annotated[bool, typer.Option(help="Open the page when there is a display.")] = True,
) -> None:
    """Start the service with a photo being fitted before your eyes."""
    from acorn_svc import demo as demonstration
    from acorn_svc.api.app import serve as run

    photo = demonstration.photo()
    settings = _settings(host=host, port=port or demonstration.free_port(host), data=data)
    demonstration.show_when_ready(
        f"http://{settings.host}:{settings.port}", photo, say=out.print, browser=browser
    )
    run(settings)


@app.command(
    epilog="**Examples**\n\n"
    "`acorn gc` - what has been left for a day\n\n"
    "`acorn gc --older-than 1` - what has been left for an hour"
)
def gc(
    older_than: Annotated[
        float | None,
        typer.Option(min=0, max=8760, metavar="HOURS", help="Default ACORN_GC_AGE_SECONDS, a day."),
    ] = None,
    data: Data = None,
) -> None:
    """Remove files that no scene needs, left behind by a crash, and unfinished uploads that have expired.

    Safe while the service runs, which does the same every hour.
    """
    from acorn_svc.store.uploads import UploadStore

    with _store(data) as (store, settings):
        age = settings.gc_age_seconds if older_than is None else older_than * 3600
        least = settings.least_gc_age_seconds
        if age < least:
            raise typer.BadParameter(f"files younger than {least:.0f} seconds may still be written to")
        removed, expired = store.collect(age), UploadStore(store).sweep()
    files, size = removed.files + expired.files, removed.bytes + expired.bytes
    out.print(f"Removed {files} files, {size} bytes.", highlight=False)
    if removed.foreign:
        err.print(f"{removed.foreign} files may be another database's and were left alone.", highlight=False)


@app.command(
    epilog="**Examples**\n\n"
    "`acorn backup /mnt/backups/monday` - to a folder\n\n"
    "`acorn backup monday.tar` - to one file"
)
def backup(
    destination: Annotated[Path, typer.Argument(help="A new folder, or a new file that ends in .tar.")],
    data: Data = None,
) -> None:
    """Copy all scenes and their files, as they are at one moment.

    Safe while the service runs, also while it fits: whoever writes waits for the end of the copy only.
    PostgreSQL and an object store are copied too: their rows and files are in the backup as any others.
    """
    _check_parent(destination)
    from acorn_svc.store.backup import write_backup

    with _store(data) as (store, _):
        copied = write_backup(store, destination)
    _tell_copied(destination, copied)


@app.command(
    epilog="**Examples**\n\n`acorn restore monday.tar --data new-data` - then `acorn serve --data new-data`"
)
def restore(
    source: Annotated[Path, typer.Argument(exists=True, help="What `acorn backup` has written.")],
    data: Data = None,
) -> None:
    """Fill an empty data folder from a backup; every file is compared with its digest.

    With ACORN_DATABASE_URL and ACORN_BLOB_URL set, scenes and files go there, wherever they came from.
    """
    from acorn_svc.store.backup import restore_backup

    _tell_copied(source, restore_backup(source, _settings(data=data)))


@app.command()
def doctor() -> None:
    """Say what is installed and what works here."""
    from acorn_svc import doctor as checks

    findings = list(checks.examine())
    table = Table("", "what", "found", box=None, show_header=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.works else "[red]missing[/]" if finding.needed else "-"
        table.add_row(mark, finding.what, finding.found)
    out.print(table)
    if any(finding.needed and not finding.works for finding in findings):
        raise typer.Exit(1)


def _fit(path: Path, output: Path, options: dict[str, Any], *, resume: bool) -> FitProgress:
    """Fits with a progress bar and checkpoints, writes the file; the last progress."""
    from acorn_svc.formats.checkpoint import Checkpoint
    from acorn_svc.formats.container import write_field
    from acorn_svc.formats.originals import arrays_of, read_original, repairs_of, target_of
    from acorn_svc.training import loop
    from acorn_svc.training.presets import configure

    original = read_original(path)
    for repair in repairs_of(original):
        err.print(f"Repaired: {repair}", highlight=False, soft_wrap=True)
    target = target_of(original)
    checkpoint = Checkpoint(output.with_name(f"{output.name}.state"), *arrays_of(original))
    state = _begin(checkpoint, resume=resume)
    with _asked_to_stop() as stop, _progress_bar() as show:
        for progress in loop.fit(target, configure(target, **options), state):
            show(progress)
            if progress.stage == "done":
                write_field(output, progress.field())
            elif stop.is_set() or checkpoint.age >= CHECKPOINT_SECONDS:
                checkpoint.write(progress.state())
            if stop.is_set() and progress.stage != "done":
                err.print("Stopped; the same command with --resume goes on from here.")
                raise typer.Exit(INTERRUPTED)
    checkpoint.remove()
    return progress


def _begin(checkpoint: Checkpoint, *, resume: bool) -> FitState | None:
    """Where the fit goes on, if it was asked to and can."""
    saved = checkpoint.read() if resume else None
    if resume and saved is None:
        err.print("There is no checkpoint; starting from the beginning.")
    elif not resume and checkpoint.exists():
        err.print("A checkpoint of an earlier fit will be replaced; --resume would go on from it.")
    return saved


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a polite kill sets; the second Ctrl-C interrupts as ever."""
    event = threading.Event()
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress_bar() -> Iterator[Callable[[FitProgress], None]]:
    """Draws what it is given: stage, quality, blocks, time left."""
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        TextColumn("{task.fields[quality]}  {task.fields[blocks]} blocks"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("reading", total=None, quality="", blocks=0)

        def show(progress: FitProgress) -> None:
            bar.update(
                task, description=progress.stage, completed=progress.step,
                total=progress.steps or None, quality=_quality(progress), blocks=progress.blocks,
            )  # fmt: skip

        yield show


def _mesh(field: ShapeField, output: Path, kind: MeshEncoding, resolution: int, *, draco: bool) -> None:
    from acorn_svc.formats.mesh_files import write_mesh_file

    columns = (TextColumn("{task.description:10}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("extracting", total=1.0)
        parts = field.mesh_parts(resolution, lambda done: bar.update(task, completed=done))
        write_mesh_file(parts, kind, output, draco=draco)


def _render(field: Field, output: Path, kind: str, region: Box | None, size: tuple[int, int] | None) -> None:
    from acorn_svc.formats.files import replace_file

    _, _, width, height = region or (0, 0, field.width, field.height)
    size = size or (max(1, round(width)), max(1, round(height)))
    replace_file(output, _picture(field, kind, region, size))


def _picture(field: Field, kind: str, region: Box | None, size: tuple[int, int]) -> Iterable[bytes]:
    """The parts of a picture's file. PNG and TIFF are made strip by strip, in little memory."""
    from acorn_svc.formats import images, strips

    streams = {"png": strips.stream_png, "tif": strips.stream_tiff}
    if kind in streams:
        rendered = field.render_strips(region, size)
        return streams[kind](rendered, *size, field.channels, field.bit_depth)
    try:
        return [images.encode_image(field.render(region, size), cast(Any, kind))]
    except ValueError as error:
        raise BadRequest(f"{error}; PNG and TIFF have no such limit.") from error


def _measured(field: AnyField, original: Path, points: int, resolution: int) -> dict[str, float | None]:
    """The quality of a field, number by number."""
    from acorn_svc.field.shape import ShapeField
    from acorn_svc.formats.originals import read_original, target_of
    from acorn_svc.training.evaluation import psnr_of_scales
    from acorn_svc.training.shape_metrics import evaluate_shape
    from acorn_svc.training.targets import ImageTarget

    target = target_of(read_original(original))
    if isinstance(field, ShapeField):
        if isinstance(target, ImageTarget):
            raise BadRequest("The field is one of a shape and cannot be measured against an image.")
        return evaluate_shape(field, target, points, resolution).to_json()
    if not isinstance(target, ImageTarget):
        raise BadRequest("The field is one of an image and cannot be measured against a mesh.")
    return {f"psnr at 1/{1 << scale}": value for scale, value in enumerate(psnr_of_scales(field, target))}


def _read_field(model: Path) -> AnyField:
    from acorn_svc.formats.container import read_field

    return read_field(model)


def _settings(**options: Any) -> Settings:
    """The environment's settings, with what the command line says on top."""
    from pydantic import ValidationError

    from acorn_svc.settings import Settings

    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise BadRequest(_sentence(error)) from error


@contextmanager
def _database(data: Path | None) -> Iterator[tuple[Database, Settings]]:
    """The database of the service, whether it runs or not."""
    from acorn_svc.store.database import open_database

    settings = _settings(data=data)
    settings.data.mkdir(parents=True, exist_ok=True)
    database = open_database(settings.database_url, settings.data / "acorn.sqlite")
    try:
        yield database, settings
    finally:
        database.close()


@contextmanager
def _access(data: Path | None) -> Iterator[tuple[KeyStore, Callable[[str, str | None], None]]]:
    """The keys of the service, and what writes into its audit log what was done with them."""
    from acorn_svc.store.audit import AuditEntry, AuditLog
    from acorn_svc.store.keys import KeyStore

    with _database(data) as (database, settings):
        log = AuditLog(database, settings.max_audit_entries)

        def note(action: str, target: str | None) -> None:
            user = getpass.getuser()
            log.add(AuditEntry(caller="command line", name=user, action=action, target=target, status=200))

        yield KeyStore(database, settings.max_keys), note


def _show_rows(rows: list[dict[str, object]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2, default=str))
        return
    table = Table(*(rows[0] if rows else ()), box=None)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    out.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return value.strftime("%Y-%m-%d %H:%M") if isinstance(value, datetime) else escape(str(value))


def _duration(text: str) -> timedelta:
    """A time such as 90d, 12h or 30m."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([dhms])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 90d, 12h or 30m")
    return timedelta(**{DURATIONS[match[2]]: int(match[1])})


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = "".join(f"{part}: " for part in first["loc"])
    return f"The settings are unusable: {name}{first['msg']}."


def _numbers(text: str, form: str, number: Callable[[str], N]) -> Any:
    """The numbers of an option such as `x,y,w,h`."""
    try:
        values = tuple(number(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != len(form.split(",")):
        raise typer.BadParameter(f"{text!r} is not of the form {form}")
    return values


@contextmanager
def _store(data: Path | None) -> Iterator[tuple[SceneStore, Settings]]:
    """The scenes that a server keeps."""
    settings = _settings(data=data)
    if not settings.data.is_dir() and not settings.database_url:
        raise typer.BadParameter(f"there is no data folder {settings.data}")
    from acorn_svc.store.scenes import SceneStore

    store = SceneStore(settings)
    try:
        yield store, settings
    finally:
        store.close()


def _tell_copied(backup: Path, copied: Backup) -> None:
    out.print(
        f"{backup}: {copied.scenes} scenes, {copied.files} files, {copied.bytes} bytes",
        highlight=False,
        soft_wrap=True,
    )
    if copied.missing:
        err.print(f"These files were lost before the backup: {', '.join(copied.missing)}", soft_wrap=True)
        raise typer.Exit(1)


def _check_parent(output: Path) -> None:
    if not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}")


def _check_folder(output: Path) -> None:
    """An hour of fitting must not end with a folder that isn't there."""
    _check_parent(output)
    if output.is_dir():
        raise typer.BadParameter(f"{output} is a folder")


def _quality(progress: FitProgress) -> str:
    if progress.iou is not None:
        return f"IoU {progress.iou:.4f}"
    return "" if progress.psnr is None else f"{progress.psnr:.2f} dB"


def _short(value: float | None) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _two_columns(rows: Iterable[tuple[str, object]]) -> Table:
    table = Table(box=None, show_header=False)
    for name, value in rows:
        table.add_row(f"[bold]{name}[/]", "-" if value is None else str(value))
    return table


if __name__ == "__main__":
    main()
