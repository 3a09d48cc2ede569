"""A server that lies: whatever it says, the client gives a right answer or raises an error of ours, in time. Seeds are fixed."""

from __future__ import annotations

import contextlib
import itertools
import json
import socketserver
import threading
import time

import ascribe
import pytest
from ascribe.client import Answer, AnswerError, Client, ServerError
from hypothesis import given, settings
from hypothesis import strategies as st

ANSWER = {
    "id": "x",
    "method": "gradient",
    "hits": [{"record_id": "r", "dataset": "poems", "score": 1.5, "text": "It was"}],
    "shares": [{"dataset": "poems", "owner": "ann", "share": 0.5, "low": 0.4, "high": 0.6}],
    "coverage": 0.8,
    "verdict": "payable",
    "receipt": {"a": 1},
}
CALLS = {
    "attribute": lambda client: client.attribute("a", "b"),
    "batch": lambda client: client.attribute_batch([{"prompt": "a"}, {"prompt": "b"}]),
    "stream": lambda client: list(client.attribute_stream([{"prompt": "a"}, {"prompt": "b"}])),
    "receipt": lambda client: client.receipt("x"),
    "datasets": lambda client: client.datasets(),
    "ready": lambda client: client.ready(),
}


class Liar(socketserver.ThreadingTCPServer):
    """Reads one request and says ``says``: pieces of bytes, as fast as they come, until they end or nobody listens."""

    daemon_threads, allow_reuse_address, request_queue_size = True, True, 64
    says = staticmethod(lambda: iter(()))

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Deaf)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def client(self, **more):
        return Client(f"http://127.0.0.1:{self.server_address[1]}", "key", **{"retries": 0, "timeout": 5.0, **more})


class Deaf(socketserver.StreamRequestHandler):
    def handle(self):
        length = 0
        while (line := self.rfile.readline()).strip():
            name, _, value = line.lower().partition(b":")
            length = int(value) if name == b"content-length" else length
        self.rfile.read(length)
        with contextlib.suppress(OSError):
            for piece in self.server.says():
                self.wfile.write(piece)


@pytest.fixture(scope="module")
def liar():
    with Liar() as server:
        yield server
        server.shutdown()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ANSWER, "share", "status"]), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def bodies(draw):
    """Bytes that may be an answer: right ones, ones with a field of another kind, any JSON, a part, anything."""
    answer = json.loads(json.dumps(ANSWER))
    if draw(st.booleans()):
        target = draw(st.sampled_from([answer, answer["shares"][0], answer["hits"][0]]))
        target[draw(st.sampled_from(sorted(target)))] = draw(json_values)
    value = draw(
        st.sampled_from([answer, {"responses": [answer, {"status": 422, "title": "No"}]}, {"responses": [answer]}, [answer]])
        | json_values
    )
    data = json.dumps(value).encode()
    how = draw(st.sampled_from(["whole", "whole", "lines", "cut", "deep", "bytes", "empty"]))
    return {
        "whole": data,
        "lines": data + b"\n\n" + data + b"\n",
        "cut": data[: draw(st.integers(0, len(data)))],
        "deep": b"[" * draw(st.integers(1, 200_000)),
        "bytes": draw(st.binary(max_size=60)),
        "empty": b"",
    }[how]


STATUS = [b"200 OK"] * 8 + [b"204 No", b"302 Found", b"404 No", b"422 No", b"429 No", b"503 No", b"999 No", b"2xx", b"-1 No", b""]
HEADERS = [b"", b"Retry-After: 1e999", "Retry-After: ²".encode("latin-1"), b"Retry-After: -1", b"Retry-After: Wed, 21 Oct 2015"]
HEADERS += [b"Location: ftp://127.0.0.1:1/x", b"Location: http://[", b"Content-Type: \xff", b": :", b"x" * 300]


@given(
    st.sampled_from(sorted(CALLS)),
    st.sampled_from(STATUS),
    st.lists(st.sampled_from(HEADERS), max_size=2),
    bodies(),
    st.sampled_from(["none", "right", "right", "long", "short", "huge", "chunked", "torn chunk", "bad chunk", "words"]),
)
@settings(max_examples=500)
def test_whatever_it_says(liar, call, status, headers, body, framing):
    n = len(body)
    head, tail = {
        "none": (b"", body),
        "right": (b"Content-Length: %d" % n, body),
        "long": (b"Content-Length: %d" % (n + 9), body),
        "short": (b"Content-Length: %d" % (n // 2), body),
        "huge": (b"Content-Length: 1" + b"0" * 30, body),
        "chunked": (b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (n, body) if n else b"0\r\n\r\n"),
        "torn chunk": (b"Transfer-Encoding: chunked", b"%x\r\n%b" % (n + 5, body)),
        "bad chunk": (b"Transfer-Encoding: chunked", b"-zz\r\n" + body),
        "words": (b"Content-Length: many", body),
    }[framing]
    said = b"\r\n".join([b"HTTP/1.1 " + status, *headers, head, b"Connection: close", b"", tail])
    liar.says = lambda: [said]
    begin = time.monotonic()
    try:
        found = CALLS[call](liar.client())
    except ascribe.AscribeError as error:
        assert isinstance(error, (AnswerError, ServerError)) and str(error)
    else:
        assert (status.startswith(b"2") and status[:3].isdigit()) or call == "ready"
        for answer in found if isinstance(found, list) else [found]:
            if isinstance(answer, Answer):
                assert all(isinstance(x, list) for x in (answer.hits, answer.shares)) and isinstance(answer.method, str)
                assert answer._repr_html_().startswith("<table>")
            else:
                assert isinstance(answer, (dict, ServerError)) or (call == "ready" and isinstance(answer, bool))
        assert len(found) == 2 if call in ("batch", "stream") else True
    assert time.monotonic() - begin < 5


def slowly(data, pause=0.05):
    for byte in data:
        yield bytes([byte])
        time.sleep(pause)


def silence():
    time.sleep(1.0)
    yield from ()


HEAD = b"HTTP/1.1 200 OK\r\n"
GOOD = json.dumps(ANSWER).encode()
WITH = HEAD + b"Content-Length: %d\r\n\r\n" % len(GOOD)
LIES = {
    "silence": lambda: silence(),
    "a slow head": lambda: slowly(WITH + GOOD),
    "a slow body": lambda: itertools.chain([WITH], slowly(GOOD)),
    "a head without end": lambda: itertools.chain([HEAD], itertools.repeat(b"X: " + b"y" * 60000 + b"\r\n")),
    "a line of the head without end": lambda: itertools.chain([HEAD], itertools.repeat(b"y" * 60000)),
    "interim answers without end": lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body without end": lambda: itertools.chain([HEAD + b"\r\n"], itertools.repeat(b" " * 65536)),
    "a chunked body without end": lambda: itertools.chain(
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"1000\r\n" + b" " * 4096 + b"\r\n")
    ),
    "chunks of one byte without end": lambda: itertools.chain(
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"1\r\n \r\n" * 1000)
    ),
    "a length without end": lambda: itertools.chain(
        [HEAD + b"Content-Length: " + b"9" * 18 + b"\r\n\r\n"], itertools.repeat(b" " * 65536)
    ),
    "a refusal without end": lambda: itertools.chain([b"HTTP/1.1 500 No\r\n\r\n"], slowly(itertools.repeat(32))),
    "nothing": lambda: iter(()),
}


@pytest.mark.parametrize("call", ["attribute", "stream"])
@pytest.mark.parametrize("lie", sorted(LIES))
def test_no_lie_holds_on(liar, lie, call):
    """Slow and endless answers end in an error, and in time."""
    liar.says = LIES[lie]
    begin = time.monotonic()
    with pytest.raises(AnswerError, match=r"POST http.*expected") as found:
        CALLS[call](liar.client(timeout=0.4, len_max=1 << 20))
    assert time.monotonic() - begin < 8.0, str(found.value)  # those that end would take 16 s
    assert not liar.client(timeout=0.4).ready() or lie.startswith(("a body", "a chunked", "chunks", "a length", "a slow body"))


def test_a_stream_may_take_longer_than_its_lines(liar):
    lines = [json.dumps({**ANSWER, "id": str(i)}).encode() + b"\n" for i in range(6)]

    def says():
        yield HEAD + b"\r\n"
        for line in lines:
            time.sleep(0.15)
            yield line

    liar.says = says
    client = liar.client(timeout=0.5)
    assert [one["id"] for one in client.attribute_stream([{}] * 6)] == list("012345")
    with pytest.raises(AnswerError, match="expected 7 answers, found 6"):
        list(client.attribute_stream([{}] * 7))
    with pytest.raises(AnswerError, match=r"0\.5 s"):
        client.attribute("a", "b")


def test_the_key_goes_nowhere_else(liar):
    """A redirect is an error: it would take the key along."""
    asked = []

    def says():
        asked.append(1)
        yield b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"

    liar.says = says
    for call in ("attribute", "datasets"):
        with pytest.raises(ServerError, match="302"):
            CALLS[call](liar.client())
    assert len(asked) == 2


def test_nobody_listens_and_wrong_settings():
    with pytest.raises(AnswerError, match="refused"):
        Client("http://127.0.0.1:9", timeout=2.0).datasets()
    assert not Client("http://127.0.0.1:9", timeout=2.0).ready()
    for more, words in (({"timeout": 0}, "timeout"), ({"timeout": float("nan")}, "timeout"), ({"api_key": "a\r\nb"}, "api_key")):
        with pytest.raises(ValueError, match=words):
            Client("http://127.0.0.1:9", **more)
