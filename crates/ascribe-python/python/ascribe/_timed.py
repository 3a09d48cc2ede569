"""HTTP answers that are there in time as a whole.

A socket's own timeout bounds each wait alone: with a byte now and then an answer could go on for ever.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.request
from functools import partial
from typing import Any

__all__ = ["Clock", "opener"]


class Clock:
    """When an answer must be there."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """The time begins anew."""
        self.end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds that are left; raises ``TimeoutError`` if none are."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _Timed(io.RawIOBase):
    """What a socket brings before the clock ends."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._raw, self._sock, self._clock = sock.makefile("rb", buffering=0), sock, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._clock.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, clock: Clock, sock: socket.socket, *settings: Any, **more: Any) -> None:
        super().__init__(sock, *settings, **more)
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock, clock))


def _connect(kind: type[http.client.HTTPConnection], clock: Clock, host: str, **settings: Any) -> http.client.HTTPConnection:
    connection = kind(host, **settings)
    connection.response_class = partial(_Response, clock)  # type: ignore[assignment]
    return connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_connect, http.client.HTTPConnection, self._clock), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_connect, http.client.HTTPSConnection, self._clock), req)


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: headers would go with it, the key among them."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def opener(clock: Clock) -> urllib.request.OpenerDirector:
    """Opens addresses of HTTP while the clock runs; proxies are those of the environment."""
    return urllib.request.build_opener(_Http(clock), _Https(clock), _Straight())
