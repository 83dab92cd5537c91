"""What uploads are promised until they are finished or expire: room for all of their bytes."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from acorn_svc.settings import Settings
from acorn_svc.store.database import Upload, now


def unfinished() -> ColumnElement[bool]:
    """Uploads of which it isn't known what came of them."""
    return and_(Upload.scene_id.is_(None), Upload.error.is_(None))


def current(settings: Settings) -> ColumnElement[bool]:
    """Uploads that have not expired, as `has_expired` has it."""
    time = now()
    oldest = time - timedelta(seconds=settings.upload_ttl_seconds)
    oldest_unsent = time - timedelta(seconds=settings.upload_start_seconds)
    was_sent = or_(Upload.turn > 0, Upload.updated_at >= oldest_unsent)
    return and_(Upload.updated_at >= oldest, was_sent)


def expires_at(upload: Upload, settings: Settings) -> datetime:
    """When the upload is forgotten unless more arrives; soon, if nobody sends or has sent any of it."""
    seconds = settings.upload_ttl_seconds
    if upload.turn <= 0:
        seconds = min(seconds, settings.upload_start_seconds)
    return upload.updated_at + timedelta(seconds=seconds)


def has_expired(upload: Upload, settings: Settings) -> bool:
    """Whether the upload is to be forgotten."""
    return expires_at(upload, settings) < now()


def missing_bytes(session: Session, settings: Settings) -> int:
    """So many bytes are still to come of uploads that were promised room for them."""
    query = select(func.sum(Upload.length - Upload.received)).where(unfinished(), current(settings))
    return int(session.scalar(query) or 0)
