"""A writer of feature stores in nothing but Python and numpy, for training machines where nothing compiled may be installed.

This file stands alone: copy it. It writes format version 2 (``docs/STORE.md``), rows of float32, shard by shard; a killed writer
resumes. BLAKE3 and the Parquet of the side files are written out here, since neither is in Python's library.

::

    with Writer("out/store", spec_json, n_rows=1000) as writer:
        for ids, rows in blocks[writer.n_committed:]:
            writer.push(ids, rows)
        writer.finish()
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

__all__ = ["Writer", "blake3"]

Array = npt.NDArray[Any]
U32 = npt.NDArray[np.uint32]

_ZEROS = "0" * 64
_SPEC = ("model", "checkpoint", "quantity", "loss", "normalizer", "projector", "columns", "dim", "corpus")
_ALIGN = 64

# ---- BLAKE3 (github.com/BLAKE3-team/BLAKE3-specs), all chunks of a message side by side ----

_IV = np.array([0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], dtype=np.uint32)
_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_START, _END, _PARENT, _ROOT = 1, 2, 4, 8
_CHUNK = 1024


def _rotate(x: U32, n: int) -> U32:
    return (x >> np.uint32(n)) | (x << np.uint32(32 - n))


def _mix(v: list[U32], a: int, b: int, c: int, d: int, x: U32, y: U32) -> None:
    v[a] = v[a] + v[b] + x
    v[d] = _rotate(v[d] ^ v[a], 16)
    v[c] = v[c] + v[d]
    v[b] = _rotate(v[b] ^ v[c], 12)
    v[a] = v[a] + v[b] + y
    v[d] = _rotate(v[d] ^ v[a], 8)
    v[c] = v[c] + v[d]
    v[b] = _rotate(v[b] ^ v[c], 7)


def _compress(chain: U32, words: U32, counter: npt.NDArray[np.uint64], length: int, flags: int) -> U32:
    """``chain`` ``[8, n]``, ``words`` ``[16, n]`` → ``[8, n]``."""
    n = chain.shape[1]
    v: list[U32] = [chain[i] for i in range(8)] + [np.full(n, _IV[i], np.uint32) for i in range(4)]
    v.append((counter & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    v.append((counter >> np.uint64(32)).astype(np.uint32))
    v += [np.full(n, length, np.uint32), np.full(n, flags, np.uint32)]
    m = [words[i] for i in range(16)]
    for _ in range(7):
        for a, b, c, d, i in ((0, 4, 8, 12, 0), (1, 5, 9, 13, 2), (2, 6, 10, 14, 4), (3, 7, 11, 15, 6)):
            _mix(v, a, b, c, d, m[i], m[i + 1])
        for a, b, c, d, i in ((0, 5, 10, 15, 8), (1, 6, 11, 12, 10), (2, 7, 8, 13, 12), (3, 4, 9, 14, 14)):
            _mix(v, a, b, c, d, m[i], m[i + 1])
        m = [m[i] for i in _ORDER]
    return np.stack([v[i] ^ v[i + 8] for i in range(8)])


def _chunk(data: bytes, index: int, root: int) -> U32:
    """The chaining value of one chunk of any length, ``[8, 1]``."""
    chain, counter = _IV[:, None].copy(), np.array([index], np.uint64)
    blocks = [data[i : i + 64] for i in range(0, len(data), 64)] or [b""]
    for i, block in enumerate(blocks):
        flags = (_START if i == 0 else 0) | ((_END | root) if i + 1 == len(blocks) else 0)
        words = np.frombuffer(block.ljust(64, b"\0"), "<u4").astype(np.uint32)[:, None]
        chain = _compress(chain, words, counter, len(block), flags)
    return chain


def blake3(data: bytes) -> str:
    """BLAKE3 in hex.

    >>> blake3(b"")
    'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262'
    """
    if len(data) <= _CHUNK:
        return _chunk(data, 0, _ROOT)[:, 0].astype("<u4").tobytes().hex()
    n_full = len(data) // _CHUNK
    chain = np.repeat(_IV[:, None], n_full, axis=1)
    words = np.frombuffer(data, "<u4", n_full * 256).reshape(n_full, 16, 16)
    counter = np.arange(n_full, dtype=np.uint64)
    for block in range(16):
        flags = (_START if block == 0 else 0) | (_END if block == 15 else 0)
        chain = _compress(chain, np.ascontiguousarray(words[:, block].T), counter, 64, flags)
    if len(data) % _CHUNK:
        chain = np.concatenate([chain, _chunk(data[n_full * _CHUNK :], n_full, 0)], axis=1)
    while chain.shape[1] > 1:
        pairs, odd = chain.shape[1] // 2, chain.shape[1] % 2
        words = np.concatenate([chain[:, 0 : 2 * pairs : 2], chain[:, 1 : 2 * pairs : 2]])
        flags = _PARENT | (_ROOT if chain.shape[1] == 2 else 0)
        key = np.repeat(_IV[:, None], pairs, axis=1)
        joined = _compress(key, words, np.zeros(pairs, np.uint64), 64, flags)
        chain = np.concatenate([joined, chain[:, -1:]], axis=1) if odd else joined
    return chain[:, 0].astype("<u4").tobytes().hex()


# ---- Parquet: one row group, required columns, PLAIN, uncompressed; metadata in Thrift's compact protocol ----

_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
_KINDS = {"u8": (2, 14), "u4": (1, 13), "f4": (4, None)}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _thrift(fields: Sequence[tuple[int, int, Any]]) -> bytes:
    """A struct of (field id, type, value) in ascending ids."""
    out, last = bytearray(), 0
    for number, kind, value in fields:
        out.append((number - last) << 4 | kind)
        out += _value(kind, value)
        last = number
    return bytes(out) + b"\0"


def _value(kind: int, value: Any) -> bytes:
    if kind in (_I32, _I64):
        return _varint(value << 1)
    if kind == _BINARY:
        return _varint(len(value)) + bytes(value)
    if kind == _LIST:
        element, items = value
        head = bytes([len(items) << 4 | element]) if len(items) < 15 else bytes([0xF0 | element]) + _varint(len(items))
        return head + b"".join(_value(element, item) for item in items)
    return _thrift(value)


def parquet(columns: Sequence[tuple[str, Array]]) -> bytes:
    """A Parquet file of little-endian columns."""
    n = len(columns[0][1])
    out, chunks = bytearray(b"PAR1"), []
    schema: list[Any] = [[(4, _BINARY, b"schema"), (5, _I32, len(columns))]]
    for name, values in columns:
        kind, converted = _KINDS[values.dtype.str[1:]]
        data = values.tobytes()
        page = [(1, _I32, n), (2, _I32, 0), (3, _I32, 3), (4, _I32, 3)]
        head = _thrift([(1, _I32, 0), (2, _I32, len(data)), (3, _I32, len(data)), (5, _STRUCT, page)])
        meta = [(1, _I32, kind), (2, _LIST, (_I32, [0])), (3, _LIST, (_BINARY, [name.encode()])), (4, _I32, 0)]
        size = len(head) + len(data)
        meta += [(5, _I64, n), (6, _I64, size), (7, _I64, size), (9, _I64, len(out))]
        chunks.append([(2, _I64, len(out)), (3, _STRUCT, meta)])
        schema.append([(1, _I32, kind), (3, _I32, 0), (4, _BINARY, name.encode())])
        schema[-1] += [] if converted is None else [(6, _I32, converted)]
        out += head + data
    group = [(1, _LIST, (_STRUCT, chunks)), (2, _I64, len(out) - 4), (3, _I64, n)]
    footer = _thrift(
        [
            (1, _I32, 1),
            (2, _LIST, (_STRUCT, schema)),
            (3, _I64, n),
            (4, _LIST, (_STRUCT, [group])),
            (6, _BINARY, b"ascribe.pure side v2"),
        ]
    )
    return bytes(out) + footer + struct.pack("<I", len(footer)) + b"PAR1"


# ---- safetensors, aligned ----

_DTYPES = {"f4": "F32", "f8": "F64", "u8": "U64"}


def tensors(named: Sequence[tuple[str, Array]], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose tensors start at multiples of 64 bytes."""
    head: dict[str, Any] = {"__metadata__": metadata}
    body, offset = [], 0
    for i, (name, values) in enumerate(named):
        data = np.ascontiguousarray(values).tobytes()
        offsets = [offset, offset + len(data)]
        head[name] = {"dtype": _DTYPES[values.dtype.str[1:]], "shape": list(values.shape), "data_offsets": offsets}
        body.append(data)
        offset += len(data)
        pad = -offset % _ALIGN
        if pad and i + 1 < len(named):
            head[f"_pad.{i}"] = {"dtype": "U8", "shape": [pad], "data_offsets": [offset, offset + pad]}
            body.append(bytes(pad))
            offset += pad
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    return struct.pack("<Q", len(text)) + text + b"".join(body)


# ---- the store ----


def _sealed(value: dict[str, Any]) -> bytes:
    text = json.dumps({**value, "checksum": _ZEROS}, indent=2, ensure_ascii=False) + "\n"
    digest = blake3(text.encode())
    return (text[: -len(_ZEROS) - 4] + digest + '"\n}\n').encode()


def _uuid(key: str) -> str:
    raw = bytearray(hashlib.sha256(key.encode()).digest()[:16])
    raw[6], raw[8] = raw[6] & 0x0F | 0x80, raw[8] & 0x3F | 0x80
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)
    _sync_folder(path.parent)


class Writer:
    """Builds a store of float32 rows. ``spec`` is a feature spec's JSON (or an ``ascribe.FeatureSpec``)."""

    def __init__(self, path: str | os.PathLike[str], spec: Any, n_rows: int, rows_per_shard: int = 1024) -> None:
        self.path = Path(path)
        self._spec = json.loads(spec if isinstance(spec, str) else spec.to_json())
        if not isinstance(self._spec, dict) or tuple(self._spec) != _SPEC or not isinstance(self._spec["dim"], int):
            raise ValueError(f"spec: expected {', '.join(_SPEC)} in this order, found {str(self._spec)[:200]}")
        self._dim, self._n_rows, self._per_shard = self._spec["dim"], n_rows, rows_per_shard
        if self._dim < 1 or rows_per_shard < 1 or n_rows < 0:
            raise ValueError(f"store: expected dim and rows per shard of at least 1, found {self._dim} and {rows_per_shard}")
        compact = json.dumps(self._spec, separators=(",", ":"), ensure_ascii=False)
        self._spec_sha256 = hashlib.sha256(compact.encode()).hexdigest()
        self._uuid = _uuid(f"ascribe-store-v2\n{self._spec_sha256}\nF32\n{rows_per_shard}\n{n_rows}")
        self._stride = -(-4 * self._dim // _ALIGN) * _ALIGN
        for folder in ("shards", "side"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._begin()
        self._lines = self._committed()
        self.n_committed = sum(line["rows"] for line in self._lines)
        """Rows that are durable: push those behind them."""
        self._sums, self._rest, self._counts = np.zeros((0, self._dim)), np.zeros((0, self._dim)), np.zeros(0, np.uint64)
        self._seen: set[int] = set()
        for line in self._lines:
            self._take(*self._read_shard(line))
        self._ids: list[Array] = []
        self._rows: list[Array] = []
        self._waiting = 0

    def push(self, ids: Array, rows: Array) -> None:
        """Takes ``[n, dim]`` float32 rows with their ids ``[n]`` (dataset ordinal · 2³² + position), all or none."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids.size and int(ids.min()) < 0):
            raise ValueError(f"ids: expected whole numbers of at least 0, found {ids.dtype} of {ids.shape}")
        if not isinstance(rows, np.ndarray):
            raise TypeError(f"rows: expected a numpy array of float32, found {type(rows).__name__}")
        if rows.dtype != np.float32 or rows.shape != (len(ids), self._dim):
            raise ValueError(f"rows: expected float32 of shape {(len(ids), self._dim)}, found {rows.dtype} of {rows.shape}")
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            raise ValueError(f"rows: expected finite numbers, found {rows[row, column]} in row {row}, column {column}")
        ids = ids.astype(np.uint64)
        new = {int(i) for i in ids}
        if len(new) != len(ids) or new & self._seen:
            raise ValueError("ids: expected each example once, found one twice")
        if self.n_committed + self._waiting + len(ids) > self._n_rows:
            raise ValueError(f"rows: expected {self._n_rows} in all, found more")
        self._seen |= new
        self._ids.append(ids)
        self._rows.append(rows.copy())
        self._waiting += len(ids)
        while self._waiting >= self._per_shard:
            self._commit(self._per_shard)

    def finish(self) -> None:
        """Seals the store."""
        if self.n_committed + self._waiting != self._n_rows:
            found = self.n_committed + self._waiting
            raise ValueError(f"{self.path}: expected {self._n_rows} rows, found {found}; push the others first")
        if self._waiting:
            self._commit(self._waiting)
        log = (self.path / "manifest.log").read_bytes() if self._lines else b""
        if not self._lines:
            _write(self.path / "manifest.log", b"")
        sums = [("sum", self._sums), ("rest", self._rest), ("count", self._counts)]
        keys = ("ascribe.format_version", "ascribe.spec", "ascribe.store")
        data = tensors(sums, dict(zip(keys, ("2", self._spec_sha256, self._uuid), strict=True)))
        file = "dataset_sums-000000.safetensors"
        _write(self.path / file, data)
        manifest = {
            "format_version": 2,
            "uuid": self._uuid,
            "spec_sha256": self._spec_sha256,
            "generation": 0,
            "made_by": "build",
            "shards": [[0, len(self._lines)]] if self._lines else [],
            "n_rows": self._n_rows,
            "n_dead": 0,
            "n_datasets": len(self._counts),
            "log_bytes": len(log),
            "log_blake3": blake3(log),
            "sums": {"file": file, "bytes": len(data), "blake3": blake3(data)},
            "tombstones": None,
        }
        _write(self.path / "MANIFEST-000000.json", _sealed(manifest))
        _write(self.path / "CURRENT", b"0\t%08x\n" % zlib.crc32(b"0"))

    def close(self) -> None:
        """Lets go of the lock; committed shards stay."""
        self._lock.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take_lock(self) -> BinaryIO:
        stream = (self.path / "writer.lock").open("ab")
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError as error:
            stream.close()
            raise RuntimeError(f"{self.path}: somebody else writes to this store") from error
        return stream

    def _begin(self) -> None:
        head = {
            "format_version": 2,
            "uuid": self._uuid,
            "spec_sha256": self._spec_sha256,
            "row_type": "f32",
            "rows_per_shard": self._per_shard,
            "expected_rows": self._n_rows,
            "stride_bytes": self._stride,
            "spec": self._spec,
        }
        data, path = _sealed(head), self.path / "store.json"
        if path.exists():
            found = json.loads(path.read_bytes())
            if found.get("uuid") != self._uuid:
                raise ValueError(f"{path}: expected a store of this spec and size ({self._uuid}), found {found.get('uuid')}")
            if (self.path / "MANIFEST-000000.json").exists():
                raise ValueError(f"{self.path}: the store is finished")
        else:
            _write(path, data)

    def _committed(self) -> list[dict[str, Any]]:
        """Lines of the manifest whose shard is there; a torn last line is cut off."""
        path, lines, good = self.path / "manifest.log", [], 0
        data = path.read_bytes() if path.exists() else b""
        while (end := data.find(b"\n", good)) >= 0:
            text, _, crc = data[good:end].rpartition(b"\t")
            if crc != b"%08x" % zlib.crc32(text):
                break
            lines.append(json.loads(text))
            good = end + 1
        if good != len(data):
            os.truncate(path, good)
        return lines

    def _shard_path(self, n: int) -> Path:
        return self.path / "shards" / f"s-{n:06}.safetensors"

    def _read_shard(self, line: dict[str, Any]) -> tuple[Array, Array]:
        data = self._shard_path(line["shard"]).read_bytes()
        if blake3(data) != line["blake3"]:
            raise ValueError(f"{self._shard_path(line['shard'])}: expected the committed shard, found other bytes")
        base = 8 + int.from_bytes(data[:8], "little")
        head = json.loads(data[8:base])

        def read(name: str, kind: str) -> Array:
            start, end = head[name]["data_offsets"]
            return np.frombuffer(data[base + start : base + end], kind).reshape(head[name]["shape"])

        return read("example_id", "<u8"), read("grad", "<f4")[:, : self._dim]

    def _take(self, ids: Array, rows: Array) -> None:
        """Adds rows to the sums of their datasets; what an addition loses goes to the rest (TwoSum)."""
        self._seen |= {int(i) for i in ids}
        datasets = (ids >> np.uint64(32)).astype(np.int64)
        more = int(datasets.max()) + 1 - len(self._counts)
        if more > 0:
            self._sums = np.concatenate([self._sums, np.zeros((more, self._dim))])
            self._rest = np.concatenate([self._rest, np.zeros((more, self._dim))])
            self._counts = np.concatenate([self._counts, np.zeros(more, np.uint64)])
        for k, row in zip(datasets, rows.astype(np.float64), strict=True):
            before = self._sums[k]
            after = before + row
            part = after - before
            self._rest[k] += (before - (after - part)) + (row - part)
            self._sums[k] = after
            self._counts[k] += np.uint64(1)

    def _commit(self, n: int) -> None:
        ids, rows = np.concatenate(self._ids), np.concatenate(self._rows)
        self._ids, self._rows = [ids[n:]], [rows[n:]]
        ids, rows = ids[:n], rows[:n]
        number = len(self._lines)
        grad = np.zeros((n, self._stride // 4), np.float32)
        grad[:, : self._dim] = rows
        norms = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1)).astype(np.float32)
        meta = {
            "ascribe.dim": str(self._dim),
            "ascribe.format_version": "2",
            "ascribe.row_type": "f32",
            "ascribe.shard": str(number),
            "ascribe.spec": self._spec_sha256,
            "ascribe.store": self._uuid,
        }
        shard = tensors([("grad", grad), ("example_id", ids), ("norm", norms)], meta)
        columns = [
            ("example_id", ids),
            ("dataset_id", (ids >> np.uint64(32)).astype(np.uint32)),
            ("shard", np.full(n, number, np.uint32)),
            ("row", np.arange(n, dtype=np.uint32)),
            ("norm", norms),
        ]
        side = parquet(columns)
        _write(self._shard_path(number), shard)
        _write(self.path / "side" / f"s-{number:06}.parquet", side)
        line = {
            "shard": number,
            "rows": n,
            "first_row": self.n_committed,
            "first_id": {"dataset": int(ids[0]) >> 32, "idx": int(ids[0]) & 0xFFFFFFFF},
            "last_id": {"dataset": int(ids[-1]) >> 32, "idx": int(ids[-1]) & 0xFFFFFFFF},
            "bytes": len(shard),
            "blake3": blake3(shard),
            "side_bytes": len(side),
            "side_blake3": blake3(side),
        }
        text = json.dumps(line, separators=(",", ":")).encode()
        with (self.path / "manifest.log").open("ab") as stream:
            stream.write(text + b"\t%08x\n" % zlib.crc32(text))
            stream.flush()
            os.fsync(stream.fileno())
        self._lines.append(line)
        self._take(ids, rows)
        self.n_committed += n
        self._waiting -= n
