"""Signed texts: sessions of the page, and links to one scene. Nothing of them is stored.

    session   <key id>.<expiry>.<signature>     of the purpose, the key's digest and what stands before
    link      <scene id>.<expiry>.<signature>   of the purpose and what stands before

The expiry is in seconds since 1970, the signature an HMAC-SHA-256 in the alphabet of URLs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

FORM: Final = r"([0-9a-z]{1,26})\.([0-9]{1,12})\.([0-9A-Za-z_-]{43})"


@dataclass(frozen=True)
class Signed:
    """A signed text, taken apart; whether it is true is for `is_signed` to say."""

    subject: str
    expires: int
    signature: str

    @property
    def is_over(self) -> bool:
        """Whether its time is over."""
        return self.expires <= time.time()

    @property
    def expires_at(self) -> datetime:
        """When its time is over."""
        return datetime.fromtimestamp(self.expires, UTC)

    def __str__(self) -> str:
        return f"{self.subject}.{self.expires}.{self.signature}"


def sign(secret: bytes, purpose: str, subject: str, seconds: int) -> Signed:
    """`subject` signed for `purpose`, for so many seconds from now."""
    expires = int(time.time()) + seconds
    return Signed(subject, expires, _signature(secret, purpose, subject, expires))


def parse(text: str) -> Signed | None:
    """The parts of a signed text, or None where it is none."""
    match = re.fullmatch(FORM, text)
    return None if match is None else Signed(match[1], int(match[2]), match[3])


def is_signed(secret: bytes, purpose: str, signed: Signed) -> bool:
    """Whether the signature is ours, and for this purpose; compared in constant time."""
    expected = _signature(secret, purpose, signed.subject, signed.expires)
    return hmac.compare_digest(expected, signed.signature)


def _signature(secret: bytes, purpose: str, subject: str, expires: int) -> str:
    message = f"{purpose}\0{subject}\0{expires}".encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, message, hashlib.sha256)).rstrip(b"=").decode()
