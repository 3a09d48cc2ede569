"""A client of ``ascribe serve``, in the standard library alone.

::

    from ascribe.client import Client

    client = Client("http://127.0.0.1:8080", api_key="…")
    answer = client.attribute("Who wrote this?", "It was …", k=5, receipt=True)
    answer.shares, answer.hits, answer.receipt
"""

from __future__ import annotations

import html
import http.client
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ._ascribe import AscribeError
from ._timed import Clock, opener
from .table import excerpt

__all__ = ["Answer", "AnswerError", "Client", "ServerError"]

_RETRIED = (429, 503)
_PROBLEM_MAX = 1 << 20


class ServerError(AscribeError):
    """What the server refused (RFC 9457): ``status``, ``title``, ``detail``, and ``retry_after`` seconds where it said so."""

    def __init__(self, status: int, title: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {title}: {detail}" if detail else f"{status} {title}")
        self.status, self.title, self.detail, self.retry_after = status, title, detail, retry_after


class AnswerError(AscribeError):
    """No answer, or none that the contract knows: nobody listens, too slow, broken off, too long, other JSON than expected."""


_FIELDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "id": ("a text", (str,)),
    "method": ("a text", (str,)),
    "verdict": ("a text", (str,)),
    "hits": ("a list", (list,)),
    "shares": ("a list", (list,)),
    "coverage": ("a number", (int, float)),
    "receipt": ("an object or null", (dict, type(None))),
}
_NUMBERS = ("share", "low", "high", "std_error", "score")


@dataclass
class Answer:
    """An attribution. ``raw`` is all of the server's answer; what is no attribution is refused (:class:`AnswerError`)."""

    raw: dict[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        raw: Any = self.raw
        if not isinstance(raw, dict):
            _refuse("attribution", "an object", raw)
        for name, (expected, kinds) in _FIELDS.items():
            if name in raw and (not isinstance(raw[name], kinds) or isinstance(raw[name], bool)):
                _refuse(f"attribution: {name}", expected, raw[name])
        for name in ("shares", "hits"):
            for i, line in enumerate(raw.get(name, ())):
                if not isinstance(line, dict):
                    _refuse(f"attribution: {name}[{i}]", "an object", line)
                for key in _NUMBERS:
                    if key in line and (type(line[key]) not in (int, float) or not math.isfinite(line[key])):
                        _refuse(f"attribution: {name}[{i}].{key}", "a finite number", line[key])

    @property
    def id(self) -> str | None:
        """The server's id of the answer."""
        return self.raw.get("id")

    @property
    def method(self) -> str:
        """What attributed."""
        return str(self.raw.get("method", ""))

    @property
    def hits(self) -> list[dict[str, Any]]:
        """Records, best first."""
        return list(self.raw.get("hits", []))

    @property
    def shares(self) -> list[dict[str, Any]]:
        """Datasets with share, low and high."""
        return list(self.raw.get("shares", []))

    @property
    def coverage(self) -> float | None:
        """The part of the pool that evidence covers."""
        return self.raw.get("coverage")

    @property
    def verdict(self) -> str:
        """``payable``, ``too noisy to pay`` or ``not measured``."""
        return str(self.raw.get("verdict", ""))

    @property
    def receipt(self) -> dict[str, Any] | None:
        """The signed receipt, if one was asked for."""
        return self.raw.get("receipt")

    def _repr_html_(self) -> str:
        def cell(value: Any) -> str:
            return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))

        lines = [
            f"<tr><td>{cell(s.get('dataset', s.get('dataset_id')))}</td><td>{cell(s.get('owner', ''))}</td>"
            f"<td>{cell(s.get('share'))}</td><td>{cell(s.get('low'))} – {cell(s.get('high'))}</td></tr>"
            for s in self.shares
        ]
        head = "<tr><th>dataset</th><th>owner</th><th>share</th><th>interval</th></tr>"
        page = f"<table><caption>{cell(self.method)}: {cell(self.verdict)}</caption>{head}{''.join(lines)}</table>"
        lines = [
            f"<tr><td>{cell(h.get('record_id'))}</td><td>{cell(h.get('dataset'))}</td><td>{cell(h.get('score'))}</td>"
            f"<td>{cell(excerpt(str(h.get('text') or '')))}</td></tr>"
            for h in self.hits[:10]
        ]
        head = "<tr><th>record</th><th>dataset</th><th>score</th><th>text</th></tr>"
        return page + (f"<table><caption>best records</caption>{head}{''.join(lines)}</table>" if lines else "")


class Client:
    """Calls one server. Answers 429 and 503 are tried again after what the server asks for (30 s at most), ``retries`` times.

    ``timeout`` seconds are what one answer may take in all, and each line of a stream; ``len_max`` is the longest answer, or
    line, that is read, in bytes. What is no answer of the contract is an :class:`AnswerError`; a redirect is not followed, since
    the key would go with it.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout: float = 60.0, retries: int = 2, len_max: int = 64 << 20
    ) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url: expected http:// or https://, found {url!r}")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key: expected printable ASCII, found other characters")
        if not 0 < timeout < 1e9 or retries < 0 or len_max < 1:
            found = f"{timeout}, {retries} and {len_max}"
            raise ValueError(f"timeout, retries, len_max: expected at least 0 seconds, 0 and 1 byte, found {found}")
        self.url, self.timeout, self.retries, self.len_max = url.rstrip("/"), timeout, retries, len_max
        self._headers = {"accept": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"

    def attribute(self, prompt: str | None = None, completion: str | None = None, k: int = 10, **options: Any) -> Answer:
        """Attributes one response. ``options`` go into the body: ``receipt``, ``method``, ``tokens``, ``filters``, …"""
        return Answer(self._json("POST", "/v1/attributions", _body(prompt, completion, k, options)))

    def attribute_batch(self, requests: Iterable[dict[str, Any]]) -> list[Answer | ServerError]:
        """Attributes several responses; each request is the body of one. One that fails is its error, in its place."""
        asked = list(requests)
        found = self._json("POST", "/v1/attributions:batch", {"requests": asked}).get("responses")
        if not isinstance(found, list) or len(found) != len(asked):
            _refuse("batch: responses", f"a list of {len(asked)}", found)
        return [_item(item) for item in found]

    def attribute_stream(self, requests: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Attributes a long batch; answers come line by line (NDJSON) as they are ready, one for each request."""
        asked, clock, path, n = list(requests), Clock(self.timeout), "/v1/attributions:batch", 0
        body = json.dumps({"requests": asked}, allow_nan=False).encode()
        with self._open("POST", path, body, clock, accept="application/x-ndjson") as stream:
            while True:
                with self._reading("POST", path):
                    line = stream.readline(self.len_max + 1)
                    if len(line) > self.len_max:
                        raise ValueError(f"a line of more than {self.len_max} bytes")
                    item = _parse(line) if line.strip() else None
                clock.restart()
                if not line:
                    break
                if item is not None:
                    n += 1
                    yield item
        if n != len(asked):
            raise AnswerError(f"POST {self.url}{path}: expected {len(asked)} answers, found {n} before the end of the stream")

    def receipt(self, id: str) -> Any:
        """A receipt by its id."""
        return self._json("GET", f"/v1/receipts/{urllib.parse.quote(id, safe='')}")

    def datasets(self) -> Any:
        """The datasets."""
        return self._json("GET", "/v1/datasets")

    def statement(self, owner: str) -> Any:
        """What an owner earned."""
        return self._json("GET", f"/v1/owners/{urllib.parse.quote(owner, safe='')}/statement")

    def index(self) -> Any:
        """The index that answers."""
        return self._json("GET", "/v1/index")

    def keys(self) -> Any:
        """Public keys of receipts."""
        return self._json("GET", "/v1/keys")

    def openapi(self) -> Any:
        """The contract."""
        return self._json("GET", "/openapi.json")

    def ready(self) -> bool:
        """Whether the server answers requests."""
        try:
            with self._open("GET", "/readyz", None, Clock(self.timeout)):
                return True
        except (ServerError, AnswerError):
            return False

    def _json(self, verb: str, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        with self._open(verb, path, data, Clock(self.timeout)) as answer, self._reading(verb, path):
            return _parse(self._all(answer))

    def _all(self, answer: http.client.HTTPResponse) -> bytes:
        """The whole body, if it is no longer than it may be and no shorter than it was announced."""
        pieces, room = [], self.len_max
        while piece := answer.read(min(room + 1, 1 << 20)):
            room -= len(piece)
            if room < 0:
                raise ValueError(f"more than {self.len_max} bytes")
            pieces.append(piece)
        if answer.length:
            raise ValueError(f"a body that breaks off {answer.length} bytes before its end")
        return b"".join(pieces)

    @contextmanager
    def _reading(self, verb: str, path: str) -> Iterator[None]:
        """Whatever reading an answer makes Python say becomes one error."""
        try:
            yield
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            reason = getattr(error, "reason", error)
            found = str(reason) if type(reason) is ValueError else f"{type(reason).__name__}: {reason}"
            found = f"none within {self.timeout} s" if isinstance(reason, TimeoutError) else found
            raise AnswerError(f"{verb} {self.url}{path}: expected an answer, found {found}") from error

    def _open(self, verb: str, path: str, data: bytes | None, clock: Clock, accept: str | None = None) -> Any:
        headers = dict(self._headers, **({"accept": accept} if accept else {}))
        if data is not None:
            headers["content-type"] = "application/json"
        for attempt in range(self.retries + 1):
            clock.restart()
            with self._reading(verb, path):
                request = urllib.request.Request(self.url + path, data, headers, method=verb)
                try:
                    return opener(clock).open(request, timeout=self.timeout)
                except urllib.error.HTTPError as error:
                    problem = _problem(error)
            if problem.status not in _RETRIED or attempt == self.retries:
                raise problem
            time.sleep(min(problem.retry_after or 0.5 * 2**attempt, 30.0))
        raise AssertionError("the last try returns or raises")


def _body(prompt: str | None, completion: str | None, k: int, options: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"k": k, **options}
    if prompt is not None:
        body["prompt"] = prompt
    if completion is not None:
        body["completion"] = completion
    return body


def _refuse(what: str, expected: str, found: Any) -> NoReturn:
    raise AnswerError(f"{what}: expected {expected}, found {str(found)[:80]!r} ({type(found).__name__})")


def _parse(text: bytes) -> dict[str, Any]:
    """An object of JSON; what JSON does not know (NaN) is refused."""

    def unknown(word: str) -> NoReturn:
        raise ValueError(f"{word}, which is no JSON")

    found = json.loads(text, parse_constant=unknown)
    if not isinstance(found, dict):
        raise ValueError(f"JSON that is no object but {str(found)[:80]!r}")
    return found


def _item(item: Any) -> Answer | ServerError:
    if isinstance(item, dict) and "shares" not in item and type(item.get("status")) is int:
        return ServerError(item["status"], str(item.get("title", "")), str(item.get("detail", "")))
    return Answer(item)


def _problem(error: urllib.error.HTTPError) -> ServerError:
    with error:
        text = error.read(_PROBLEM_MAX).decode("utf-8", "replace")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    try:
        seconds = float(error.headers.get("retry-after", ""))
    except ValueError:  # a date, or nothing
        seconds = -1.0
    title, detail = fields.get("title") or error.reason, fields.get("detail") or (text[:300] if not fields else "")
    return ServerError(error.code, str(title), str(detail), seconds if 0 <= seconds < math.inf else None)
