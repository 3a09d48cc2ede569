"""A reader and a writer of feature stores, written from docs/STORE.md with nothing of Ascribe at hand."""

import hashlib
import json
import os
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
from blake3 import blake3

ZEROS = "0" * 64


class Damaged(Exception):
    """A byte is not as it was written."""


def expect(ok, what):
    if not ok:
        raise Damaged(what)


def read_sealed(path):
    data = open(path, "rb").read()
    value = json.loads(data)
    found = value["checksum"]
    tail = f'"checksum": "{found}"\n}}\n'.encode()
    expect(data.endswith(tail), f"{path}: the checksum is not the last field")
    cleared = data[: -len(tail)] + f'"checksum": "{ZEROS}"\n}}\n'.encode()
    expect(blake3(cleared).hexdigest() == found, f"{path}: checksum")
    return value


def write_sealed(path, value):
    text = json.dumps({**value, "checksum": ZEROS}, indent=2) + "\n"
    digest = blake3(text.encode()).hexdigest()
    open(path, "w").write(text.replace(f'"checksum": "{ZEROS}"\n', f'"checksum": "{digest}"\n'))


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def tensors(path):
    data = open(path, "rb").read()
    return data, dict(safetensors.deserialize(data))


DTYPES = {"F32": np.float32, "F16": np.float16, "U64": np.uint64, "F64": np.float64, "I8": np.int8, "U8": np.uint8}


def array(tensor):
    if tensor["dtype"] == "BF16":
        wide = np.frombuffer(bytes(tensor["data"]), np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(tensor["shape"])
    return np.frombuffer(bytes(tensor["data"]), DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def packed_bytes(row_type, dim):
    return (dim * {"f32": 32, "bf16": 16, "f16": 16, "int8": 8, "int4": 4}[row_type] + 7) // 8


class Store:
    """A store, opened as the five steps of the document say."""

    def __init__(self, root):
        self.root = root
        number, crc = open(f"{root}/CURRENT").read().rstrip("\n").split("\t")
        expect(zlib.crc32(number.encode()) == int(crc, 16), "CURRENT")
        number = int(number)
        while os.path.exists(f"{root}/MANIFEST-{number + 1:06}.json"):
            number += 1
        self.head = read_sealed(f"{root}/store.json")
        self.manifest = read_sealed(f"{root}/MANIFEST-{number:06}.json")
        expect(hashlib.sha256(compact(self.head["spec"])).hexdigest() == self.head["spec_sha256"], "hash of the spec")
        expect(uuid_of(self.head) == self.head["uuid"], "uuid")
        log = open(f"{root}/manifest.log", "rb").read()[: self.manifest["log_bytes"]]
        expect(blake3(log).hexdigest() == self.manifest["log_blake3"], "manifest.log")
        self.lines = []
        for line in log.decode().splitlines():
            text, crc = line.rsplit("\t", 1)
            expect(zlib.crc32(text.encode()) == int(crc, 16), "a line of manifest.log")
            self.lines.append(json.loads(text))
        self.shards = [n for start, end in self.manifest["shards"] for n in range(start, end)]
        self.dead = set()
        if self.manifest["tombstones"]:
            _, found = self.part("tombstones")
            self.dead = {(int(x) >> 32, int(x) & 0xFFFFFFFF) for x in array(found["dead"])}
        self.read_rows()

    def part(self, name):
        entry = self.manifest[name]
        data, found = tensors(f"{self.root}/{entry['file']}")
        expect(len(data) == entry["bytes"] and blake3(data).hexdigest() == entry["blake3"], entry["file"])
        return data, found

    def read_rows(self):
        row_type, dim, stride = self.head["row_type"], self.head["spec"]["dim"], self.head["stride_bytes"]
        expect(stride == -(-packed_bytes(row_type, dim) // 64) * 64, "stride")
        rows, ids, norms, errors, scales, sides = [], [], [], [], [], []
        for n in self.shards:
            line = self.lines[n]
            path = f"{self.root}/shards/s-{n:06}.safetensors"
            data, found = tensors(path)
            expect(len(data) == line["bytes"] and blake3(data).hexdigest() == line["blake3"], path)
            base = 8 + int.from_bytes(data[:8], "little")
            for tensor in json.loads(data[8:base]).items():
                if tensor[0] not in ("__metadata__",) and not tensor[0].startswith("_pad."):
                    expect((base + tensor[1]["data_offsets"][0]) % 64 == 0, f"{path}: alignment of {tensor[0]}")
            grad = array(found["grad"])
            expect(grad.nbytes // (2 if row_type == "bf16" else 1) == line["rows"] * stride, f"{path}: shape of grad")
            if row_type == "int4":
                low, high = grad & 15, grad >> 4
                both = np.stack([low, high], axis=2).reshape(grad.shape[0], -1).astype(np.int8)
                grad = np.where(both > 7, both - 16, both)
            expect(not grad[:, dim:].any(), f"{path}: padding")
            codes = grad[:, :dim].astype(np.float64)
            if row_type in ("int8", "int4"):
                scale = array(found["scale"])
                expect(np.abs(codes).max(initial=0) <= (127 if row_type == "int8" else 7), f"{path}: codes")
                codes = codes * scale[:, None].astype(np.float64)
                scales.append(scale)
            live = np.array([(n, row) not in self.dead for row in range(line["rows"])], bool)
            rows.append(codes[live])
            ids.append(array(found["example_id"])[live])
            norms.append(array(found["norm"])[live])
            if row_type != "f32":
                errors.append(array(found["error"])[live])
            side = pq.read_table(f"{self.root}/side/s-{n:06}.parquet")
            expect(side["example_id"].to_pylist() == array(found["example_id"]).tolist(), "side file")
            expect(side["row"].to_pylist() == list(range(line["rows"])), "side file")
        width = (0, dim)
        self.rows = np.concatenate(rows) if rows else np.zeros(width)
        self.ids = np.concatenate(ids) if ids else np.zeros(0, np.uint64)
        self.norms = np.concatenate(norms) if norms else np.zeros(0, np.float32)
        self.errors = np.concatenate(errors) if errors else None
        expect(len(self.rows) == self.manifest["n_rows"], "number of rows")

    def sums(self):
        _, found = self.part("sums")
        return array(found["sum"]) + array(found["rest"]), array(found["count"])

    def owners(self):
        """Names, and sums and rows of each, after a look at the file and at its making from the datasets' sums."""
        if not self.manifest.get("datasets"):
            return [], None, None
        entry = self.manifest["datasets"]
        data = open(f"{self.root}/{entry['file']}", "rb").read()
        expect(len(data) == entry["bytes"] and blake3(data).hexdigest() == entry["blake3"], entry["file"])
        told = read_sealed(f"{self.root}/{entry['file']}")
        expect(told["uuid"] == self.head["uuid"], "uuid of the datasets")
        self.told = {d["dataset"]: d for d in told["datasets"]}
        names = sorted({d["owner"] for d in told["datasets"] if "owner" in d}, key=lambda name: name.encode())
        _, sums = self.part("sums")
        main, rest, count = (array(sums[name]) for name in ("sum", "rest", "count"))
        s, r = (np.zeros((len(names), main.shape[1])) for _ in range(2))
        n = np.zeros(len(names), np.uint64)
        for k in range(len(count)):
            if "owner" not in self.told.get(k, {}):
                continue
            o = names.index(self.told[k]["owner"])
            total = s[o] + main[k]
            back = total - s[o]
            r[o] = r[o] + ((s[o] - (total - back)) + (main[k] - back))
            r[o] = r[o] + rest[k]
            s[o], n[o] = total, n[o] + count[k]
        _, found = self.part("owner_sums")
        for name, made in (("sum", s), ("rest", r), ("count", n)):
            expect(np.array_equal(array(found[name]), made), f"owner_sums: {name} made again")
        return names, s + r, n

    def rows_blake3(self):
        lines = "".join(f"{self.lines[n]['rows']} {self.lines[n]['blake3']}\n" for n in self.shards)
        return blake3(lines.encode()).hexdigest()


def uuid_of(head):
    names = {"f32": "F32", "bf16": "Bf16", "f16": "F16", "int8": "Int8", "int4": "Int4"}
    key = f"ascribe-store-v2\n{head['spec_sha256']}\n{names[head['row_type']]}\n{head['rows_per_shard']}\n{head['expected_rows']}"
    of = head.get("companion_of")
    if of:
        key += f"\n{of['uuid']}\n{of['rows_blake3']}"
    b = bytearray(hashlib.sha256(key.encode()).digest()[:16])
    b[6], b[8] = (b[6] & 0x0F) | 0x80, (b[8] & 0x3F) | 0x80
    h = b.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def write_tensors(path, named, metadata):
    """A safetensors file whose tensors start at multiples of 64 bytes."""
    head, body, offset = {"__metadata__": metadata}, [], 0
    kinds = {np.dtype(k): n for n, k in DTYPES.items()}
    for i, (name, values) in enumerate(named):
        data = np.ascontiguousarray(values).tobytes()
        head[name] = {"dtype": kinds[values.dtype], "shape": list(values.shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        body.append(data)
        pad = -offset % 64
        if pad and i + 1 < len(named):
            head[f"_pad.{i}"] = {"dtype": "U8", "shape": [pad], "data_offsets": [offset, offset + pad]}
            body.append(bytes(pad))
            offset += pad
    text = json.dumps(head).encode()
    text += b" " * (-(8 + len(text)) % 64)
    data = len(text).to_bytes(8, "little") + text + b"".join(body)
    open(path, "wb").write(data)
    return {"bytes": len(data), "blake3": blake3(data).hexdigest()}


def write_store(root, spec, rows, ids, rows_per_shard):
    """An f32 store of generation 0."""
    os.makedirs(f"{root}/shards")
    os.makedirs(f"{root}/side")
    dim = spec["dim"]
    stride = -(-4 * dim // 64) * 64
    head = {
        "format_version": 2,
        "uuid": "",
        "spec_sha256": hashlib.sha256(compact(spec)).hexdigest(),
        "row_type": "f32",
        "rows_per_shard": rows_per_shard,
        "expected_rows": len(rows),
        "stride_bytes": stride,
        "spec": spec,
    }
    head["uuid"] = uuid_of(head)
    write_sealed(f"{root}/store.json", head)
    log = b""
    meta = {"ascribe.format_version": "2", "ascribe.store": head["uuid"], "ascribe.spec": head["spec_sha256"]}
    example = lambda packed: {"dataset": int(packed) >> 32, "idx": int(packed) & 0xFFFFFFFF}
    for n, start in enumerate(range(0, len(rows), rows_per_shard)):
        some, names = rows[start : start + rows_per_shard], ids[start : start + rows_per_shard]
        grad = np.zeros((len(some), stride // 4), np.float32)
        grad[:, :dim] = some
        norms = np.sqrt((some.astype(np.float64) ** 2).sum(axis=1)).astype(np.float32)
        shard = write_tensors(
            f"{root}/shards/s-{n:06}.safetensors",
            [("grad", grad), ("example_id", names), ("norm", norms)],
            {**meta, "ascribe.shard": str(n), "ascribe.row_type": "f32", "ascribe.dim": str(dim)},
        )
        side_path = f"{root}/side/s-{n:06}.parquet"
        columns = {
            "example_id": pa.array(names, pa.uint64()),
            "dataset_id": pa.array((names >> np.uint64(32)).astype(np.uint32), pa.uint32()),
            "shard": pa.array([n] * len(some), pa.uint32()),
            "row": pa.array(range(len(some)), pa.uint32()),
            "norm": pa.array(norms, pa.float32()),
        }
        pq.write_table(pa.table(columns), side_path)
        side = open(side_path, "rb").read()
        line = {
            "shard": n,
            "rows": len(some),
            "first_row": start,
            "first_id": example(names[0]),
            "last_id": example(names[-1]),
            **shard,
            "side_bytes": len(side),
            "side_blake3": blake3(side).hexdigest(),
        }
        text = compact(line)
        log += text + b"\t%08x\n" % zlib.crc32(text)
    open(f"{root}/manifest.log", "wb").write(log)
    datasets = (ids >> np.uint64(32)).astype(np.int64)
    n_datasets = int(datasets.max()) + 1
    sums = np.zeros((n_datasets, dim))
    np.add.at(sums, datasets, rows.astype(np.float64))
    counts = np.bincount(datasets, minlength=n_datasets).astype(np.uint64)
    file = "dataset_sums-000000.safetensors"
    part = write_tensors(f"{root}/{file}", [("sum", sums), ("rest", np.zeros_like(sums)), ("count", counts)], meta)
    n_shards = -(-len(rows) // rows_per_shard)
    manifest = {
        "format_version": 2,
        "uuid": head["uuid"],
        "spec_sha256": head["spec_sha256"],
        "generation": 0,
        "made_by": "build",
        "shards": [[0, n_shards]],
        "n_rows": len(rows),
        "n_dead": 0,
        "n_datasets": n_datasets,
        "log_bytes": len(log),
        "log_blake3": blake3(log).hexdigest(),
        "sums": {"file": file, **part},
        "tombstones": None,
    }
    write_sealed(f"{root}/MANIFEST-000000.json", manifest)
    open(f"{root}/CURRENT", "w").write("0\t%08x\n" % zlib.crc32(b"0"))
