"""A client of ``ascribe serve``, in the standard library alone.

::

    from ascribe.client import Client

    client = Client("http://127.0.0.1:8080", api_key="…")
    answer = client.attribute("Who wrote this?", "It was …", k=5, receipt=True)
    answer.shares, answer.hits, answer.receipt
"""

from __future__ import annotations

import html
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ._ascribe import AscribeError
from .table import excerpt

__all__ = ["Answer", "Client", "ServerError"]

_RETRIED = (429, 503)


class ServerError(AscribeError):
    """What the server refused (RFC 9457): ``status``, ``title``, ``detail``, and ``retry_after`` seconds where it said so."""

    def __init__(self, status: int, title: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {title}: {detail}" if detail else f"{status} {title}")
        self.status, self.title, self.detail, self.retry_after = status, title, detail, retry_after


@dataclass
class Answer:
    """An attribution. ``raw`` is all of the server's answer."""

    raw: dict[str, Any] = field(repr=False)

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
    """Calls one server. Answers 429 and 503 are tried again after what the server asks for, ``retries`` times."""

    def __init__(self, url: str, api_key: str | None = None, *, timeout: float = 60.0, retries: int = 2) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url: expected http:// or https://, found {url!r}")
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self._headers = {"accept": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"

    def attribute(self, prompt: str | None = None, completion: str | None = None, k: int = 10, **options: Any) -> Answer:
        """Attributes one response. ``options`` go into the body: ``receipt``, ``method``, ``tokens``, ``filters``, …"""
        return Answer(self._json("POST", "/v1/attributions", _body(prompt, completion, k, options)))

    def attribute_batch(self, requests: Iterable[dict[str, Any]]) -> list[Answer | ServerError]:
        """Attributes several responses; each request is the body of one. One that fails is its error, in its place."""
        found = self._json("POST", "/v1/attributions:batch", {"requests": list(requests)})
        return [_item(item) for item in found["responses"]]

    def attribute_stream(self, requests: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Attributes a long batch; answers come line by line (NDJSON) as they are ready."""
        body = json.dumps({"requests": list(requests)}, allow_nan=False).encode()
        with self._open("POST", "/v1/attributions:batch", body, accept="application/x-ndjson") as stream:
            for line in stream:
                if line.strip():
                    yield json.loads(line)

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
            with self._open("GET", "/readyz", None):
                return True
        except (ServerError, urllib.error.URLError, TimeoutError):
            return False

    def _json(self, verb: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        with self._open(verb, path, data) as answer:
            return json.loads(answer.read())

    def _open(self, verb: str, path: str, data: bytes | None, accept: str | None = None) -> Any:
        headers = dict(self._headers, **({"accept": accept} if accept else {}))
        if data is not None:
            headers["content-type"] = "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=verb)
        for attempt in range(self.retries + 1):
            try:
                return urllib.request.urlopen(request, timeout=self.timeout)
            except urllib.error.HTTPError as error:
                problem = _problem(error)
                if error.code not in _RETRIED or attempt == self.retries:
                    raise problem from None
                time.sleep(min(problem.retry_after or 0.5 * 2**attempt, 30.0))
        raise AssertionError("the last try returns or raises")


def _body(prompt: str | None, completion: str | None, k: int, options: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"k": k, **options}
    if prompt is not None:
        body["prompt"] = prompt
    if completion is not None:
        body["completion"] = completion
    return body


def _item(item: dict[str, Any]) -> Answer | ServerError:
    if "shares" not in item and "status" in item:
        return ServerError(int(item["status"]), str(item.get("title", "")), str(item.get("detail", "")))
    return Answer(item)


def _problem(error: urllib.error.HTTPError) -> ServerError:
    with error:
        text = error.read(1 << 20).decode("utf-8", "replace")
    try:
        fields = json.loads(text)
    except ValueError:
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    wait = error.headers.get("retry-after")
    seconds = float(wait) if wait and wait.replace(".", "", 1).isdigit() else None
    title, detail = fields.get("title") or error.reason, fields.get("detail") or (text[:300] if not fields else "")
    return ServerError(error.code, str(title), str(detail), seconds)
