"""The approximate index: exact scores, measured recall, filters, and a folder that the command line reads."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import threading

import ascribe
import numpy as np
import pytest
from ascribe import Effort, Index, Store, pack_ids


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(5)
    centres = random.normal(size=(20, 32))
    return (centres[np.arange(1200) % 20] + 0.7 * random.normal(size=(1200, 32))).astype(np.float32)


@pytest.fixture(scope="module")
def queries(rows):
    return rows[::60] + np.random.default_rng(6).normal(size=(20, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory, rows):
    n = np.arange(len(rows))
    return Store.write(tmp_path_factory.mktemp("index") / "store", rows, pack_ids(n % 3, n // 3), rows_per_shard=256)


@pytest.fixture(scope="module")
def index(store):
    return Index.build(store, n_graphs=3)


def recall(found, true, k=10):
    both = zip(found["row"].reshape(-1, k), true["row"].reshape(-1, k), strict=True)
    return np.mean([len(np.intersect1d(a, b)) / k for a, b in both])


def test_recall_is_measured_and_effort_is_read_from_it(index, store, queries):
    curve = index.curve
    assert curve.k == 10 and curve.n_queries == 64 and (np.diff(curve.ef.astype(int)) > 0).all()
    effort = index.effort_for(0.95)
    at = curve.ef.tolist().index(effort.ef)
    assert curve.recall[at] >= 0.95 and (curve.recall[:at] < 0.95).all() and index.effort_for(1.5) is None
    own = index.measure(queries)
    exact = store.search(queries, 10)
    for point in own.table.rows():
        found = index.search(queries, 10, effort=Effort(point["ef"], point["n_exact"]))
        assert recall(found, exact) == pytest.approx(point["recall"], abs=1e-12)
        assert not found.proven and found.effort == (point["ef"], point["n_exact"])
    found = index.search(queries, 10, recall=0.95)
    assert found.recall >= 0.95 and found.effort == effort and "recall" in found._repr_html_() and "0." in repr(own)
    assert np.isnan(curve.recall_at(Effort(1, 1)))


def test_scores_are_exact(index, store, queries):
    exact, found = store.search(queries, 10), index.search(queries, 10, effort=1200)
    assert found["row"].tolist() == exact["row"].tolist() and found["score"].tolist() == exact["score"].tolist()
    assert found["id"].tolist() == exact["id"].tolist() and exact.proven and exact.recall == 1.0


def test_filters(index, store, queries):
    true, found = store.search(queries, 10, datasets=[1]), index.search(queries, 10, effort=400, datasets=[1])
    assert set(found["dataset"].tolist()) == {1} and recall(found, true) >= 0.95
    best = index.search(queries, 1, effort=400)
    second = index.search(queries, 1, effort=400, exclude=best["id"].tolist())
    assert not set(second["id"].tolist()) & set(best["id"].tolist())
    assert len(index.search(queries, 10, datasets=[7])) == 0
    few = [i for i in store.ids.tolist() if i >> 32 == 2 and i & 0xFFFFFFFF >= 4]
    assert len(index.search(queries[:1], 10, datasets=[2], exclude=few)) == 4


def test_what_is_kept_is_what_is_opened(tmp_path, rows, queries):
    store = Store.write(tmp_path / "store", rows)
    index = Index.build(store, n_graphs=2, n_neighbours=8, point_dim=16, seed=3)
    index.measure(queries, keep=True)
    gone = index.search(queries, 3)["id"].tolist()
    index.delete(gone)
    index.save()
    again = Index.open(Store(tmp_path / "store"))
    assert again.settings == index.settings and again.settings["seed"] == 3 and again.deleted == sorted(set(gone))
    assert again.curve.n_queries == 20 and again.curve.recall.tolist() == index.curve.recall.tolist()
    for recall in (0.5, 2.0):
        a, b = again.search(queries, 5, recall=recall), index.search(queries, 5, recall=recall)
        assert a["row"].tolist() == b["row"].tolist() and not set(a["id"].tolist()) & set(gone)
        assert a.proven == (recall > 1)
    index.save(tmp_path / "elsewhere")
    assert len(Index.open(store, tmp_path / "elsewhere")) == len(rows)
    # The same rows give the same bytes.
    Index.build(store, n_graphs=2, n_neighbours=8, point_dim=16, seed=3).save(tmp_path / "twin")
    for file in (tmp_path / "twin").glob("*.bin"):
        assert file.read_bytes() == (tmp_path / "elsewhere" / file.name).read_bytes()


def test_an_index_keeps_its_store_open(tmp_path, rows, queries):
    index = Index.build(Store.write(tmp_path / "store", rows), n_graphs=1)
    index.store = None
    gc.collect()
    first = index.search(queries, 3, effort=64)["row"].tolist()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(index.search(queries, 3, effort=64)["row"].tolist())) for _ in range(4)
    ]
    threads.append(threading.Thread(target=lambda: index.delete([10**6])))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [first] * 4


def test_cosines(store, rows, queries):
    index = Index.build(store, metric="cosine")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    best = np.sort(asked.astype(np.float64) @ unit.T.astype(np.float64), axis=1)[:, :-6:-1]
    found = index.search(queries, 5, effort=1200)
    np.testing.assert_allclose(found["score"].reshape(-1, 5), best, atol=1e-5)
    with pytest.raises(ascribe.SearchError, match="recall"):
        index.search(queries, 5, recall=2.0)


def test_a_store_that_changed(tmp_path, rows, queries):
    store = Store.write(tmp_path / "store", rows, pack_ids(np.arange(1200) % 3, np.arange(1200) // 3))
    Index.build(store, n_graphs=2).save()
    less = store.delete(datasets=[0])
    found = Index.open(less).search(queries, 10, effort=400)
    assert 0 not in found["dataset"] and recall(found, less.search(queries, 10)) >= 0.95
    other = Store.write(tmp_path / "other", rows[:, :16].copy())
    with pytest.raises(ascribe.SpecMismatchError):
        Index.open(other, tmp_path / "store" / "hnsw")


def test_what_is_refused(tmp_path, index, store, queries):
    with pytest.raises(ascribe.StoreError):
        Index.open(store, tmp_path / "nothing")
    with pytest.raises(ValueError, match="metric"):
        Index.build(store, metric="euclid")
    for settings in ({"n_neighbours": 1}, {"n_neighbours": 256}, {"ef_construction": 0}, {"point_dim": 0}, {"n_graphs": 0}):
        with pytest.raises(ascribe.SearchError, match="expected"):
            Index.build(store, **settings)
    with pytest.raises(ascribe.SearchError, match="empty|no rows"):
        Index.build(Store.write(tmp_path / "empty", np.zeros((0, 4), np.float32)))
    with pytest.raises(ascribe.SearchError, match="1200"):
        index.search(queries, 1201)
    with pytest.raises(ascribe.SearchError, match="finite"):
        index.search(np.full((1, 32), np.nan, np.float32), 1)
    with pytest.raises(ascribe.SearchError, match="numbers"):
        index.search(queries[:, :5].copy(), 1)
    with pytest.raises(TypeError, match="float32"):
        index.search(queries.astype(np.float64), 1)
    with pytest.raises(ValueError, match="effort"):
        index.search(queries, 1, effort=0)
    with pytest.raises(ValueError, match="k"):
        index.search(queries, -1)
    index.save(tmp_path / "kept")
    graph = next((tmp_path / "kept").glob("*.bin"))
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(ascribe.StoreError, match="graph"):
        Index.open(store, tmp_path / "kept")
    (tmp_path / "kept" / "index.json").write_text("{")
    with pytest.raises(ascribe.StoreError, match=r"index\.json"):
        Index.open(store, tmp_path / "kept")


@pytest.mark.skipif(not os.environ.get("ASCRIBE"), reason="ASCRIBE names no command")
def test_the_command_reads_it(tmp_path, rows, queries):
    store = Store.write(tmp_path / "store", rows)
    index = Index.build(store, n_graphs=2)
    index.save()
    np.save(tmp_path / "q.npy", queries)
    command = [os.environ["ASCRIBE"], "search", "--store", store.path, "--queries", tmp_path / "q.npy", "--k", "10"]
    command += ["--mode", "ann", "--recall", "0.9", "--format", "json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    hits = index.search(queries, 10, recall=0.9)
    assert found["recall"] == hits.recall and not found["proven"] and not hits.proven
    assert [row for query in found["queries"] for row in query["rows"]] == hits["row"].tolist()
    assert [x for query in found["queries"] for x in query["scores"]] == hits["score"].tolist()
