"""What schemathesis cannot know of bodies that are no JSON: lines of it, and rows of numbers whose length follows from a header."""

import json
import math
import struct

import schemathesis
from hypothesis import strategies as st

OCTETS = "application/octet-stream"
LINES = ("application/x-ndjson", "application/jsonl")

# Overwritten below, where query and headers are known.
schemathesis.openapi.media_type(OCTETS, st.just(b"\0\0"))


@schemathesis.serializer(*LINES)
def lines_out(ctx, value):
    """A sequence is a line each; what is none is one line."""
    if isinstance(value, bytes):
        return {"data": value}
    lines = value if isinstance(value, list) else [value]
    return {"data": "".join(json.dumps(line) + "\n" for line in lines).encode()}


@schemathesis.deserializer(*LINES)
def lines_in(ctx, response):
    return [json.loads(line) for line in response.content.splitlines()]


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Octets among the other bodies, so that they are sent, too."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            body = operation.get("requestBody", {}) if isinstance(operation, dict) else {}
            body.get("content", {}).update(body.get("x-ascribe-octets", {}))


def rows_of(case):
    body = case.operation.definition.raw.get("requestBody", {})
    return body.get("content", {}).get(OCTETS, {}).get("x-ascribe-rows")


@schemathesis.hook
def before_call(context, case, kwargs):
    """Octets as the contract's `x-ascribe-rows` says, of the kind, shape and type that the rest of the request has."""
    if case.media_type != OCTETS:
        return
    rows, query, headers = rows_of(case), case.query or {}, case.headers or {}
    kind = query.get("kind", "embedding")
    dtype = headers.get("x-dtype", "f32")
    if kind not in rows["numbersPerRow"] or dtype not in rows["bytesPerNumber"]:
        return
    length, n, shape = rows["numbersPerRow"][kind], min(2, rows["maxRows"]), headers.get("x-shape")
    if shape is not None:
        parts = str(shape).split(",")
        if not all(part.isdigit() for part in parts) or int(parts[-1]) not in rows["numbersPerRow"].values():
            return
        # A shape of the other kind is a valid header; which of them belongs to a kind no schema says.
        n = min(int(parts[0]), rows["maxRows"]) if len(parts) == 2 else 1
        headers["x-shape"] = f"{n},{length}" if len(parts) == 2 else f"{length}"
        case.headers = headers
    form = {"f32": "f", "f16": "e"}[dtype]
    numbers = [math.sin(0.1 + 0.7 * i) for i in range(n * length)]
    case.body = struct.pack(f"<{len(numbers)}{form}", *numbers)


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Lines are refused one by one, each in its place of a stream that has begun: a problem there is the refusal."""
    if case.media_type not in LINES or response.status_code != 200 or type(failure).__name__ != "AcceptedNegativeData":
        return True
    return not any(line.get("status", 0) >= 400 for line in lines_in(None, response))
