"""Errors of requests, and the exceptions by which a handler ends its job."""

from __future__ import annotations

from typing import Optional, Union


class TowpathError(Exception):
    """A request failed."""


class Unavailable(TowpathError):
    """The server did not answer, or is overloaded: the outcome is unknown unless `status` is set; repeat the request."""

    def __init__(
        self, detail: str, status: Optional[int] = None, retry_after: Optional[float] = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after


class Refused(TowpathError):
    """The server refused the request; repeating it does not help."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail)
        self.status = status


class NotFound(Refused):
    """The queue does not exist."""


class Conflict(Refused):
    """The queue is in use, or the configuration of the server declares it."""


class Retry(Exception):
    """Raised by a handler: deliver the job again after `after` (seconds, or text like `"30s"`).

    Without `after` the delay follows the settings of the queue.
    """

    def __init__(self, after: Union[None, float, str] = None, reason: str = "") -> None:
        super().__init__(reason or "retry")
        self.after = after
        self.reason = reason


class Dead(Exception):
    """Raised by a handler: the job is a dead letter now."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "dead")
        self.reason = reason
