"""What calls raise, and what the results of single blocks carry."""

from __future__ import annotations


class Error(Exception):
    """A call or a block failed. `code` is the gRPC status code, `message` the server's or the client's own words."""

    code: int = 2

    def __init__(self, message: str, code: int | None = None, retry_after: float | None = None):
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        #: Seconds after which trying again may help; None where the server did not say.
        self.retry_after = retry_after


class InvalidArgumentError(Error, ValueError):
    """An argument makes no sense; the message names it."""

    code = 3


class DeadlineError(Error, TimeoutError):
    """The call did not end within its timeout."""

    code = 4


class NotFoundError(Error, LookupError):
    """A block is not present, or the server does not know the cache."""

    code = 5


class OverloadedError(Error):
    """The server has no room for this now; see `retry_after`."""

    code = 8


class MismatchError(Error):
    """The cache exists with another spec or policy; the message names every field that differs."""

    code = 9


class EndedError(Error):
    """A lease or session has ended: look up again, or open a new one."""

    code = 10


class UnimplementedError(Error, NotImplementedError):
    """The server does not do this yet; the message names the field."""

    code = 12


class UnavailableError(Error, ConnectionError):
    """The server cannot be reached, or is about to stop."""

    code = 14


class DataLossError(Error):
    """A stored block was damaged. The server has dropped it."""

    code = 15


class ClosedError(Error):
    """The client or cache was closed."""

    code = 9


_BY_CODE = {
    kind.code: kind
    for kind in (
        InvalidArgumentError,
        DeadlineError,
        NotFoundError,
        OverloadedError,
        MismatchError,
        EndedError,
        UnimplementedError,
        UnavailableError,
        DataLossError,
    )
}
_BY_CODE[1] = UnavailableError  # CANCELLED: by the server, which stops; the client cancels nothing.
_BY_CODE[11] = InvalidArgumentError  # OUT_OF_RANGE: a target that does not fit.


def error_of(code: int, message: str, retry_after: float = 0) -> Error:
    return _BY_CODE.get(code, Error)(message, code, retry_after if retry_after > 0 else None)
