"""The client against a server of the standard library, and against `ascribe serve` where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ascribe.client import Client, ServerError

SEEN: list[tuple[str, str, dict, object]] = []


class Fake(BaseHTTPRequestHandler):
    busy = 0

    def answer(self, status, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        SEEN.append(("GET", self.path, dict(self.headers), None))
        if self.path == "/v1/receipts/none":
            self.answer(
                404, {"title": "No such receipt", "detail": "none", "status": 404}, content_type="application/problem+json"
            )
        elif self.path == "/v1/index":
            self.answer(500, b"<html>boom")
        else:
            self.answer(200, {"path": self.path})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        SEEN.append(("POST", self.path, dict(self.headers), body))
        if Fake.busy:
            Fake.busy -= 1
            self.answer(503, {"title": "Busy"}, retry_after="0.01")
        elif self.headers.get("accept") == "application/x-ndjson":
            self.answer(200, b'{"id": "a"}\n\n{"id": "b"}\n')
        elif self.path.endswith(":batch"):
            self.answer(200, {"responses": [{"id": "a"}, {"status": 422, "title": "No", "detail": "prompt"}]})
        else:
            share = {"dataset": "<b>poems</b>", "owner": "ann", "share": 0.5, "low": 0.4, "high": 0.6}
            self.answer(
                200, {"id": "x", "method": "gradient", "shares": [share], "hits": [], "coverage": 0.8, "receipt": {"a": 1}}
            )

    def log_message(self, *_):
        pass


@pytest.fixture
def client():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    SEEN.clear()
    yield Client(f"http://127.0.0.1:{server.server_port}/", api_key="k")
    server.shutdown()
    server.server_close()


def test_calls(client):
    answer = client.attribute("Wer?", "Ich: 你好", k=3, receipt=True)
    assert answer.shares[0]["share"] == 0.5 and answer.coverage == 0.8 and answer.receipt == {"a": 1} and answer.id == "x"
    verb, path, headers, body = SEEN[-1]
    assert (verb, path) == ("POST", "/v1/attributions") and headers["Authorization"] == "Bearer k"
    assert body == {"k": 3, "receipt": True, "prompt": "Wer?", "completion": "Ich: 你好"}
    assert "&lt;b&gt;" in answer._repr_html_() and "<b>" not in answer._repr_html_()
    good, bad = client.attribute_batch([{"prompt": "a"}, {"prompt": "b"}])
    assert good.id == "a" and isinstance(bad, ServerError) and bad.status == 422 and "prompt" in str(bad)
    assert [a["id"] for a in client.attribute_stream([{}, {}])] == ["a", "b"]
    assert client.receipt("a/b")["path"] == "/v1/receipts/a%2Fb" and client.statement("ann lee")["path"].endswith(
        "ann%20lee/statement"
    )
    assert client.datasets() and client.keys() and client.openapi() and client.ready()


def test_refusals(client):
    with pytest.raises(ServerError, match="404 No such receipt: none") as found:
        client.receipt("none")
    assert found.value.status == 404
    with pytest.raises(ServerError, match="500"):
        client.index()
    Fake.busy = 2
    assert client.attribute("a", "b").method == "gradient"
    Fake.busy = 3
    with pytest.raises(ServerError, match="503 Busy") as found:
        client.attribute("a", "b")
    assert found.value.retry_after == 0.01
    with pytest.raises(ValueError, match="http"):
        Client("ftp://x")
    with pytest.raises(ValueError):
        client.attribute(embedding=[float("nan")])


def test_the_server_itself(tmp_path):
    command, run = os.environ.get("ASCRIBE"), os.environ.get("ASCRIBE_DEMO")
    if not command or not run or not Path(run).is_dir():
        pytest.skip("ASCRIBE and ASCRIBE_DEMO name the command and a demo's folder")
    if subprocess.run([command, "serve", "--help"], capture_output=True).returncode:
        pytest.skip("a command that is older than `ascribe serve`")
    words = [command, "serve", "--run", run, "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state")]
    words += ["--home", os.environ["ASCRIBE_ROOT"]] if "ASCRIBE_ROOT" in os.environ else []
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        first = json.loads(server.stdout.readline())
        address = first.get("url") or first.get("listen") or first.get("address")
        client = Client(address if str(address).startswith("http") else f"http://{address}")
        answer = client.attribute("The sea", " is wide and deep.", k=3)
        assert answer.shares and len(answer.hits) <= 3 and answer.method
        signed = client.attribute("The sea", " is wide and deep.", k=2, receipt=True)
        assert signed.receipt and client.receipt(signed.id)["receipt"] == signed.receipt
        assert client.statement(client.datasets()["datasets"][0]["owner"])["receipts_in_all"] >= 1
        asked = [{"prompt": "The sea", "completion": text, "k": 1} for text in (" is wide.", " 很宽。")]
        assert [one.method for one in client.attribute_batch(asked)] == [one["method"] for one in client.attribute_stream(asked)]
        assert client.index()["generation"] and client.keys()["keys"]
        with pytest.raises(ServerError, match="method"):
            client.attribute("The sea", " is wide.", method="guess")
        assert client.ready() and "/v1/attributions" in client.openapi()["paths"] and client.datasets()
        with pytest.raises(ServerError):
            client.receipt("no-such-receipt")
    finally:
        server.terminate()
        server.wait(30)
