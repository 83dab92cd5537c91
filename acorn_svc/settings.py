"""Every limit and knob of the service: its name, unit, default and one sentence.

A setting is read from the environment variable `ACORN_<NAME>`. Nothing here means "unlimited", zero
is refused unless the sentence names it, and a combination that could not work is refused at start with the
reason. `docs/settings.md` and `docs/limits.md` are written from this file.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# What happens to what is beyond a limit: the status and the code of the answer.
TOO_LARGE, UNUSABLE = "413 `too_large`", "422 `limit_exceeded`"
BUSY, NO_ROOM, BAD_REQUEST = "503 `unavailable`", "507 `insufficient_storage`", "400 `bad_request`"
TOO_SLOW, CLOSED = "408 `too_slow`", "the connection is closed"
FAILED, FORGOTTEN = "the job fails", "the oldest are forgotten"

MIB = 1024 * 1024
GIB = 1024 * MIB
PREFIX = "ACORN_"
MIN_KEY_CHARACTERS = 32
MIN_GC_AGE_SECONDS = 600


def _setting(
    default: Any, unit: str, sentence: str, *, least: float = 1, most: float, refused: str | None = None
) -> Any:
    """A number; `refused` makes it a limit, and says what happens to what is beyond it."""
    extra = {"unit": unit} if refused is None else {"unit": unit, "refused": refused}
    return Field(default, ge=least, le=most, description=sentence, json_schema_extra=extra)  # type: ignore[arg-type]


def _choice(default: Any, unit: str, sentence: str) -> Any:
    return Field(default, description=sentence, json_schema_extra={"unit": unit})


def separated(text: str) -> list[str]:
    """The parts of a setting that are separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _cores() -> int:
    return os.cpu_count() or 1


class Settings(BaseSettings):
    """The settings of one server; immutable once it has started."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    data: Path = Field(
        default=Path("acorn-data"),
        description="The one folder that holds the database and every file, unless they are elsewhere.",
        json_schema_extra={"unit": "path"},
    )
    database_url: str = Field(
        default="",
        pattern=r"^(postgresql(\+psycopg)?://\S+)?$",
        description="A PostgreSQL database, `postgresql://user:word@host/name`; otherwise a file in `data`.",
        json_schema_extra={"unit": "URL"},
    )
    blob_url: str = Field(
        default="",
        pattern=r"^((s3|gs|az)://\S+)?$",
        description="An object store for published files, such as `s3://bucket/prefix`; else `data`.",
        json_schema_extra={"unit": "URL"},
    )
    blob_cache_bytes: int = _setting(
        10 * GIB,
        "bytes",
        "Disk for copies of files that are in an object store.",
        most=1024 * 1024 * GIB,
        refused=FORGOTTEN,
    )
    store_quota_bytes: int = _setting(
        50 * GIB,
        "bytes",
        "Uploads are refused when all files would take more.",
        most=1024 * 1024 * GIB,
        refused=NO_ROOM,
    )
    gc_age_seconds: int = _setting(
        86_400,
        "seconds",
        "Age from which files that no scene needs, left by a crash, are removed.",
        least=MIN_GC_AGE_SECONDS,
        most=365 * 86_400,
    )
    gc_interval_seconds: int = _setting(
        3600, "seconds", "Time between two searches for such files.", most=30 * 86_400
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="The address to listen on; others than this machine's own need a key, a proxy that signs "
        "people in, or `insecure`.",
        json_schema_extra={"unit": "address"},
    )
    port: int = _setting(8000, "port", "The TCP port to listen on.", most=65_535)

    insecure: bool = _choice(
        False, "yes or no", "Listen on any address without a key: everybody who reaches it may do everything."
    )
    host_names: str = _choice(
        "", "names", "Names with a domain, separated by commas, by which the service is asked without a key."
    )
    admin_key: SecretStr | None = _choice(
        None, "secret", "A key of the scope admin, 32 characters or more; it counts as long as it is set."
    )
    scenes_public: bool = _choice(False, "yes or no", "Whether new scenes can be seen without a key.")
    session_seconds: int = _setting(
        43_200, "seconds", "Time after which somebody signed in on the page signs in again.", most=30 * 86_400
    )
    max_link_seconds: int = _setting(
        30 * 86_400,
        "seconds",
        "The longest life of a signed link to a scene.",
        most=10 * 366 * 86_400,
        refused=BAD_REQUEST,
    )
    max_keys: int = _setting(
        1000, "keys", "The most keys that count at the same time.", most=1_000_000, refused=UNUSABLE
    )
    max_audit_entries: int = _setting(
        100_000,
        "entries",
        "What is kept of the audit log; the oldest go first.",
        most=100_000_000,
        refused=FORGOTTEN,
    )
    cors_origins: str = _choice(
        "*", "origins", "Sites, separated by commas, whose scripts may read here; `*` for every site."
    )
    cors_write_origins: str = _choice(
        "", "origins", "Sites, separated by commas, whose scripts may also change things, with a key."
    )
    frame_ancestors: str = _choice(
        "'self'", "sources", "Sites, separated by spaces, that may show the page in a frame."
    )
    trusted_proxies: str = _choice(
        "", "addresses", "Addresses or networks, separated by commas, of proxies that are believed."
    )
    proxy_user_header: str = _choice(
        "", "header", "Where a trusted proxy says who has signed in; without it nobody is believed."
    )
    proxy_groups_header: str = _choice(
        "", "header", "Where a trusted proxy says in which groups they are, separated by commas."
    )
    proxy_write: str = _choice(
        "", "names", "Users and `@groups` of the proxy, separated by commas, who may write; others read."
    )
    proxy_admin: str = _choice(
        "", "names", "Users and `@groups` of the proxy, separated by commas, with the scope admin."
    )
    log_format: Literal["console", "json"] = Field(
        default="console",
        description="How lines are written to standard error: `console` for people, `json` for programs.",
        json_schema_extra={"unit": "form"},
    )
    log_level: Literal["info", "warning", "error"] = Field(
        default="info",
        description="The least important lines that are written: `info`, `warning` or `error`.",
        json_schema_extra={"unit": "level"},
    )
    log_requests: Literal["failed", "all"] = Field(
        default="failed",
        description="Which requests are written down: `failed`, with 5xx but 503 (too busy), or `all`.",
        json_schema_extra={"unit": "requests"},
    )

    max_connections: int = _setting(
        1024,
        "connections",
        "Connections at the same time; further ones are answered 503.",
        most=100_000,
        refused=BUSY,
    )
    max_connections_per_address: int = _setting(
        64,
        "connections",
        "Connections of one address (of IPv6, one /64 network); more where a proxy makes all of them.",
        most=100_000,
        refused=BUSY,
    )
    max_requests: int = _setting(
        2048,
        "requests",
        "Requests that are worked on; further ones are answered 503.",
        most=100_000,
        refused=BUSY,
    )
    max_pipelined_requests: int = _setting(
        16,
        "requests",
        "Requests that wait on a connection while another is answered; with one more it is closed.",
        most=1000,
        refused=BUSY,
    )
    max_header_bytes: int = _setting(
        32_768,
        "bytes",
        "The largest header of a request, its address included.",
        least=1024,
        most=MIB,
        refused="431 `header_too_large`",
    )
    header_seconds: float = _setting(
        10.0,
        "seconds",
        "Time a client may take to send the header of a request.",
        least=0.1,
        most=3600,
        refused=TOO_SLOW,
    )
    request_seconds: float = _setting(
        30.0,
        "seconds",
        "Time a client may take to send a body, however small.",
        least=0.1,
        most=86_400,
        refused=TOO_SLOW,
    )
    min_body_bytes_per_second: int = _setting(
        1024,
        "bytes/s",
        "A larger body may take longer: its bytes divided by this.",
        most=GIB,
        refused=TOO_SLOW,
    )
    send_seconds: float = _setting(
        30.0,
        "seconds",
        "Time a client may go on taking nothing of an answer.",
        least=0.1,
        most=3600,
        refused=CLOSED,
    )
    keep_alive_seconds: int = _setting(
        15, "seconds", "Time a connection is kept without a request.", most=3600, refused=CLOSED
    )
    max_event_streams: int = _setting(
        64,
        "streams",
        "Clients that follow scenes at the same time; others are answered 503.",
        most=100_000,
        refused=BUSY,
    )

    max_upload_bytes: int = _setting(
        512 * MIB,
        "bytes",
        "The largest upload, counted while it arrives.",
        most=1024 * GIB,
        refused=TOO_LARGE,
    )
    max_request_bytes: int = _setting(
        8 * MIB, "bytes", "The largest body of any other request.", most=GIB, refused=TOO_LARGE
    )
    min_free_disk_bytes: int = _setting(
        GIB,
        "bytes",
        "Uploads are refused when they would leave less free disk.",
        most=1024 * GIB,
        refused=NO_ROOM,
    )
    max_unfinished_uploads: int = _setting(
        1000,
        "uploads",
        "Resumable uploads that may be under way; as many results are kept.",
        most=1_000_000,
        refused=BUSY,
    )
    max_unfinished_bytes: int = _setting(
        8 * GIB,
        "bytes",
        "The sizes of all resumable uploads under way, together.",
        most=1024 * GIB,
        refused=NO_ROOM,
    )
    upload_ttl_seconds: int = _setting(
        86_400,
        "seconds",
        "Time after which a resumable upload to which nothing was added is removed.",
        most=365 * 86_400,
        refused="it is removed",
    )
    upload_start_seconds: int = _setting(
        600,
        "seconds",
        "The same for a resumable upload of which nothing has arrived, and that nobody is sending.",
        most=365 * 86_400,
        refused="it is removed",
    )

    max_image_pixels: int = _setting(
        256_000_000, "pixels", "The largest image, width times height.", most=10**10, refused=UNUSABLE
    )
    max_image_side: int = _setting(
        65_536, "pixels", "The longest side of an image.", most=1_000_000, refused=UNUSABLE
    )
    max_image_channels: int = _setting(
        4, "channels", "The most channels of an image, alpha included.", most=4, refused=UNUSABLE
    )
    max_image_frames: int = _setting(
        1,
        "images",
        "The most images in one file, a TIFF's overviews not counted; the first is read.",
        most=1000,
        refused=UNUSABLE,
    )
    max_mesh_vertices: int = _setting(
        20_000_000, "vertices", "The most vertices of a mesh that is uploaded.", most=10**9, refused=UNUSABLE
    )
    max_mesh_faces: int = _setting(
        40_000_000, "faces", "The most faces of a mesh that is uploaded.", most=10**9, refused=UNUSABLE
    )
    max_mesh_parts: int = _setting(
        50_000,
        "parts",
        "The most parts of a GLB file, counted as often as they are shown.",
        most=1_000_000,
        refused=UNUSABLE,
    )
    max_mesh_textures: int = _setting(
        256, "textures", "The most textures of a GLB file.", most=10_000, refused=UNUSABLE
    )
    max_texture_pixels: int = _setting(
        2**26,
        "pixels",
        "The largest texture of a GLB file, width times height.",
        most=10**9,
        refused=UNUSABLE,
    )
    max_gltf_json_bytes: int = _setting(
        32 * MIB, "bytes", "The largest description (JSON) inside a GLB file.", most=GIB, refused=UNUSABLE
    )
    max_model_bytes: int = _setting(
        GIB, "bytes", "The largest `.acorn` file that is opened.", most=1024 * GIB, refused=TOO_LARGE
    )
    max_model_header_bytes: int = _setting(
        MIB, "bytes", "The largest header of an `.acorn` file.", least=4096, most=64 * MIB, refused=UNUSABLE
    )
    max_model_cells: int = _setting(
        4_000_000,
        "nodes",
        "The most cells (nodes of the tree) of an `.acorn` file.",
        most=4_000_000,
        refused=UNUSABLE,
    )
    max_model_memory_bytes: int = _setting(
        6 * GIB,
        "bytes",
        "Memory that opening an `.acorn` file takes by what its header says.",
        most=1024 * GIB,
        refused=UNUSABLE,
    )
    decode_memory_bytes: int = _setting(
        4 * GIB, "bytes", "Memory of the process that checks an upload.", most=1024 * GIB, refused=UNUSABLE
    )
    decode_cpu_seconds: int = _setting(
        60, "seconds", "Processor time of the process that checks an upload.", most=3600, refused=UNUSABLE
    )
    decode_wall_seconds: int = _setting(
        90, "seconds", "Time after which the check of an upload is given up.", most=3600, refused=UNUSABLE
    )
    max_decodes: int = _setting(
        2, "processes", "Uploads that are checked at the same time; others wait.", most=256, refused=BUSY
    )

    max_queued_jobs: int = _setting(
        1000, "jobs", "Jobs that may wait or run; further uploads are refused.", most=1_000_000, refused=BUSY
    )
    max_queued_jobs_per_key: int = _setting(
        20,
        "jobs",
        "Jobs of one key, or one user of a proxy, that may wait or run.",
        most=1_000_000,
        refused="429 `too_many_requests`",
    )
    embedded_workers: int = _setting(
        1,
        "processes",
        "Workers that the server starts, one fit at a time each; 0 where `acorn worker` runs instead.",
        least=0,
        most=64,
    )
    lease_seconds: float = _setting(
        30.0,
        "seconds",
        "Time without a sign of life after which a worker counts as dead and another takes its job over.",
        least=0.3,
        most=3600,
    )
    heartbeat_seconds: float = _setting(
        5.0, "seconds", "Time between two signs of life of a worker.", least=0.1, most=1200
    )
    job_attempts: int = _setting(
        3,
        "starts",
        "Starts of a job without a new checkpoint, after which it fails.",
        most=100,
        refused=FAILED,
    )
    job_threads: int = _setting(
        _cores(), "threads", "Processor threads of one fit; the default is every core.", most=1024
    )
    job_device: Literal["cpu", "cuda"] = Field(
        default="cpu",
        description="Where fits compute: `cpu`, or `cuda`, which needs an NVIDIA GPU and the extra `cuda`.",
        json_schema_extra={"unit": "device"},
    )
    job_memory_bytes: int = _setting(
        12 * GIB, "bytes", "Memory of the process that fits one scene.", most=16 * 1024 * GIB, refused=FAILED
    )
    job_wall_seconds: int = _setting(
        21_600, "seconds", "Time one start of a job may take.", most=30 * 86_400, refused=FAILED
    )
    checkpoint_seconds: float = _setting(
        10.0,
        "seconds",
        "Time between checkpoints, each of which is also shown as the scene's next version.",
        least=0.01,
        most=3600,
    )
    history_days: int = _setting(
        90,
        "days",
        "Time after which the course of a finished fit is forgotten; its result stays.",
        most=36_500,
        refused=FORGOTTEN,
    )
    shutdown_seconds: int = _setting(
        30,
        "seconds",
        "Time a stopping server gives requests and jobs to end.",
        most=600,
        refused="they are ended",
    )

    max_tile_side: int = _setting(
        4096,
        "pixels",
        "The longest side of a picture made by IIIF.",
        least=512,
        most=16_000,
        refused=BAD_REQUEST,
    )
    max_tile_pixels: int = _setting(
        2048 * 2048,
        "pixels",
        "The largest picture made by IIIF, width times height.",
        least=512 * 512,
        most=256_000_000,
        refused=BAD_REQUEST,
    )
    max_query_points: int = _setting(
        100_000, "points", "The most points in one query.", most=10_000_000, refused=UNUSABLE
    )
    max_region_pixels: int = _setting(
        4_000_000_000, "pixels", "The largest region that is streamed.", most=10**12, refused=UNUSABLE
    )
    max_region_side: int = _setting(
        1 << 20,
        "pixels",
        "The longest side of a region that is streamed, row by row.",
        most=1 << 24,
        refused=UNUSABLE,
    )
    max_mesh_resolution: int = _setting(
        1024,
        "cells",
        "The finest mesh that is made of a shape: cells along its longest side.",
        least=8,
        most=16_384,
        refused=UNUSABLE,
    )
    max_in_flight_renders: int = _setting(
        _cores(), "renders", "Pictures that are rendered at the same time.", most=1024, refused="others wait"
    )
    render_queue: int = _setting(
        64, "renders", "Renders that may wait; further ones are answered 503.", most=100_000, refused=BUSY
    )
    render_wait_seconds: int = _setting(
        20, "seconds", "Time a render may wait before it is answered 503.", most=600, refused=BUSY
    )
    crowd_wait_seconds: float = _setting(
        0.03,
        "seconds",
        "Wait in a crowd: once the queue was full, it is kept this short until nobody waits.",
        least=0.001,
        most=600,
        refused=BUSY,
    )
    render_seconds: float = _setting(
        60.0,
        "seconds",
        "Time a picture, tile or query may take before it is given up.",
        least=0.1,
        most=3600,
        refused=BUSY,
    )
    mesh_seconds: float = _setting(
        900.0, "seconds", "Time a mesh may take before it is given up.", least=0.1, most=86_400, refused=BUSY
    )
    max_streams: int = _setting(
        16,
        "streams",
        "Regions and meshes that are sent at the same time; others are answered 503.",
        most=100_000,
        refused=BUSY,
    )
    field_cache_bytes: int = _setting(
        512 * MIB,
        "bytes",
        "Memory for fields kept open; the newest is, whatever its size, and one in use is there once.",
        most=1024 * GIB,
        refused=FORGOTTEN,
    )
    tile_cache_bytes: int = _setting(
        256 * MIB, "bytes", "Memory for encoded tiles.", most=1024 * GIB, refused=FORGOTTEN
    )

    @model_validator(mode="after")
    def _refuse_unsafe(self) -> Self:
        for safe, reason in self._combinations():
            if not safe:
                raise ValueError(reason)
        return self

    def _combinations(self) -> list[tuple[bool, str]]:
        widest_pixel = 4 * 2  # four channels of 16 bits
        largest_mesh = self.max_mesh_vertices * 24 + self.max_mesh_faces * 12
        return [
            (
                self.max_image_pixels * widest_pixel <= self.decode_memory_bytes,
                "decode_memory_bytes must hold the largest image: max_image_pixels times 8 bytes",
            ),
            (
                self.max_image_pixels * widest_pixel <= self.job_memory_bytes,
                "job_memory_bytes must hold the largest image: max_image_pixels times 8 bytes",
            ),
            (
                largest_mesh <= min(self.decode_memory_bytes, self.job_memory_bytes),
                "decode_memory_bytes and job_memory_bytes must hold the largest mesh: max_mesh_vertices "
                "times 24 bytes and max_mesh_faces times 12",
            ),
            (
                self.max_image_side**2 >= self.max_image_pixels,
                "max_image_side squared must reach max_image_pixels, which could not be used",
            ),
            (
                self.min_free_disk_bytes >= self.max_upload_bytes,
                "min_free_disk_bytes must be at least max_upload_bytes, "
                "or uploads that arrive together fill the disk",
            ),
            (
                self.max_unfinished_bytes >= self.max_upload_bytes,
                "max_unfinished_bytes must be at least max_upload_bytes, or the largest is never taken",
            ),
            (
                self.checkpoint_seconds < self.job_wall_seconds,
                "checkpoint_seconds must be less than job_wall_seconds, or no progress is kept",
            ),
            (
                self.gc_age_seconds >= self.least_gc_age_seconds,
                "gc_age_seconds must be at least twice checkpoint_seconds, and twice the time that 1 MiB "
                "takes at min_body_bytes_per_second, or what is still written to is removed",
            ),
            (
                self.heartbeat_seconds * 3 <= self.lease_seconds,
                "heartbeat_seconds must be at most a third of lease_seconds, or one late sign of life "
                "costs a job its worker",
            ),
            (
                self.max_request_bytes >= self.max_query_points * 12,
                "max_request_bytes must hold max_query_points points of 12 bytes",
            ),
            (
                self.admin_key is None or _is_strong(self.admin_key.get_secret_value()),
                f"admin_key must have {MIN_KEY_CHARACTERS} characters or more and no spaces, such as those "
                "of `openssl rand -hex 32`",
            ),
            (
                bool(self.trusted_proxies or not self.proxy_user_header),
                "proxy_user_header needs trusted_proxies, or anybody could claim to be anybody",
            ),
            (
                all(map(_is_network, separated(self.trusted_proxies))),
                "trusted_proxies must be IP addresses or networks, such as 10.0.0.0/8",
            ),
            (
                self.cors_origins == "*" or all(map(_is_origin, separated(self.cors_origins))),
                "cors_origins must be * or origins such as https://example.org",
            ),
            (
                all(map(_is_origin, separated(self.cors_write_origins))),
                "cors_write_origins must be origins such as https://example.org",
            ),
            (
                not set(self.frame_ancestors) & set(";,\r\n"),
                "frame_ancestors must be sources of a content security policy, separated by spaces",
            ),
        ]

    @property
    def least_gc_age_seconds(self) -> float:
        """Age below which a file may still be written to: uploads are written in pieces of 1 MiB."""
        pause = max(self.checkpoint_seconds, MIB / self.min_body_bytes_per_second)
        return max(MIN_GC_AGE_SECONDS, 2 * pause)

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a process started by this one; no secrets."""
        values = self.model_dump(mode="json", exclude={"admin_key"})
        values["data"] = str(self.data.absolute())
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in values.items()}


def is_limit(name: str) -> bool:
    """Whether a setting bounds something, and so stands in `docs/limits.md`."""
    return "refused" in _extra(name)


def _is_strong(key: str) -> bool:
    return re.fullmatch(rf"[!-~]{{{MIN_KEY_CHARACTERS},200}}", key) is not None


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _is_origin(text: str) -> bool:
    return re.fullmatch(r"https?://[^/\s*]+", text) is not None


def settings_page() -> str:
    """The page of the manual that lists every setting that is no limit, as Markdown."""
    head = (
        "# Settings\n\n"
        "Written by `python -m acorn_svc.settings > docs/settings.md`; do not edit it by hand.\n\n"
        "Set them in the environment, for the server and for its workers alike. Zero is refused unless the\n"
        "meaning names it, and so is a combination that could not work. Those that bound something are in\n"
        "[limits.md](limits.md).\n\n"
        "| variable | unit | default | meaning |\n|---|---|---|---|\n"
    )
    return head + "".join(f"{_row(name)}\n" for name in Settings.model_fields if not is_limit(name))


def limits_page() -> str:
    """The page of the manual that lists every limit, as Markdown."""
    head = (
        "# Limits\n\n"
        "Written by `python -m acorn_svc.settings limits > docs/limits.md`; do not edit it by hand.\n\n"
        'Set them in the environment. No value means "unlimited", and zero is refused. An answer that\n'
        "refuses something names the limit and its value:\n\n"
        '`{"error": {"code": "limit_exceeded", "message": "...", "limit": "max_image_pixels", '
        '"value": 256000000}}`\n\n'
        "| variable | unit | default | meaning | beyond it |\n|---|---|---|---|---|\n"
    )
    limits = filter(is_limit, Settings.model_fields)
    return head + "".join(f"{_row(name)} {_extra(name)['refused']} |\n" for name in limits)


def _extra(name: str) -> dict[str, Any]:
    extra = Settings.model_fields[name].json_schema_extra
    return extra if isinstance(extra, dict) else {}


def _row(name: str) -> str:
    field, unit = Settings.model_fields[name], _extra(name)["unit"]
    return f"| `{PREFIX}{name.upper()}` | {unit} | {_default(field.default, unit)} | {field.description} |"


def _default(value: object, unit: object) -> str:
    if value == _cores() and unit in CORE_UNITS:
        return "number of cores"
    return "none" if value in ("", None) else f"`{value}`"


CORE_UNITS = ("threads", "renders")

if __name__ == "__main__":
    print(limits_page() if sys.argv[1:] == ["limits"] else settings_page(), end="")
