"""Client and worker for Towpath queues."""

from ._client import Client, Job, Queue, Sent
from ._errors import Conflict, Dead, NotFound, Refused, Retry, TowpathError, Unavailable
from ._worker import Worker

__version__ = "0.2.0"

__all__ = [
    "Client",
    "Conflict",
    "Dead",
    "Job",
    "NotFound",
    "Queue",
    "Refused",
    "Retry",
    "Sent",
    "TowpathError",
    "Unavailable",
    "Worker",
]
