"""Fit, score, shares, tables, measures: held against numpy, or against what stands in a file."""

from __future__ import annotations

import json

import ascribe
import numpy as np
import pytest
from ascribe import FeatureSpec, Store, metrics
from ascribe.spec import Column


def queries(n=4, dim=24):
    return np.random.default_rng(7).normal(size=(n, dim)).astype(np.float32)


def test_scores_are_inner_products(store, rows):
    scores = ascribe.score(store, queries())
    exact = queries().astype(np.float64) @ rows.astype(np.float64).T
    np.testing.assert_allclose(scores.values, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.datasets, [[line[k::3].sum() for k in range(3)] for line in exact], rtol=1e-10)
    assert scores.top(1)[0][0][:2] == tuple(int(x) for x in np.array(ascribe.unpack_ids(store.ids))[:, exact[0].argmax()])


def test_fisher_is_the_inverse(tmp_path, rows, ids):
    columns = (Column("a", 0, 10), Column("b", 10, 14))
    spec = FeatureSpec("0" * 64, "final", "gradient", "nll", "none", {"kind": "identity"}, columns, 24, "0" * 64)
    store = Store.write(tmp_path / "s", rows, ids, spec)
    fisher = ascribe.fit(store, damping=0.1)
    expected = np.zeros((4, 24))
    for c in columns:
        part = rows[:, c.start : c.start + c.len].astype(np.float64)
        h = part.T @ part / 300
        h += 0.1 * np.trace(h) / c.len * np.eye(c.len)
        expected[:, c.start : c.start + c.len] = np.linalg.solve(h, queries()[:, c.start : c.start + c.len].T).T
    np.testing.assert_allclose(fisher.precondition(queries()), expected, rtol=1e-8, atol=1e-10)
    scores = ascribe.score(store, queries(), fisher)
    np.testing.assert_allclose(scores.values, expected @ rows.T.astype(np.float64), rtol=1e-4, atol=1e-4)
    cosine = ascribe.score(store, queries(), fisher, normalise="cosine")
    assert np.abs(cosine.values).max() <= 1 + 1e-6
    influence = fisher.self_influence(store)
    assert influence.shape == (300,) and (influence > 0).all()
    fisher.save(tmp_path / "f.safetensors")
    again = ascribe.Fisher.load(tmp_path / "f.safetensors", store)
    assert (again.precondition(queries()) == fisher.precondition(queries())).all()
    other = Store.write(tmp_path / "o", rows, ids)
    with pytest.raises(ascribe.SpecMismatchError):
        ascribe.score(other, queries(), fisher)
    with pytest.raises(ascribe.AscribeError):
        ascribe.Fisher.load(tmp_path / "f.safetensors", other)
    for bad in (-1.0, float("nan")):
        with pytest.raises(ascribe.MethodError):
            ascribe.fit(store, damping=bad)
    with pytest.raises(ValueError, match="cosine"):
        ascribe.score(store, queries(), normalise="nothing")


def test_score_files(tmp_path, store):
    scores = ascribe.score(store, queries())
    n = scores.write(tmp_path / "scores.parquet", store, "dot", top_k=5)
    table = ascribe.read_scores(tmp_path / "scores.parquet")
    assert len(table) == n == 4 * (5 + 3)
    best = table["score"][(np.array(table["level"]) == "example") & (table["query"] == 2)]
    np.testing.assert_allclose(best, np.sort(scores.values[2])[::-1][:5])
    data = bytearray((tmp_path / "scores.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "scores.parquet").write_bytes(data)
    with pytest.raises(ascribe.StoreError):
        ascribe.read_scores(tmp_path / "scores.parquet")


OWNERS = [("urn:uuid:1", "poems", "ann"), ("urn:uuid:2", "code", "bob"), ("urn:uuid:3", "news", "ann")]


def test_shares(tmp_path):
    values = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    intervals = np.stack([np.maximum(values - 0.1, 0), np.minimum(values + 0.1, 1)], axis=2)
    book = ascribe.shares(values, OWNERS, intervals=intervals, coverage=0.75)
    table = book.datasets()
    assert table["share"].tolist() == [0.5, 0.25, 0.25, 1.0] and table["dataset"][:2] == ["poems", "code"]
    owners = book.owners()
    assert dict(zip(owners["owner"][:2], owners["share"][:2].tolist(), strict=True)) == {"ann": 0.75, "bob": 0.25}
    assert book.responses()["verdict"] == ["payable", "payable"] and book.coverage == 0.75
    book.write(tmp_path / "shares.json")
    assert ascribe.read_shares(tmp_path / "shares.json").datasets()["weight"].tolist() == table["weight"].tolist()
    assert json.loads((tmp_path / "shares.json").read_text())["format_version"] == 1
    assert ascribe.shares(values, OWNERS).responses()["verdict"] == ["too_noisy", "too_noisy"]
    raw = ascribe.shares(np.array([[3.0, -1.0, 1e-9]]), OWNERS, noise_floor=1e-3)
    assert raw.datasets()["share"][0] == pytest.approx(1, abs=1e-5)
    netted = ascribe.shares(np.array([[3.0, 1.0, -4.0]]), OWNERS, noise_floor=0.0)
    assert netted.datasets()["dataset"] == ["code"], "an owner's negatives count against its positives"
    for bad in (np.array([[np.nan, 0, 0]]), np.zeros((1, 2)), np.array([[-1.0, 0, 0]])):
        with pytest.raises(ascribe.SharesError):
            ascribe.shares(bad, OWNERS)
    with pytest.raises(ascribe.SharesError, match="(?i)uuid"):
        ascribe.shares(np.zeros((1, 2)), [OWNERS[0], OWNERS[0]])


def test_records_are_shown(store, rows):
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    texts = [f"record <{i}> " + "word " * 100 for i in range(300)]
    scores, hits = ascribe.score(store, queries()), store.search(queries(), 3)
    assert "record" not in scores._repr_html_() and "record" not in hits.to_pandas()
    scores.records = hits.records = texts
    for page in (scores._repr_html_(), hits._repr_html_()):
        assert "record &lt;" in page and "<th>record</th>" in page and "record <" not in page and len(page) < 20000
    frame = scores.to_pandas(2)
    assert isinstance(frame, pd.DataFrame) and len(frame) == 8 and frame["record"][0] == texts[frame["row"][0]]
    assert list(zip(frame["dataset"], frame["position"], frame["score"].tolist(), strict=True))[:2] == scores.top(2)[0]
    assert hits.to_pandas()["record"].tolist() == [texts[i] for i in hits["row"].tolist()]
    whole = scores.to_arrow(None)
    assert isinstance(whole, pa.Table) and whole.num_rows == 4 * 300 and whole["score"].to_numpy()[0] == scores.values[0].max()
    with pytest.raises(ValueError, match="k"):
        scores.top(-1)


def test_arrow_columns_are_rows(tmp_path, store, rows):
    pa = pytest.importorskip("pyarrow")
    table = store.to_arrow(10, 20)
    assert table["id"].to_pylist() == store.ids[10:20].tolist() and table.num_rows == 10
    column = table["row"].combine_chunks()
    assert ascribe.store.as_rows(column).ctypes.data == column.flatten().buffers()[1].address, "borrowed, not copied"
    for given in (column, table["row"], column.slice(2, 3)):
        exact = rows[12:15] if len(given) == 3 else rows[10:20]
        assert (ascribe.store.as_rows(given) == exact).all()
    assert store.search(table["row"], 1)["row"].tolist() == store.search(rows[10:20], 1)["row"].tolist()
    copy = Store.write(tmp_path / "copy", store.to_arrow()["row"], store.ids)
    assert (copy.rows() == rows).all()
    with pytest.raises(TypeError, match="fixed_size_list"):
        store.search(pa.array([1.0, 2.0]), 1)
    with pytest.raises(TypeError, match="double"):
        store.search(pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(24)), 24), 1)
    with pytest.raises(ValueError, match="null"):
        store.search(pa.array([[0.0] * 24, None], pa.list_(pa.float32(), 24)), 1)


def test_tables(store, rows):
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    hits = store.search(rows[:3], 4)
    arrow = hits.to_arrow()
    assert arrow.schema.names == hits.names and arrow.num_rows == 12
    assert arrow["score"].to_numpy().tolist() == hits["score"].tolist()
    assert str(arrow.schema.field("id").type) == "uint64"
    frame = hits.to_pandas()
    assert isinstance(frame, pd.DataFrame) and frame["row"].tolist() == hits["row"].tolist()
    assert pa.table(hits).equals(arrow)
    book = ascribe.shares(np.array([[0.5, 0.5, 0.0]]), OWNERS).datasets()
    kept = book.to_arrow()
    del book
    assert kept["dataset"].to_pylist() == ["poems", "code"]
    for thing in (hits, store, ascribe.score(store, rows[:2]), ascribe.shares(np.ones((1, 3)), OWNERS)):
        page = thing._repr_html_()
        assert page.startswith("<table>") and page.count("<tr>") == page.count("</tr>")
    evil = [("u1", "<script>alert(1)</script>", "a"), ("u2", "b", "c")]
    assert "<script>" not in ascribe.shares(np.ones((1, 2)), evil)._repr_html_()
    with pytest.raises(KeyError, match="score"):
        hits["nothing"]
    assert len(list(hits.rows())) == 12 and "hits" in repr(hits)


def test_arrow_capsules_that_nobody_reads_leak_nothing(store, rows):
    import resource

    hits = store.search(rows[:100], 100)
    for _ in range(50):
        hits.__arrow_c_array__()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20000):
        hits.__arrow_c_array__()
        hits.__arrow_c_schema__()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_measures_against_numpy():
    rng = np.random.default_rng(3)
    scores, included = rng.normal(size=(6, 20)), rng.random((40, 20)) < 0.5
    losses = -(scores @ included.T) + 0.1 * rng.normal(size=(6, 40))

    def ranks(x):
        return np.argsort(np.argsort(x)).astype(float)

    def spearman(a, b):
        return np.corrcoef(ranks(a), ranks(b))[0, 1]

    found = metrics.lds(scores, included, losses)
    np.testing.assert_allclose(found, [spearman((scores @ included.T)[q], -losses[q]) for q in range(6)], atol=1e-12)
    assert metrics.spearman(scores[0], scores[1]) == pytest.approx(spearman(scores[0], scores[1]))
    assert metrics.pearson(scores[0], scores[1]) == pytest.approx(np.corrcoef(scores[0], scores[1])[0, 1])
    label = rng.random(200) < 0.3
    value = rng.normal(size=200) + label
    pairs = (value[label][:, None] > value[~label][None]).mean()
    assert metrics.roc_auc(value, label) == pytest.approx(pairs)
    assert np.isnan(metrics.roc_auc(value, np.zeros(200, bool)))
    assert 0 < metrics.auprc(value, label) < 1 and metrics.found_area(value, label) > 0.5
    assert metrics.recall_at(2, [[1, 2], []], [[1, 9, 2], [4]])[0] == 0.5
    assert metrics.reciprocal_ranks([[3]], [[9, 3]]).tolist() == [0.5]
    mean = metrics.bootstrap_mean(np.array([1.0, 2.0, np.nan, 3.0]))
    assert mean["mean"] == 2.0 and mean["n"] == 3 and mean["low"] <= 2.0 <= mean["high"]
    change = rng.random((5, 4))
    judged = metrics.evaluate(change, change, np.zeros(5, np.uint32))
    assert judged["share_error"]["mean"] == pytest.approx(0, abs=1e-12) and judged["top1"]["mean"] == 1
    assert metrics.share_error(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == 0.5
    assert metrics.label_top1(scores, np.zeros(6, np.uint32), np.zeros(20, np.uint32)).tolist() == [1.0] * 6
    assert metrics.loo(scores, scores).tolist() == pytest.approx([1.0] * 6)
    assert metrics.removal_effect(np.array([[1.0, 1.0]]), np.array([[3.0, 3.0]])).tolist() == [2.0]
    assert metrics.brittleness(np.array([1.0]), np.array([[-1.0, 1.0]])).tolist() == [0.5]
    assert metrics.tail_patch(np.array([0.1]), np.array([[0.3]])).tolist() == pytest.approx([0.2])
    with pytest.raises(ascribe.EvalError, match="20"):
        metrics.lds(scores[:, :5].copy(), included, losses)
    with pytest.raises(TypeError, match="bool"):
        metrics.lds(scores, included.astype(float), losses)
