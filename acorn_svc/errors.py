"""Every error that Acorn raises on purpose.

    AcornError                    error
    ├── BadInput                  bad_input             the caller's data or request is unusable
    │   ├── BadImage              bad_image             an image file that cannot be decoded
    │   ├── BadMesh               bad_mesh              a mesh file that cannot be read, or holds no surface
    │   ├── BadModel              bad_model             an .acorn file or checkpoint that is damaged
    │   ├── BadRequest            bad_request           a parameter, region or size with no meaning
    │   ├── UnsupportedMedia      unsupported_media     a file of a kind that Acorn doesn't read
    │   ├── DigestMismatch        digest_mismatch       other bytes than the digest sent with them is of
    │   │   └── ChecksumMismatch  checksum_mismatch     the same in one request of a resumable upload
    │   └── LimitExceeded         limit_exceeded        well-formed, but larger than allowed
    │       ├── TooManyBytes      too_large             more bytes than allowed
    │       └── HeaderTooLarge    header_too_large      more bytes of header than allowed
    ├── Unauthenticated           unauthenticated       nobody is known to ask
    ├── Forbidden                 forbidden             whoever asks may not do this
    ├── Misdirected               misdirected           asked under a name that may be somebody else's
    ├── TooManyRequests           too_many_requests     one caller asks for more than its share
    ├── NotFound                  not_found             no such thing
    │   └── OtherVersion          other_version         of a scene that shows another version now
    ├── TooSlow                   too_slow              a request that arrives too slowly
    ├── Conflict                  conflict              the thing isn't in a state that allows this
    │   └── WrongOffset           wrong_offset          an upload doesn't go on where a request begins
    ├── Unavailable               unavailable           try again later
    ├── InsufficientStorage       insufficient_storage  the disk is full
    └── FitFailed                 fit_failed            training could not go on
        ├── OutOfMemory           out_of_memory         it needs more memory than a fit may have
        └── OutOfTime             out_of_time           it takes more time than a fit may

The second column is `code`, a stable name for programs. `str(error)` is one sentence for people; it
never holds a path, a query or a traceback.
"""

# ruff: noqa: N818  the names say what is wrong; that it is an error, the tree says

from __future__ import annotations

from typing import ClassVar


class AcornError(Exception):
    """The root of the tree: a `code` for programs, a sentence for people.

    `limit` names the limit that was met and `value` is what that limit allows, when there is one.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, limit: str | None = None, value: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.limit = limit
        self.value = value

    def to_json(self) -> dict[str, str | float | None]:
        """What is told of the error: `code`, `message`, `limit` and `value`."""
        return {"code": self.code, "message": self.message, "limit": self.limit, "value": self.value}


class BadInput(AcornError):
    """The caller's data or request is unusable."""

    code = "bad_input"


class BadImage(BadInput):
    """An image file that is damaged or that holds something Acorn cannot represent."""

    code = "bad_image"


class BadMesh(BadInput):
    """A mesh file that is damaged or that holds no surface."""

    code = "bad_mesh"


class BadModel(BadInput):
    """An `.acorn` file or a checkpoint that is damaged, cut or not one at all."""

    code = "bad_model"


class BadRequest(BadInput):
    """A parameter, region or size that has no meaning."""

    code = "bad_request"


class UnsupportedMedia(BadInput):
    """A file of a kind that Acorn doesn't read, recognised by its content."""

    code = "unsupported_media"


class DigestMismatch(BadInput):
    """Other bytes have arrived than the digest that was sent with them is of."""

    code = "digest_mismatch"


class ChecksumMismatch(DigestMismatch):
    """The bytes of one request of a resumable upload aren't those of its checksum."""

    code = "checksum_mismatch"


class LimitExceeded(BadInput):
    """Well-formed input that is larger than the limit named in `limit` allows."""

    code = "limit_exceeded"


class TooManyBytes(LimitExceeded):
    """More bytes than allowed."""

    code = "too_large"


class HeaderTooLarge(LimitExceeded):
    """More bytes of header than allowed."""

    code = "header_too_large"


class Unauthenticated(AcornError):
    """This needs a key, and there is none, or one that doesn't count any more."""

    code = "unauthenticated"


class Forbidden(AcornError):
    """Whoever asks is known, but may not do this."""

    code = "forbidden"


class Misdirected(AcornError):
    """The service was asked under a name that may belong to somebody else."""

    code = "misdirected"


class TooManyRequests(AcornError):
    """One caller asks for more than its share, which `limit` names."""

    code = "too_many_requests"


class NotFound(AcornError):
    """There is no such thing."""

    code = "not_found"


class OtherVersion(NotFound):
    """The scene shows another version than the address names."""

    code = "other_version"


class TooSlow(AcornError):
    """The client takes too long to send its request."""

    code = "too_slow"


class Conflict(AcornError):
    """The thing isn't in a state that allows this."""

    code = "conflict"


class WrongOffset(Conflict):
    """A request doesn't begin at `offset`, where its upload stands."""

    code = "wrong_offset"

    def __init__(self, message: str, *, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class Unavailable(AcornError):
    """The service cannot do this now; `retry_after` (seconds) says when to ask again."""

    code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        retry_after: int = 5,
        limit: str | None = None,
        value: float | None = None,
    ) -> None:
        super().__init__(message, limit=limit, value=value)
        self.retry_after = retry_after


class InsufficientStorage(AcornError):
    """There isn't enough room left on the disk."""

    code = "insufficient_storage"


class FitFailed(AcornError):
    """Training could not go on."""

    code = "fit_failed"


class OutOfMemory(FitFailed):
    """A fit needs more memory than it may have."""

    code = "out_of_memory"


class OutOfTime(FitFailed):
    """A fit takes more time than it may."""

    code = "out_of_time"
