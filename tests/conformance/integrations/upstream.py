"""A small upstream that speaks OpenAI's API: it answers the server's own held-out prompts with their responses, whole or word by
word. Prints its address; a prompt that it does not know is answered with itself."""

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    known: dict[str, str] = {}

    def log_message(self, *_):
        pass

    def reply(self, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(200, {"object": "list", "data": [{"id": "echo", "object": "model", "created": 1, "owned_by": "suite"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        chat = "messages" in request
        prompt = request["messages"][-1]["content"] if chat else request["prompt"]
        if prompt == "fail":
            return self.reply(429, {"error": {"message": "slow down", "type": "rate_limit", "code": "429"}})
        text = "" if prompt == "tool" else self.known.get(prompt, prompt)
        kind = "chat.completion" if chat else "text_completion"
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        head = {"id": f"cmpl-{threading.get_ident()}-{id(request)}", "created": 1, "model": request["model"]}
        if not request.get("stream"):
            message = {"role": "assistant", "content": text or None}
            if not text:
                call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                message["tool_calls"] = [call]
            inner = {"message": message} if chat else {"text": text}
            choice = {"index": 0, "finish_reason": "stop", "logprobs": None, **inner}
            return self.reply(200, {**head, "object": kind, "choices": [choice], "usage": usage})
        parts = re.findall(r"\S+\s*|\s+", text)
        lines = []
        for place, part in enumerate([*parts, None]):
            inner = {"delta": {"content": part} if part else {}} if chat else {"text": part or ""}
            choice = {"index": 0, "finish_reason": None if part else "stop", "logprobs": None, **inner}
            chunk = {**head, "object": kind + (".chunk" if chat else ""), "choices": [choice]}
            lines.append(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.reply(200, b"".join(lines) + b"data: [DONE]\n\n", "text/event-stream")


def start(known):
    """Starts it on a free port of loopback; returns its address."""
    Upstream.known = known
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


if __name__ == "__main__":
    print(start(json.load(sys.stdin)), flush=True)
    threading.Event().wait()
