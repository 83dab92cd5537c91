"""Backups: everything as it was at one moment, taken while the service goes on; and the way back.

    manifest.json    every file of the backup, with its bytes and SHA-256
    acorn.sqlite     the tables row by row, whichever database they come from
    blobs/<key>      every file that a row names, wherever it is kept

A backup is a folder, or one `.tar` file. It may be restored to another kind of database or store than
it was taken from. The queue isn't in it: jobs that wait or run are queued anew when a server starts.

Most files are copied while others write. Then writers wait while the rows are copied, and the few files
that are new since: so each row finds its files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from sqlalchemy import Connection, delete, func, insert, select, text
from sqlalchemy.orm import Session

from acorn_svc.errors import BadInput, Conflict
from acorn_svc.settings import Settings
from acorn_svc.store.audit import AuditEntry
from acorn_svc.store.blobs import synchronise
from acorn_svc.store.database import Base, File, ProgressEvent, Scene, SqliteDatabase
from acorn_svc.store.keys import Key, Secret
from acorn_svc.store.scenes import SceneStore

MANIFEST = "manifest.json"
TABLES = "acorn.sqlite"
FORMAT = 1
CALM_PASSES = 2  # copies of what is there, before writers have to wait for the rest
ROWS_AT_ONCE = 1000
CHUNK_BYTES = 1 << 20
KEY = re.compile(r"[a-z]+(/[0-9a-z-][0-9a-z.-]*)+")
DAMAGED = "The backup is damaged"
KINDS: tuple[type[Base], ...] = (Scene, File, ProgressEvent, Key, Secret, AuditEntry)
# Unfinished uploads are left out: their bytes are nowhere but in the data folder.
KEPT = [Base.metadata.tables[kind.__tablename__] for kind in KINDS]


@dataclass(frozen=True)
class Entry:
    """What a backup knows of one of its files."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Backup:
    """What was copied. `missing` are files that a row names but that aren't there."""

    scenes: int
    files: int
    bytes: int
    missing: tuple[str, ...] = ()


def write_backup(store: SceneStore, destination: Path) -> Backup:
    """Copy everything to the new folder, or the new file whose name ends in `.tar`.

    It has this name only when it is whole and on disk.

    Raises:
        Conflict: there is something of this name.
    """
    if destination.exists():
        raise Conflict("The destination of the backup exists already.")
    part = destination.with_name(f"{destination.name}.part")
    _remove(part)
    with _new_archive(part, destination.suffix) as archive:
        copied = _Copying(store, archive, destination.parent).run()
    part.rename(destination)
    synchronise(destination.parent)
    return copied


def restore_backup(source: Path, settings: Settings) -> Backup:
    """Fill the empty data folder, database and object store of `settings` from a backup.

    Each file is compared with its digest; scenes appear when all files are there. When it fails, what it
    has brought is removed again, as far as that can be.

    Raises:
        Conflict: there is something in the data folder or the database.
        BadInput: the backup is damaged, or isn't one.
    """
    if settings.data.exists() and any(settings.data.iterdir()):
        raise Conflict("A backup can only be restored to an empty data folder.")
    with _open_archive(source) as archive:
        entries = _read_manifest(archive)
        try:
            with closing(SceneStore(settings)) as store:
                return _restore(archive, entries, store)
        except BaseException:
            _clear(settings.data)
            raise


class _Copying:
    """One backup as it is made."""

    def __init__(self, store: SceneStore, archive: Archive, workplace: Path) -> None:
        self._store = store
        self._archive = archive
        self._workplace = workplace  # the disk of the data folder may be full
        self._entries: dict[str, Entry] = {}

    def run(self) -> Backup:
        for _ in range(CALM_PASSES):
            with self._store.database.read() as session:
                keys = _named(session)
            self._copy(keys)
        with self._store.database.write() as session:
            keys = _named(session)
            missing = self._copy(keys)
            with tempfile.TemporaryDirectory(dir=self._workplace) as folder:
                scenes = _save_rows(session.connection(), Path(folder) / TABLES)
                self._add(TABLES, Path(folder) / TABLES)
        for outdated in set(self._entries) - {TABLES, *map(_name, keys)}:
            self._archive.drop(outdated)
            del self._entries[outdated]
        self._archive.add_text(MANIFEST, _manifest(self._entries))
        return _counted(scenes, self._entries, missing)

    def _copy(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Copy those that aren't yet; returns those that aren't there any more."""
        missing = []
        for key in keys:
            if _name(key) not in self._entries:
                try:
                    self._add(_name(key), self._store.blobs.local(key))
                except FileNotFoundError:
                    missing.append(key)
        return tuple(missing)

    def _add(self, name: str, path: Path) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            reader = Digesting(file)
            self._archive.add(name, reader, size)
        self._entries[name] = Entry(size, reader.digest.hexdigest())


class Digesting(io.RawIOBase):
    """Passes on what is read from a file, and digests it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """As `IO.read`."""
        content = self._file.read(size)
        self.digest.update(content)
        return content


class Archive(ABC):
    """Files by name, in a folder or a tar file."""

    @abstractmethod
    def add(self, name: str, content: Any, size: int) -> None:
        """Copy `size` bytes from `content`, which is read to its end, to the new file `name`."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """`name` isn't needed after all."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """`name`, to be read; raises BadInput when it isn't there."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more will be added; all is on disk when this returns."""

    def add_text(self, name: str, text: str) -> None:
        """As `add`."""
        content = text.encode()
        self.add(name, io.BytesIO(content), len(content))


class FolderArchive(Archive):
    """Files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, content: Any, size: int) -> None:
        """See Archive."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            shutil.copyfileobj(content, file, CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())

    def drop(self, name: str) -> None:
        """See Archive."""
        (self._folder / name).unlink()

    def open(self, name: str) -> IO[bytes]:
        """See Archive."""
        try:
            return (self._folder / name).open("rb")
        except OSError:
            raise BadInput(f"{DAMAGED}: {name} is missing.") from None

    def close(self) -> None:
        """See Archive."""
        for parent, _, _ in os.walk(self._folder):
            synchronise(Path(parent))


class TarArchive(Archive):
    """Files in a tar file; what was dropped is still in it, but not in the manifest."""

    def __init__(self, path: Path, mode: Literal["r", "x"]) -> None:
        self._path = path
        self._tar = tarfile.open(path, mode)  # noqa: SIM115  closed by `close`

    def add(self, name: str, content: Any, size: int) -> None:
        """See Archive."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o444
        self._tar.addfile(member, content)

    def drop(self, name: str) -> None:
        """See Archive."""

    def open(self, name: str) -> IO[bytes]:
        """See Archive."""
        with suppress(KeyError, tarfile.TarError):
            file = self._tar.extractfile(name)
            if file is not None:
                return file
        raise BadInput(f"{DAMAGED}: {name} is missing.")

    def close(self) -> None:
        """See Archive."""
        self._tar.close()
        synchronise(self._path)


@contextmanager
def _new_archive(path: Path, suffix: str) -> Iterator[Archive]:
    """An archive at `path`, which is gone again when the block fails."""
    try:
        archive = TarArchive(path, "x") if suffix == ".tar" else FolderArchive(path)
        with closing(archive):
            yield archive
    except BaseException:
        _remove(path)
        raise


@contextmanager
def _open_archive(path: Path) -> Iterator[Archive]:
    try:
        archive = FolderArchive(path) if path.is_dir() else TarArchive(path, "r")
    except tarfile.TarError:
        raise BadInput("This is neither a folder nor a tar file.") from None
    with closing(archive):
        yield archive


def _restore(archive: Archive, entries: Mapping[str, Entry], store: SceneStore) -> Backup:
    with store.blobs.spool_folder() as folder, _publishing(store) as publish:
        for name, entry in entries.items():
            path = folder / "file"
            _extract(archive, name, entry, path)
            if name == TABLES:
                path.rename(folder / TABLES)
            else:
                publish(path, _key(name))
                path.unlink()
        scenes = _load_rows(folder / TABLES, store)
    return _counted(scenes, entries)


@contextmanager
def _publishing(store: SceneStore) -> Iterator[Callable[[Path, str], None]]:
    """What publishes files, as `Blobs.publish`; those that weren't there go again when the block fails."""
    new: list[str] = []

    def publish(source: Path, key: str) -> None:
        if not store.blobs.has(key):
            new.append(key)
        store.blobs.publish(source, key)

    try:
        yield publish
    except BaseException:
        with suppress(Exception):  # the reason of the failure is what matters, and may forbid this, too
            for key in new:
                store.discard([key])
        raise


def _extract(archive: Archive, name: str, entry: Entry, path: Path) -> None:
    """Copy a file and compare it with what is known of it."""
    with archive.open(name) as file, path.open("xb") as copy:
        reader = Digesting(file)
        shutil.copyfileobj(reader, copy, CHUNK_BYTES)
    if Entry(path.stat().st_size, reader.digest.hexdigest()) != entry:
        raise BadInput(f"{DAMAGED}: {name} has changed.")


def _counted(scenes: int, entries: Mapping[str, Entry], missing: tuple[str, ...] = ()) -> Backup:
    return Backup(scenes, len(entries) - 1, sum(entry.bytes for entry in entries.values()), missing)


def _manifest(entries: Mapping[str, Entry]) -> str:
    files = {name: asdict(entry) for name, entry in sorted(entries.items())}
    return json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n"


def _read_manifest(archive: Archive) -> dict[str, Entry]:
    with archive.open(MANIFEST) as file:
        try:
            document = json.load(file)
            known, files = document["format"], document["files"]
            entries = {str(name): Entry(int(e["bytes"]), str(e["sha256"])) for name, e in files.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{DAMAGED}: its manifest cannot be read.") from None
    if known != FORMAT:
        raise BadInput("The backup was made by a later version of Acorn.")
    if TABLES not in entries or not all(name == TABLES or KEY.fullmatch(_key(name)) for name in entries):
        raise BadInput(f"{DAMAGED}: its manifest names other files than a backup has.")
    return entries


def _save_rows(source: Connection, path: Path) -> int:
    """Copy all rows to a new SQLite file; returns the number of scenes."""
    target = SqliteDatabase(path)
    with target.write() as session:
        _copy_rows(source, session.connection())
        scenes = _count(session)
    target.close()
    return scenes


def _load_rows(path: Path, store: SceneStore) -> int:
    """Copy all rows from such a file, which is upgraded first; returns the number of scenes."""
    source = SqliteDatabase(path)
    with source.read() as saved, store.database.write() as session:
        if _count(session) or session.scalar(select(func.count()).select_from(Key)):
            raise Conflict("A backup can only be restored to a database without scenes and keys.")
        for kind in (Secret, AuditEntry):  # a server makes those by itself
            session.execute(delete(kind))
        _copy_rows(saved.connection(), session.connection())
        scenes = _count(session)
    source.close()
    return scenes


def _copy_rows(source: Connection, target: Connection) -> None:
    for table in KEPT:
        for rows in source.execute(select(table)).mappings().partitions(ROWS_AT_ONCE):
            target.execute(insert(table), [dict(row) for row in rows])
        if target.dialect.name == "postgresql" and table.autoincrement_column is not None:
            # Rows that came with their number didn't move the sequence.
            following = f"SELECT coalesce(max(id), 0) + 1 FROM {table.name}"
            sequence = f"pg_get_serial_sequence('{table.name}', 'id')"
            target.execute(text(f"SELECT setval({sequence}, ({following}), false)"))


def _count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Scene)) or 0


def _named(session: Session) -> set[str]:
    return set(session.scalars(select(File.key).distinct()))


def _name(key: str) -> str:
    return f"blobs/{key}"


def _key(name: str) -> str:
    return name.removeprefix("blobs/")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove what is in the folder, but not itself: it may be where a disk is mounted."""
    for path in folder.glob("*"):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)
