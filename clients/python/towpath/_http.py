"""Requests over one kept-alive connection per thread."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import time
from typing import Any, Dict, Mapping, Optional
from urllib.parse import urlsplit

from ._errors import Conflict, NotFound, Refused, Unavailable

USER_AGENT = "towpath-python/0.2.0"

# The server closes idle connections; one that was idle for longer is not trusted with a request that cannot be repeated.
_FRESH_SECONDS = 5.0


def credential() -> Optional[str]:
    """The key in the environment, or the token of a data folder in the working directory."""
    for name in ("TOWPATH_KEY", "TOWPATH_TOKEN"):
        value = os.environ.get(name, "").strip()
        if value:
            return value
    named = os.environ.get("TOWPATH_TOKEN_FILE")
    try:
        with open(named or "towpath-data/admin.token", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        if named:
            raise
        return None


class Connection:
    """A connection of one thread."""

    def __init__(self, url: str, key: Optional[str], timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"invalid URL `{url}`; expected e.g. `http://127.0.0.1:7070`")
        self._parts = parts
        self._key = key
        self._timeout = timeout
        self._open: Optional[http.client.HTTPConnection] = None
        self._used = 0.0
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Ends the connection, also while another thread waits for a response on it."""
        with self._lock:
            self._is_closed = True
            current, self._open = self._open, None
        if current is not None:
            self._shut(current)

    def cancel(self) -> None:
        """Ends the wait of another thread for a response, and the connection after it.

        Only the sending side is closed: the server answers with what it has leased by then, so nothing is lost. TLS has no
        such half; there the connection ends at once.
        """
        with self._lock:
            self._is_closed = True
            sock = self._open.sock if self._open is not None else None
        if sock is None:
            return
        try:
            sock.shutdown(socket.SHUT_RDWR if isinstance(sock, ssl.SSLSocket) else socket.SHUT_WR)
        except OSError:
            pass

    @staticmethod
    def _shut(connection: http.client.HTTPConnection) -> None:
        sock = connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        connection.close()

    def _connected(self, timeout: float, is_repeatable: bool) -> http.client.HTTPConnection:
        with self._lock:
            if self._is_closed:
                raise Unavailable("the client is closed")
            current = self._open
            is_stale = time.monotonic() - self._used > _FRESH_SECONDS
            if current is not None and is_stale and not is_repeatable:
                current.close()
                current = None
            if current is None:
                host, port = self._parts.hostname or "", self._parts.port
                if self._parts.scheme == "https":
                    current = http.client.HTTPSConnection(
                        host, port, timeout=timeout, context=ssl.create_default_context()
                    )
                else:
                    current = http.client.HTTPConnection(host, port, timeout=timeout)
                self._open = current
            elif current.sock is not None:
                current.sock.settimeout(timeout)
        return current

    def request(
        self,
        method: str,
        path: str,
        body: Optional[bytes] = None,
        headers: Optional[Mapping[str, str]] = None,
        *,
        is_repeatable: bool = True,
        wait: float = 0.0,
    ) -> Any:
        """Sends a request and returns the decoded response.

        A repeatable request is sent again once when a kept-alive connection turned out to be closed.
        """
        sent: Dict[str, str] = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        if self._key:
            sent["Authorization"] = f"Bearer {self._key}"
        sent.update(headers or {})
        if body is None and method != "GET":
            body = b""
        timeout = self._timeout + wait
        while True:
            connection = self._connected(timeout, is_repeatable)
            is_reused = connection.sock is not None
            try:
                connection.request(method, self._parts.path.rstrip("/") + path, body, sent)
                response = connection.getresponse()
                payload = response.read()
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    if self._open is connection:
                        self._open = None
                connection.close()
                is_timeout = isinstance(error, socket.timeout)
                if is_reused and is_repeatable and not is_timeout and not self._is_closed:
                    continue
                raise Unavailable(f"{method} {path}: {error or type(error).__name__}") from error
            self._used = time.monotonic()
            return _decoded(response, payload)


def _decoded(response: http.client.HTTPResponse, payload: bytes) -> Any:
    status = response.status
    if 200 <= status < 300:
        return json.loads(payload) if payload else None
    try:
        detail = str(json.loads(payload)["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"the server answered {status}"
    if status == 429 or status >= 500 and status != 501:
        after = response.headers.get("Retry-After", "")
        raise Unavailable(detail, status, float(after) if after.isdigit() else None)
    kinds = {404: NotFound, 409: Conflict}
    raise kinds.get(status, Refused)(detail, status)
