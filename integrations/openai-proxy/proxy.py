"""An OpenAI-compatible proxy that attaches an Ascribe receipt to every completion. An example: read it, then make it yours.

    python proxy.py --upstream http://127.0.0.1:8000 --ascribe http://127.0.0.1:8080 --listen 127.0.0.1:9000

`--upstream` is anything that speaks OpenAI's API: vLLM, llama.cpp, TGI, Ollama. Requests pass through unread but for
`/v1/completions` and `/v1/chat/completions`: their first choice is attributed, and the answer carries

    "ascribe": {"receipt": "…", "verdict": "payable", "coverage": 0.83, "shares": [{"dataset", "owner", "share", "low", "high"}]}

beside OpenAI's own fields (their client keeps it as `completion.ascribe`) and the header `x-ascribe-receipt`. A stream passes
through word by word and gets the same object in one more chunk before `[DONE]`, with no choice in it. Where attribution fails,
the words still go out and the object has `error` (`--strict` refuses them instead, 502; a stream cannot be taken back).

Needs Python 3.10 and nothing else.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

TRACED = ("/v1/completions", "/v1/chat/completions")
# Headers of one connection, which are never passed on.
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "host", "accept-encoding"}
BODY_CAP = 16 << 20


def connect(url: str, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=timeout_s)


def prompt_of(request: dict[str, Any]) -> str:
    """The prompt as text. A model with a chat template should have its template applied here."""
    if "messages" not in request:
        prompt = request.get("prompt", "")
        return prompt if isinstance(prompt, str) else "".join(map(str, prompt[:1]))
    texts = []
    for message in request["messages"]:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        texts.append(content)
    return "\n".join(texts)


def words_of(choice: dict[str, Any]) -> str:
    """The words of a choice, whole or a chunk's."""
    inner = choice.get("message") or choice.get("delta")
    return (inner.get("content") if inner is not None else choice.get("text")) or ""


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    options: argparse.Namespace

    def log_message(self, form: str, *values: Any) -> None:
        print(form % values, file=sys.stderr)

    def do_GET(self) -> None:
        self.forward()

    do_POST = do_DELETE = do_GET

    def forward(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if length > BODY_CAP:
            return self.reply(413, {"error": {"message": f"expected at most {BODY_CAP} bytes, found {length}"}})
        body = self.rfile.read(length)
        upstream = connect(self.options.upstream, self.options.timeout)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
        try:
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            kind = answer.headers.get("content-type", "")
            traced = self.command == "POST" and self.path.split("?")[0] in TRACED and answer.status == 200
            if traced and kind.startswith("text/event-stream"):
                self.stream(answer, json.loads(body))
            elif traced:
                self.whole(answer, json.loads(body))
            else:
                self.plain(answer.status, kind, answer.read())
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            self.close_connection = True
            self.reply(502, {"error": {"message": f"upstream: {error}", "type": "upstream_error"}})
        finally:
            upstream.close()

    def whole(self, answer: http.client.HTTPResponse, request: dict[str, Any]) -> None:
        completion = json.load(answer)
        choices = completion.get("choices") or [{}]
        found = self.attribute(request, words_of(choices[0]))
        if "error" in found and self.options.strict:
            return self.reply(502, {"error": {"message": f"no receipt: {found['error']}", "type": "ascribe_error"}})
        completion["ascribe"] = found
        self.reply(200, completion, found.get("receipt"))

    def stream(self, answer: http.client.HTTPResponse, request: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        words, last = [], {}
        for line in answer:
            if line.strip() == b"data: [DONE]":
                found = self.attribute(request, "".join(words))
                # `choices` is empty, as in OpenAI's own last chunk of usage: clients that know one know the other.
                last = {k: last[k] for k in ("id", "object", "created", "model") if k in last}
                self.chunk(b"data: " + json.dumps(last | {"choices": [], "ascribe": found}).encode() + b"\n\n")
            elif line.startswith(b"data: "):
                last = json.loads(line[6:])
                words += [words_of(c) for c in last.get("choices", []) if c.get("index", 0) == 0]
            self.chunk(line)
        self.chunk(b"")

    def attribute(self, request: dict[str, Any], words: str) -> dict[str, Any]:
        """Shares and receipt of one response, or the reason why there are none."""
        if not words:
            return {"error": "no words to attribute"}
        question = {"prompt": prompt_of(request), "completion": words, "k": 0, "receipt": True}
        headers = {"content-type": "application/json"}
        if self.options.key:
            headers["authorization"] = f"Bearer {self.options.key}"
        server = connect(self.options.ascribe, self.options.timeout)
        try:
            server.request("POST", "/v1/attributions", json.dumps(question).encode(), headers)
            answer = server.getresponse()
            found = json.loads(answer.read())
            if answer.status != 200:
                return {"error": f"{answer.status}: {found.get('detail', answer.reason)}"}
            shares = [{k: s[k] for k in ("dataset", "owner", "share", "low", "high")} for s in found["shares"]]
            kept = {"verdict": found["verdict"], "coverage": found["coverage"], "shares": shares}
            return kept | ({"receipt": found["id"]} if found.get("receipt") else {"error": found.get("receipt_error", "no receipt")})
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        finally:
            server.close()

    def reply(self, status: int, body: dict[str, Any], receipt: str | None = None) -> None:
        self.plain(status, "application/json", json.dumps(body).encode(), receipt)

    def plain(self, status: int, kind: str, body: bytes, receipt: str | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        if receipt:
            self.send_header("x-ascribe-receipt", receipt)
        self.end_headers()
        self.wfile.write(body)

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="address of the OpenAI-compatible server")
    parser.add_argument("--ascribe", required=True, help="address of the Ascribe server")
    parser.add_argument("--listen", default="127.0.0.1:9000", help="address and port; port 0 takes a free one")
    parser.add_argument("--key", help="API key of the Ascribe server")
    parser.add_argument("--strict", action="store_true", help="refuse responses that got no receipt")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds")
    Proxy.options = parser.parse_args()
    host, port = Proxy.options.listen.rsplit(":", 1)
    with Server((host, int(port)), Proxy) as server:
        print(json.dumps({"listen": "%s:%d" % server.server_address[:2]}), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
