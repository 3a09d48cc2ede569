"""Stores: what goes in comes out, without copies where that is promised, and nothing half done stays."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ascribe
import numpy as np
import pytest
from ascribe import FeatureSpec, Store, StoreWriter


def test_round_trip(store, rows, ids):
    assert store.shape == rows.shape and store.n_datasets == 3 and store.row_type == "f32"
    assert (store.rows() == rows).all() and (store.ids == ids).all()
    assert (store.rows(120, 140) == rows[120:140]).all()
    np.testing.assert_allclose(store.norms, np.linalg.norm(rows, axis=1), rtol=1e-6)
    sums, counts = store.dataset_sums()
    np.testing.assert_allclose(sums, [rows[k::3].astype(np.float64).sum(0) for k in range(3)], rtol=1e-12, atol=1e-12)
    assert counts.tolist() == [100, 100, 100]
    assert store.verify()["n_rows"] == 300
    assert store.spec == FeatureSpec.plain(24) and store.spec_sha256 == store.spec.sha256


def test_a_shard_is_a_view_that_keeps_the_store_open(store, rows):
    view = store.shard(1)
    assert (view == rows[128:256]).all()
    assert not view.flags.owndata and not view.flags.writeable
    with pytest.raises(ValueError):
        view[0, 0] = 1.0
    del store
    gc.collect()
    assert (view == rows[128:256]).all()


def test_search_is_brute_force(store, rows, ids):
    queries = np.random.default_rng(2).normal(size=(5, 24)).astype(np.float32)
    exact = queries.astype(np.float64) @ rows.astype(np.float64).T
    order = np.argsort(-exact, axis=1)[:, :7]
    hits = store.search(queries, 7)
    assert hits["row"].reshape(5, 7).tolist() == order.tolist()
    np.testing.assert_allclose(hits["score"].reshape(5, 7), np.take_along_axis(exact, order, 1), rtol=1e-12)
    assert (hits["id"] == ids[order].ravel()).all()
    store.make_companion("int8")
    coded = store.search(queries, 7, companion="int8")
    assert coded["row"].tolist() == hits["row"].tolist() and coded.certificate["scanned"] == "int8"
    only = store.search(queries, 7, datasets=[1])
    assert set(only["dataset"].tolist()) == {1}
    without = store.search(queries, 1, exclude=hits["id"][::7].tolist())
    assert without["row"].tolist() == order[:, 1].tolist()


def test_a_killed_writer_resumes(tmp_path, rows, ids):
    path, spec = tmp_path / "s", FeatureSpec.plain(24)
    with StoreWriter(path, spec, 300, rows_per_shard=100) as writer:
        writer.push(ids[:250], rows[:250])
    with pytest.raises(ascribe.UnfinishedError, match="250|200|300"):
        Store(path)
    with StoreWriter(path, spec, 300, rows_per_shard=100) as writer:
        assert writer.n_committed == 200
        writer.push(ids[200:], rows[200:])
        store = writer.finish()
    assert (store.rows() == rows).all()


def test_a_worker_killed_hard_leaves_whole_shards(tmp_path, rows, ids):
    np.savez(tmp_path / "rows.npz", rows=rows, ids=ids)
    code = (
        "import numpy as np, ascribe, sys, time\n"
        "d = np.load(sys.argv[1] + '/rows.npz')\n"
        "w = ascribe.StoreWriter(sys.argv[1] + '/s', ascribe.FeatureSpec.plain(24), 300, rows_per_shard=50)\n"
        "w.push(d['ids'][:130], d['rows'][:130])\n"
        "print('pushed', flush=True)\n"
        "time.sleep(60)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert worker.stdout is not None and worker.stdout.readline() == b"pushed\n"
    with pytest.raises(ascribe.LockedError):
        StoreWriter(tmp_path / "s", FeatureSpec.plain(24), 300, rows_per_shard=50)
    time.sleep(0.3)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    with StoreWriter(tmp_path / "s", FeatureSpec.plain(24), 300, rows_per_shard=50) as writer:
        assert writer.n_committed in (0, 50, 100)
        done = writer.n_committed
        writer.push(ids[done:], rows[done:])
        assert (writer.finish().rows() == rows).all()


def test_append_delete_merge_convert(tmp_path, store, rows, ids):
    more = ascribe.pack_ids(4, np.arange(10))
    with StoreWriter.append(store.path, store.spec, 10) as writer:
        writer.push(more, rows[:10])
        grown = writer.finish()
    assert len(grown) == 310 and len(store) == 300 and grown.generation == 1
    less = grown.delete(datasets=[4], ids=[int(ids[7])])
    assert len(less) == 299 and ids[7] not in less.ids
    with pytest.raises(ascribe.StoreError):
        less.delete(datasets=[9])
    half = [Store.write(tmp_path / f"part{i}", rows[i::2].copy(), ids[i::2].copy()) for i in range(2)]
    merged = Store.merge([h.path for h in half], tmp_path / "merged")
    assert sorted(merged.ids.tolist()) == sorted(ids.tolist())
    small = merged.convert(tmp_path / "bf16", "bf16")
    assert small.row_type == "bf16" and np.abs(small.rows() - merged.rows()).max() < 0.02
    with pytest.raises(ValueError, match="f32"):
        small.shard(0)


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (lambda r: r.astype(np.float64), TypeError, "float64"),
        (lambda r: np.asfortranarray(r), ValueError, "contiguous"),
        (lambda r: r[:, ::2], ValueError, "contiguous"),
        (lambda r: r[:, :5].copy(), ascribe.StoreError, "24"),
        (lambda r: np.where(r == r[3, 4], np.nan, r).astype(np.float32), ascribe.NotFiniteError, "row"),
        (lambda r: r[0, 0], TypeError, "numpy"),
        (lambda r: r[None], ValueError, "dimensions"),
        (lambda r: r.tolist(), TypeError, "list"),
        (lambda r: r[:50], ascribe.StoreError, "expected"),
        (lambda r: np.zeros((0, 24), np.float32), ascribe.StoreError, "expected"),
    ],
)
def test_bad_rows_are_refused_whole(tmp_path, rows, ids, bad, kind, words):
    with StoreWriter(tmp_path / "s", FeatureSpec.plain(24), 300) as writer:
        with pytest.raises(kind, match=words):
            writer.push(ids, bad(rows))
        assert writer.n_taken == 0
        writer.push(ids, rows)
        assert (writer.finish().rows() == rows).all()


@pytest.mark.parametrize(
    ("bad_rows", "bad_ids", "kind", "words"),
    [
        (lambda r: r.astype(np.float64), None, TypeError, "rows: expected float32, found float64"),
        (lambda r: r[:, ::2], None, ValueError, "rows.*contiguous"),
        (lambda r: r[None], None, ValueError, "rows.*dimensions"),
        (None, lambda i: i.astype(np.int64), TypeError, "ids: expected uint64, found int64"),
        (None, lambda i: i[::2], ValueError, "ids.*contiguous"),
        (None, lambda i: i.tolist(), TypeError, "ids.*list"),
    ],
)
def test_a_bad_array_begins_no_store(tmp_path, rows, ids, bad_rows, bad_ids, kind, words):
    with pytest.raises(kind, match=words):
        Store.write(tmp_path / "s", bad_rows(rows) if bad_rows else rows, bad_ids(ids) if bad_ids else ids)
    assert not (tmp_path / "s").exists()


def test_bad_searches(store, rows):
    with pytest.raises(ascribe.SearchError, match="24"):
        store.search(rows[:2, :5].copy())
    with pytest.raises(ascribe.SearchError):
        store.search(rows[:2], k=301)
    with pytest.raises(ascribe.SearchError, match=r"(?i)nan"):
        store.search(np.full((1, 24), np.nan, np.float32))
    with pytest.raises(TypeError, match="float64"):
        store.search(rows[:2].astype(np.float64))
    with pytest.raises(ValueError, match="k"):
        store.search(rows[:2], k=-1)
    with pytest.raises(ValueError, match="row type"):
        store.search(rows[:2], companion="int9")
    assert len(store.search(rows[:0])) == 0


def test_stores_of_another_spec_and_damaged_ones(tmp_path, store):
    with pytest.raises(ascribe.SpecMismatchError, match="corpus"):
        Store(store.path, spec=FeatureSpec.plain(24, corpus="11" * 32))
    with pytest.raises(ascribe.StoreError, match="store.json"):
        Store(tmp_path / "nothing")
    shard = next((store.path / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ascribe.StoreError, match="(?i)checksum|blake3|changed|expected"):
        Store(store.path).verify()


def test_closed_writer_and_finished_twice(tmp_path, rows, ids):
    writer = StoreWriter(tmp_path / "s", FeatureSpec.plain(24), 300)
    writer.push(ids, rows)
    writer.finish()
    for call in (writer.finish, lambda: writer.push(ids, rows), lambda: writer.n_taken):
        with pytest.raises(ascribe.StoreError, match="closed"):
            call()
    writer.close()


def test_the_lock_of_the_interpreter_is_released(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20000, 512)).astype(np.float32)
    store = Store.write(tmp_path / "s", rows)
    ticks, stop = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    time.sleep(0.02)
    before, start = ticks, time.perf_counter()
    store.search(rows[:256], 10)
    store.verify()
    spent, gained = time.perf_counter() - start, ticks - before
    stop.set()
    thread.join()
    assert gained > 5 or spent < 0.01, f"{gained} ticks in {spent:.3f} s"


def test_many_threads_read_one_store(store, rows):
    found: list[list[int]] = []
    work = [threading.Thread(target=lambda: found.append(store.search(rows[:5], 3)["row"].tolist())) for _ in range(8)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(found) == 8 and all(f == found[0] for f in found)


def test_progress_is_told_and_may_stop(tmp_path, store):
    calls: list[tuple] = []

    class Listener:
        def start(self, *a):
            calls.append(("start", *a))

        def advance(self, *a):
            calls.append(("advance", *a))

        def finish(self, *a):
            calls.append(("finish", *a))

    ascribe.fit(store, progress=Listener())
    assert calls[0][0] == "start" and calls[-1][0] == "finish"

    class Angry(Listener):
        def advance(self, n):
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        store.convert(tmp_path / "c", "bf16", progress=Angry())


def test_paths_may_be_anything_like_a_path(tmp_path, rows):
    os.chdir(tmp_path)
    Store.write("relative", rows)
    assert len(Store(Path("relative"))) == 300
