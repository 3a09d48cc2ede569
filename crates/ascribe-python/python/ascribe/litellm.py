"""A LiteLLM callback: every response is attributed by an Ascribe server, and the id of its signed receipt is kept.

This file stands alone; it is ``ascribe.litellm`` of the Python package and ``ascribe_callback.py`` of ``integrations/litellm``,
for proxies without the package (then import it by that name). Needs litellm and httpx.

With the SDK (any provider, streams too)::

    import litellm
    from ascribe.litellm import AscribeCallback
    litellm.callbacks = [AscribeCallback("http://127.0.0.1:8080", receipts="receipts.jsonl")]

With the proxy, in its config.yaml (settings then come from ASCRIBE_URL, ASCRIBE_KEY, ASCRIBE_RECEIPTS, ASCRIBE_WHEN)::

    litellm_settings:
      callbacks: ascribe.litellm.handler      # or ascribe_callback.handler, with the file beside config.yaml

Two moments can be chosen. ``when="after"`` (the default) asks behind the caller's back: no latency. ``when="before"`` (proxy
only) asks before the response leaves: the caller gets its receipt's id in the header ``x-ascribe-receipt``, and with
``strict=True`` no response without one. Either way each response is one line of the receipts file, also where the server gave
no receipt: then the line has ``error``, so that nothing is silently unpaid.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from litellm.integrations.custom_logger import CustomLogger

__all__ = ["AscribeCallback", "completion_of", "text_of"]

HEADER = "x-ascribe-receipt"
LEN_MAX = 16 << 20
"""Longest answer of the server that is read, in bytes."""


def text_of(messages: Any) -> str:
    """The text of chat messages, one after the other; parts that are no text (images, sounds) are left out."""
    if isinstance(messages, str):
        return messages
    texts = []
    for message in messages or []:
        content = message if isinstance(message, str) else message.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if content:
            texts.append(content)
    return "\n".join(texts)


def completion_of(response: Any) -> str:
    """The text of the first choice of a chat or text completion."""
    choices = getattr(response, "choices", None) or []
    if not choices:
        return ""
    message = getattr(choices[0], "message", None)
    return str((message.content if message is not None else getattr(choices[0], "text", "")) or "")


class AscribeCallback(CustomLogger):
    """Asks `POST /v1/attributions` for a receipt per response. `prompt_of` makes the model's prompt of the messages."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        receipts: str | os.PathLike[str] | None = None,
        *,
        when: str | None = None,
        strict: bool = False,
        timeout_s: float = 30.0,
        prompt_of: Callable[[Any], str] = text_of,
        **fields: Any,
    ) -> None:
        super().__init__()
        self.when = when or os.environ.get("ASCRIBE_WHEN", "after")
        if self.when not in ("before", "after"):
            raise ValueError(f"when: expected 'before' or 'after', found {self.when!r}")
        self.strict, self.prompt_of, self.fields = strict, prompt_of, fields
        place = receipts or os.environ.get("ASCRIBE_RECEIPTS")
        self.path = Path(place) if place else None
        self.writing = threading.Lock()
        key = key or os.environ.get("ASCRIBE_KEY")
        self.timeout_s = timeout_s
        self.http = httpx.Client(
            base_url=url or os.environ.get("ASCRIBE_URL", "http://127.0.0.1:8080"),
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=timeout_s,
        )

    def attribute(self, prompt: str, completion: str) -> dict[str, Any]:
        """One question to the server; raises what httpx raises, and ``ValueError`` where the answer is no attribution."""
        body = {"prompt": prompt, "completion": completion, "k": 0, "receipt": True, **self.fields}
        data, end = bytearray(), time.monotonic() + self.timeout_s
        with self.http.stream("POST", "/v1/attributions", json=body) as answer:
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > LEN_MAX or time.monotonic() > end:
                    raise ValueError(f"expected an answer within {LEN_MAX} bytes and {self.timeout_s} s, found a longer one")
        try:
            found: Any = json.loads(bytes(data))
        except (ValueError, RecursionError):
            found = None
        if answer.is_error:
            detail = found.get("detail") if isinstance(found, dict) else None
            reason = f"{answer.status_code}: {detail or answer.reason_phrase}"
            raise httpx.HTTPStatusError(reason, request=answer.request, response=answer)
        if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("id", "verdict")):
            raise ValueError(f"expected an attribution, found {bytes(data[:80])!r}")
        attribution: dict[str, Any] = found
        return attribution

    def settle(self, messages: Any, response: Any) -> str | None:
        """Attributes one response and writes its line. Returns the receipt's id; None where there is none (unless strict)."""
        completion = completion_of(response)
        if not completion:
            # A tool call, or nothing: no words that a dataset could have caused.
            return None
        line: dict[str, Any] = {"response": getattr(response, "id", None), "model": getattr(response, "model", None)}
        receipt: str | None = None
        failure: Exception | None = None
        try:
            answer = self.attribute(self.prompt_of(messages), completion)
            if answer.get("receipt"):
                receipt = answer["id"]
            line |= {"receipt": receipt, "verdict": answer["verdict"], "coverage": answer["coverage"]}
            if receipt is None:
                line["error"] = answer.get("receipt_error", "the server gave no receipt")
        except (httpx.HTTPError, ValueError, KeyError) as error:
            failure = error
            line["error"] = f"{type(error).__name__}: {error}"
        self.write(line)
        if self.strict and self.when == "before" and receipt is None:
            raise RuntimeError(f"no receipt for this response: {line['error']}") from failure
        return receipt

    def write(self, line: dict[str, Any]) -> None:
        """Appends one line, whole or not at all."""
        if self.path is None:
            return
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with self.writing, self.path.open("ab", buffering=0) as file:
            file.write(data)

    # --- what LiteLLM calls

    def log_success_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A call of the SDK came to its end."""
        whole = self.whole(kwargs, response_obj, "complete_streaming_response")
        if whole is not None:
            self.settle(kwargs.get("messages") or kwargs.get("input"), whole)

    async def async_log_success_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:
        """An asynchronous one did."""
        whole = self.whole(kwargs, response_obj, "async_complete_streaming_response")
        if whole is not None:
            await asyncio.to_thread(self.settle, kwargs.get("messages") or kwargs.get("input"), whole)

    def whole(self, kwargs: dict[str, Any], response: Any, name: str) -> Any:
        """What is settled behind the caller's back: every response, or with `before` only streams, whose words are gone."""
        if kwargs.get("stream"):
            # The last event of a stream carries the whole response; the ones before it are parts.
            return kwargs.get(name)
        return response if self.when == "after" else None

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """A response of the proxy is about to leave."""
        if self.when == "before":
            messages = data.get("messages") or data.get("prompt")
            receipt = await asyncio.to_thread(self.settle, messages, response)
            data.setdefault("metadata", {})["ascribe_receipt"] = receipt
        return response

    async def async_post_call_response_headers_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any, **_: Any
    ) -> dict[str, str] | None:
        """Its headers."""
        receipt = (data.get("metadata") or {}).get("ascribe_receipt")
        return {HEADER: receipt} if receipt else None


def __getattr__(name: str) -> AscribeCallback:
    """``handler``, made when the proxy's config asks for it: importing the class reads no environment."""
    if name != "handler":
        raise AttributeError(name)
    made: AscribeCallback = globals().setdefault(name, AscribeCallback())
    return made
