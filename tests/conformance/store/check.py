"""Ascribe's stores in numpy's eyes, and numpy's in Ascribe's. See README.md."""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from layout import Damaged, Store, write_store

passed = failed = 0


def check(ok, what):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print("FAILED", what)


def close(a, b, tolerance, what):
    check(a.shape == b.shape and np.abs(a - b).max(initial=0) <= tolerance, what)


def spec_of(dim):
    zero = "00" * 32
    cut = dim // 3
    return {
        "model": zero,
        "checkpoint": "final",
        "quantity": "gradient",
        "loss": "next_token_nll_sum",
        "normalizer": "none",
        "projector": {"kind": "identity"},
        "columns": [{"name": "layers.0.up", "start": 0, "len": cut}, {"name": "layers.0.down", "start": cut, "len": dim - cut}],
        "dim": dim,
        "corpus": zero,
    }


def make(n, dim, seed):
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((n, dim)) * np.exp(rng.standard_normal((n, 1)))).astype(np.float32)
    rows[n // 2] = 0
    ids = (np.arange(n, dtype=np.uint64) % np.uint64(4) << np.uint64(32)) + np.arange(n, dtype=np.uint64) // np.uint64(4)
    return rows, ids


def rounded(rows, row_type):
    if row_type == "f16":
        return rows.astype(np.float16).astype(np.float64)
    if row_type == "bf16":
        bits = rows.view(np.uint32).astype(np.uint64)
        narrow = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
        return narrow.view(np.float32).astype(np.float64)
    if row_type == "int8":
        scale = (np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
        # Up to 16 binary digits: the lower 8 of an f32's 24 are zero.
        scale = ((scale.view(np.uint32) + np.uint32(0xFF)) & np.uint32(0xFFFFFF00)).view(np.float32)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
        numbers = np.round(rows * inverse).astype(np.float64) * scale.astype(np.float64)
        check(np.array_equal(numbers, numbers.astype(np.float32)), "int8: every number is an f32")
        return numbers
    return rows.astype(np.float64)


def same_rows(store, rows, ids, row_type, what):
    """Rows, ids, norms and bounds of a store against the precise rows."""
    check(np.array_equal(store.ids, ids), f"{what}: ids")
    norms = np.sqrt((store.rows**2).sum(axis=1))
    close(store.norms.astype(np.float64), norms, 1e-6 * norms.max(initial=1), f"{what}: norms")
    if row_type == "int4":
        check((np.linalg.norm(store.rows - rows, axis=1) <= 0.2 * np.linalg.norm(rows, axis=1)).all(), f"{what}: rows")
    else:
        check(np.array_equal(store.rows, rounded(rows, row_type)), f"{what}: rows")
    if row_type != "f32":
        lost = np.linalg.norm(store.rows - rows.astype(np.float64), axis=1)
        bound = store.errors.astype(np.float64)
        check((lost <= bound * (1 + 1e-12)).all(), f"{what}: error bounds hold")
        # Codes are taken in f32, whose roundings a bound allows for.
        largest = np.abs(store.rows).max(axis=1) if row_type in ("int8", "int4") else 0
        loose = 2.2 * largest * np.sqrt(rows.shape[1]) / 2**23
        check((bound <= lost * (1 + 1e-5) + loose + 1e-30).all(), f"{what}: error bounds are tight")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--ascribe", required=True)
    ascribe = arguments.parse_args().ascribe

    def run(*args, code=0):
        done = subprocess.run([ascribe, "--quiet", "--format", "json", *map(str, args)], capture_output=True, text=True)
        check(done.returncode == code, f"{args}: exit {done.returncode}: {done.stderr}")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    work = tempfile.mkdtemp()
    try:
        for n, dim in [(50, 48), (37, 33), (1, 5)]:
            walk(work, run, n, dim)
    finally:
        shutil.rmtree(work)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


def walk(work, run, n, dim):
    name = f"[{n}, {dim}]"
    rows, ids = make(n, dim, n)
    mine = f"{work}/{n}-python"
    write_store(mine, spec_of(dim), rows, ids, 16)
    same_rows(Store(mine), rows, ids, "f32", f"{name} Python reads Python")
    report = run("store", "verify", mine)
    check(report.get("n_rows") == n, f"{name} Ascribe verifies what Python wrote")
    searches(work, run, mine, rows, ids, [None], f"{name} alone")
    for row_type in ["f32", "bf16", "f16", "int8", "int4"]:
        what = f"{name} {row_type}"
        out = f"{work}/{n}-{row_type}"
        run("store", "convert", mine, "--rows", row_type, "--out", out)
        store = Store(out)
        same_rows(store, rows, ids, row_type, what)
        sums, counts = store.sums()
        datasets = (ids >> np.uint64(32)).astype(np.int64)
        again = np.zeros_like(sums)
        # Sums are those of rows as readers give them: f32.
        np.add.at(again, datasets, store.rows.astype(np.float32).astype(np.float64))
        close(sums, again, 1e-11 * np.abs(again).max(), f"{what}: sums")
        check(np.array_equal(counts, np.bincount(datasets)), f"{what}: counts")
        exports(work, run, out, store, what)
        if row_type != "f32":
            run("store", "convert", mine, "--rows", row_type, "--companion")
            companion = Store(f"{mine}/{row_type}")
            same_rows(companion, rows, ids, row_type, f"{what} companion")
            check(companion.head["companion_of"]["rows_blake3"] == Store(mine).rows_blake3(), f"{what}: tied to its store")
    searches(work, run, mine, rows, ids, [None, "bf16", "f16", "int8", "int4"], name)
    deletes_and_merges(work, run, mine, rows, ids, name)
    damages(run, mine, name)


def exports(work, run, out, store, what):
    narrow = store.rows.astype(np.float32)
    run("store", "export", out, "--out", f"{work}/x.npy")
    check(np.array_equal(np.load(f"{work}/x.npy"), narrow), f"{what}: .npy")
    check(np.array_equal(np.load(f"{work}/x.ids.npy"), store.ids), f"{what}: .ids.npy")
    run("store", "export", out, "--out", f"{work}/x.safetensors")
    check(np.array_equal(load_file(f"{work}/x.safetensors")["grad"], narrow), f"{what}: .safetensors")
    for ending, read in [
        ("arrow", lambda p: ipc.open_file(p).read_all()),
        ("arrows", lambda p: ipc.open_stream(p).read_all()),
        ("parquet", pq.read_table),
    ]:
        run("store", "export", out, "--out", f"{work}/x.{ending}")
        table = read(f"{work}/x.{ending}")
        grad = np.array(table["grad"].to_pylist(), np.float32)
        check(np.array_equal(grad, narrow), f"{what}: .{ending}")
        check(table["example_id"].to_pylist() == store.ids.tolist(), f"{what}: ids in .{ending}")


def best(rows, ids, query, k):
    """The k best rows: inner products of products that f64 holds exactly, added without an error, ties to the lower id."""
    scores = [math.fsum(products) for products in (rows.astype(np.float64) * query.astype(np.float64)).tolist()]
    order = sorted(range(len(ids)), key=lambda i: (-scores[i], int(ids[i])))[:k]
    return [int(ids[i]) for i in order], np.array([scores[i] for i in order])


def searches(work, run, store, rows, ids, companions, name):
    """Every query's ids and scores, exact and certified through every companion, against brute force in numpy."""
    rng = np.random.default_rng(len(rows))
    # One query alone, few and many: three ways through the kernels. The last are rows themselves, and one that ties all rows.
    made = rng.standard_normal((20, rows.shape[1])).astype(np.float32)
    made[-3:] = [rows[0], rows[-1], np.zeros(rows.shape[1])]
    k = min(len(ids), 10)
    for queries in [made[:1], made[-3:], made]:
        np.save(f"{work}/queries.npy", queries)
        asked = ["search", "--store", store, "--queries", f"{work}/queries.npy", "--k", k, "--mode"]
        wanted = [best(rows, ids, query, k) for query in queries]
        size = np.linalg.norm(rows.astype(np.float64), axis=1).max() * np.linalg.norm(queries.astype(np.float64), axis=1)
        for mode in ["exact", *companions]:
            if mode == "exact":
                found = run(*asked, "exact")
            else:
                found = run(*asked, "certified", *(["--companion", mode] if mode else []))
                # Unless one is named: int8, with int4 before it for few queries.
                scanned = [mode] if mode else ["f32"] if companions == [None] else ["int8", "int4"]
                check(found.get("scanned") in scanned, f"{name}: scanned {found.get('scanned')}, not {scanned}")
            what = f"{name}: search by {mode} for {len(queries)}"
            answers = found.get("queries", [])
            check(found.get("proven") is True and len(answers) == len(queries), f"{what}: {len(answers)} answers")
            for q, (answer, (want_ids, want)) in enumerate(zip(answers, wanted)):
                check(answer["ids"] == want_ids, f"{what}, query {q}: ids {answer['ids']} for {want_ids}")
                close(np.array(answer["scores"]), want, 1e-13 * size[q], f"{what}, query {q}: scores")


def deletes_and_merges(work, run, mine, rows, ids, name):
    n = len(rows)
    if n < 8:
        return
    out = f"{work}/{n}-deleted"
    shutil.copytree(mine, out)
    run("store", "delete", out, "--dataset", "2", "--example", "1:3")
    keep = ((ids >> np.uint64(32)) != 2) & (ids != (1 << 32) + 3)
    store = Store(out)
    check(store.manifest["generation"] == 1 and len(store.dead) == (~keep).sum(), f"{name}: tombstones")
    check(np.array_equal(store.rows, rows[keep].astype(np.float64)), f"{name}: rows without the deleted")
    sums, counts = store.sums()
    check(not sums[2].any() and counts[2] == 0, f"{name}: a withdrawn dataset's sum is zero")
    run("store", "verify", out)
    searches(work, run, out, rows[keep], ids[keep], ["int8", "int4"], f"{name} without the deleted")
    run("store", "compact", out)
    packed = Store(out)
    check(not packed.dead and np.array_equal(packed.rows, rows[keep].astype(np.float64)), f"{name}: compacted")
    check(np.array_equal(packed.sums()[0], sums), f"{name}: sums after compaction")
    owners(work, run, out, rows[keep], ids[keep], n, name)
    run("store", "delete", out, "--dataset", "9", code=1)
    order = np.argsort(ids, kind="stable")
    halves = [order[::2][::-1], order[1::2]]
    parts = []
    for i, half in enumerate(halves):
        parts.append(f"{work}/{n}-part{i}")
        write_store(parts[-1], spec_of(rows.shape[1]), rows[half], ids[half], 16)
    run("store", "merge", *parts, "--out", f"{work}/{n}-merged")
    merged = Store(f"{work}/{n}-merged")
    check(np.array_equal(merged.ids, ids[order]), f"{name}: merged ids")
    check(np.array_equal(merged.rows, rows[order].astype(np.float64)), f"{name}: merged rows")


def owners(work, run, store, rows, ids, n, name):
    """Who owns what is read from the document alone, and sums per owner are sums of rows."""
    # Companions of the rows before the compaction are stale, which is an error of its own.
    for row_type in ("int8", "int4", "bf16", "f16"):
        shutil.rmtree(f"{store}/{row_type}", ignore_errors=True)
    run("store", "relicense", store, "--dataset", "0", "--owner", "Züri & Söhne", "--licence", "MIT")
    run("store", "relicense", store, "--dataset", "1", "--owner", "Moss", "--name", "odes")
    spec = spec_of(rows.shape[1])
    spec["corpus"] = "11" * 32
    more, more_ids = make(12, rows.shape[1], n + 1)
    write_store(f"{work}/{n}-supplier", spec, more, more_ids, 8)
    added = run("store", "add", store, f"{work}/{n}-supplier", "--owner", "Moss")
    places = {d["from"]: d["dataset"] for d in added["datasets"]}
    found = Store(store)
    names, sums, counts = found.owners()
    check(names == ["Moss", "Züri & Söhne"], f"{name}: owners {names}")
    check(all(found.told[k]["corpus"] == "11" * 32 for k in places.values()), f"{name}: the corpus of what was added")
    check(len(found.rows) == len(rows) + 12, f"{name}: rows of both")
    datasets = found.ids >> np.uint64(32)
    for owner, total, count in zip(names, sums, counts):
        own = np.isin(datasets, [k for k, d in found.told.items() if d.get("owner") == owner])
        again = found.rows[own].sum(axis=0)
        close(total, again, 1e-11 * max(1.0, np.abs(again).max()), f"{name}: sum of {owner}")
        check(count == own.sum(), f"{name}: rows of {owner}")
    run("store", "verify", store)
    listed = run("store", "sums", store)
    check([o["rows"] for o in listed["owners"]] == counts.tolist(), f"{name}: rows by owner: {listed}")


def damages(run, mine, name):
    """A changed byte in any file is found by both sides."""
    for folder, _, files in os.walk(mine):
        for file in sorted(files):
            path = os.path.join(folder, file)
            if file in ("writer.lock",):
                continue
            data = bytearray(open(path, "rb").read())
            at = len(data) // 2
            data[at] ^= 4
            open(path, "wb").write(data)
            refused = run("store", "verify", mine, code=1)
            check(file in refused.get("error", ""), f"{name}: the error names {file}: {refused}")
            try:
                store = Store(folder_of(folder))
                store.manifest["sums"] and store.sums()
                if "/side" not in folder:
                    check(False, f"{name}: Python did not notice {path}")
            except Exception:
                check(True, path)
            data[at] ^= 4
            open(path, "wb").write(data)
    run("store", "verify", mine)


def folder_of(folder):
    return os.path.dirname(folder) if os.path.basename(folder) in ("shards", "side") else folder


if __name__ == "__main__":
    main()
