"""Queues of a server: create, send, lease and settle."""

from __future__ import annotations

import base64
import json
import os
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Type, Union
from urllib.parse import quote

from ._http import Connection, credential

Duration = Union[float, str]
"""Seconds, or text like `"30s"`."""

Payload = Union[bytes, str, Mapping[str, Any], Sequence[Any], int, float, bool, None]
"""Bytes and text are sent unchanged, anything else as JSON."""

_JSON = {"Content-Type": "application/json"}


def span(duration: Duration) -> str:
    """The text of a duration."""
    if isinstance(duration, str):
        return duration
    return f"{round(duration * 1000)}ms"


@dataclass(frozen=True)
class Sent:
    """A message that is stored."""

    id: str
    duplicate: bool = False


@dataclass
class Job:
    """A leased message."""

    id: str
    queue: str
    receipt: str
    attempt: int
    interrupted: bool
    enqueued_at: str
    key: Optional[str]
    headers: Dict[str, str]
    payload: bytes
    lost: bool = field(default=False, compare=False)
    """Whether the lease ended while the job was running: another worker may have it."""

    @property
    def text(self) -> str:
        """The payload as text."""
        return self.payload.decode("utf-8")

    @property
    def json(self) -> Any:
        """The payload as JSON."""
        return json.loads(self.payload)

    @classmethod
    def _of(cls, view: Mapping[str, Any]) -> "Job":
        text = view["payload"]
        payload = base64.b64decode(text) if view["encoding"] == "base64" else text.encode("utf-8")
        names = ("id", "queue", "receipt", "attempt", "interrupted", "enqueued_at", "key")
        members = {name: view[name] for name in names}
        return cls(headers=dict(view["headers"]), payload=payload, **members)


class Client:
    """A client of one server; threads may share it.

    - `url`: the admin API; default `TOWPATH_URL`, or `http://127.0.0.1:7070`.
    - `key`: an API key; default `TOWPATH_KEY`, or the token of a data folder.
    - `timeout`: seconds for each response, besides the wait of a lease.
    """

    def __init__(
        self, url: Optional[str] = None, key: Optional[str] = None, timeout: float = 30.0
    ) -> None:
        self._url = url or os.environ.get("TOWPATH_URL") or "http://127.0.0.1:7070"
        self._key = key or credential()
        self._timeout = timeout
        self._local = threading.local()
        self._all: List[Connection] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes every connection; waiting requests fail with `Unavailable`."""
        with self._lock:
            connections, self._all = self._all, []
        for connection in connections:
            connection.close()

    def cancel(self) -> None:
        """Ends waiting lease requests: they return what was leased by then. Further requests fail."""
        with self._lock:
            connections = list(self._all)
        for connection in connections:
            connection.cancel()

    def queue(self, name: str) -> "Queue":
        """The queue of this name; nothing is sent."""
        return Queue(self, name)

    def queues(self) -> List[Dict[str, Any]]:
        """The statistics of every queue."""
        result: List[Dict[str, Any]] = self.connection().request("GET", "/v1/queues")
        return result

    def connection(self) -> Connection:
        """The connection of this thread."""
        connection: Optional[Connection] = getattr(self._local, "connection", None)
        if connection is None:
            connection = Connection(self._url, self._key, self._timeout)
            self._local.connection = connection
            with self._lock:
                self._all.append(connection)
        return connection


class Queue:
    """A queue of a server."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._path = f"/v1/queues/{quote(name, safe='')}"

    def _call(self, method: str, rest: str, body: Any = None, wait: float = 0.0) -> Any:
        encoded = None if body is None else json.dumps(body).encode("utf-8")
        headers = None if body is None else _JSON
        connection = self._client.connection()
        return connection.request(method, self._path + rest, encoded, headers, wait=wait)

    def create(
        self,
        *,
        attempts: Optional[int] = None,
        first: Optional[Duration] = None,
        max: Optional[Duration] = None,
        idempotency_window: Optional[Duration] = None,
        max_depth: Optional[int] = None,
    ) -> Dict[str, Any]:
        """Creates the queue, or replaces its settings; returns its statistics.

        - `attempts`: attempts before a message becomes a dead letter.
        - `first`, `max`: longest delay after the first attempt, and after any.
        - `idempotency_window`: retention of an idempotency key.
        - `max_depth`: most waiting messages.
        """
        retry: Dict[str, Any] = {}
        if attempts is not None:
            retry["attempts"] = attempts
        if first is not None:
            retry["first"] = span(first)
        if max is not None:
            retry["max"] = span(max)
        settings: Dict[str, Any] = {"retry": retry} if retry else {}
        if idempotency_window is not None:
            settings["idempotency_window"] = span(idempotency_window)
        if max_depth is not None:
            settings["max_depth"] = max_depth
        result: Dict[str, Any] = self._call("PUT", "", settings)
        return result

    def stats(self) -> Dict[str, Any]:
        """Statistics and settings of the queue."""
        result: Dict[str, Any] = self._call("GET", "")
        return result

    def delete(self, *, force: bool = False) -> int:
        """Deletes the queue; `force` drops its messages. Returns their number."""
        rest = "?force=true" if force else ""
        return int(self._call("DELETE", rest)["count"])

    def send(
        self,
        payload: Payload,
        *,
        key: Optional[str] = None,
        delay: Optional[Duration] = None,
        expires_in: Optional[Duration] = None,
        idempotency_key: Optional[str] = None,
        headers: Optional[Mapping[str, str]] = None,
    ) -> Sent:
        """Sends a message; it is durable when this returns.

        - `key`: messages of one key are delivered in order, one at a time.
        - `idempotency_key`: makes it safe to send again after `Unavailable`.
        """
        sent = {f"Towpath-Header-{name}": value for name, value in (headers or {}).items()}
        body, kind = _encoded(payload)
        if kind:
            sent["Content-Type"] = kind
        if key is not None:
            sent["Towpath-Key"] = key
        if delay is not None:
            sent["Towpath-Delay"] = span(delay)
        if expires_in is not None:
            sent["Towpath-Expires-In"] = span(expires_in)
        if idempotency_key is not None:
            sent["Idempotency-Key"] = idempotency_key
        encoded = {name: value.encode("utf-8").decode("latin-1") for name, value in sent.items()}
        answer = self._client.connection().request(
            "POST",
            self._path + "/messages",
            body,
            encoded,
            is_repeatable=idempotency_key is not None,
        )
        return Sent(answer["id"], answer["duplicate"])

    def send_many(
        self, payloads: Iterable[Payload], *, idempotency_key: Optional[str] = None
    ) -> List[Sent]:
        """Sends messages in one request: at most 10,000 and 16 MiB.

        Raises `RuntimeError` with the reasons when the queue refused some.
        """
        messages: List[Dict[str, Any]] = []
        for payload in payloads:
            if isinstance(payload, bytes):
                messages.append({"base64": base64.b64encode(payload).decode("ascii")})
            elif isinstance(payload, str):
                messages.append({"text": payload})
            else:
                messages.append({"json": payload})
        headers = dict(_JSON)
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key.encode("utf-8").decode("latin-1")
        answer = self._client.connection().request(
            "POST",
            self._path + "/messages/batch",
            json.dumps({"messages": messages}).encode("utf-8"),
            headers,
            is_repeatable=idempotency_key is not None,
        )
        refused = [one["error"] for one in answer["results"] if "error" in one]
        if refused:
            raise RuntimeError(f"{len(refused)} messages refused: {refused[0]}")
        return [Sent(one["id"], one["duplicate"]) for one in answer["results"]]

    def lease(self, max: int = 1, *, wait: float = 20.0, lease: Duration = "30s") -> List[Job]:
        """Leases up to `max` messages; waits up to `wait` seconds for the first."""
        body = {"max": max, "wait": span(wait), "lease": span(lease)}
        answer = self._call("POST", "/lease", body, wait=wait)
        return [Job._of(view) for view in answer["deliveries"]]

    def settle(self, settlements: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
        """Settles deliveries: members `receipt`, `disposition`, and `after` or `reason`."""
        answer = self._call("POST", "/settle", {"settlements": list(settlements)})
        results: List[Dict[str, Any]] = answer["results"]
        return results

    def ack(self, job: Job) -> bool:
        """Acks a job; false when its lease was lost."""
        result = self.settle([{"receipt": job.receipt, "disposition": "ack"}])[0]
        return bool(result["outcome"] == "ok")

    def extend(self, receipts: Sequence[str], lease: Duration = "30s") -> List[Dict[str, Any]]:
        """Extends leases from now on."""
        body = {"receipts": list(receipts), "lease": span(lease)}
        results: List[Dict[str, Any]] = self._call("POST", "/extend", body)["results"]
        return results

    def dead_letters(self, max: int = 20) -> List[Dict[str, Any]]:
        """The oldest dead letters."""
        result: List[Dict[str, Any]] = self._call("GET", f"/dead-letters?max={max}")
        return result

    def redrive(self, ids: Optional[Sequence[str]] = None) -> int:
        """Returns dead letters to the queue, all of them without `ids`. Returns their number."""
        selection = {"all": True} if ids is None else {"ids": list(ids)}
        return int(self._call("POST", "/dead-letters/redrive", selection)["count"])


def _encoded(payload: Payload) -> "tuple[bytes, Optional[str]]":
    if isinstance(payload, bytes):
        return payload, None
    if isinstance(payload, str):
        return payload.encode("utf-8"), "text/plain; charset=utf-8"
    return json.dumps(payload).encode("utf-8"), "application/json"
