"""Rows kept as factors (LoRIF): the best of their rank, and scored as what they stand for."""

from __future__ import annotations

import json

import ascribe
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from ascribe.torch import AscribeCallback, Collector, collect, gradients  # noqa: E402
from ascribe.torch.projection import factors  # noqa: E402
from test_torch import Net, close, gpt2, ids, net_batch, net_loss, trainer  # noqa: E402

torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5)])
def test_factors_are_the_best_of_their_rank(shape):
    a = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    a[3] = 0  # nothing to factor
    for rank in (1, 2):
        left, right = factors(a, rank)
        u, s, v = torch.linalg.svd(a.double(), full_matrices=False)
        best = (u[..., :rank] * s[..., None, :rank]) @ v[:, :rank]
        torch.testing.assert_close(left @ right.mT, best)
        torch.testing.assert_close(left.square().sum(1), s[:, :rank])  # both sides carry the root
        torch.testing.assert_close(right.square().sum(1), s[:, :rank])


def truncated(dense, columns, shapes, rank):
    """The rows whose matrices are cut to a rank, by numpy."""
    out = dense.astype(np.float64)
    for column, shape in zip(columns, shapes, strict=True):
        if shape is None:
            continue
        place = slice(column.start, column.start + column.len)
        u, s, v = np.linalg.svd(out[:, place].reshape(len(out), *shape), full_matrices=False)
        out[:, place] = ((u[..., :rank] * s[:, None, :rank]) @ v[:, :rank]).reshape(len(out), -1)
    return out


def test_rows_multiplied_out_are_the_best_approximation(tmp_path):
    model, batch = Net().eval(), net_batch(12)
    settings = {"loss": net_loss, "projection": "factored:6x5:2", "norms": True, "biases": True, "embedding": True}
    collector = Collector(model, **settings)
    dense = Collector(model, **{**settings, "projection": None, "k": (6, 5)})
    assert collector.dim < collector.wide == dense.dim
    # `out` maps 6 to 4: narrower than the projection on one side, so its factors have another shape.
    shapes = dict(zip([c.name for c in collector.columns], collector.factoring.shapes, strict=True))
    assert shapes["fc"] == (5, 6) and shapes["out"] == (4, 6) and shapes["out.bias"] is None
    rows = collector.rows(batch)
    expected = truncated(dense.rows(batch), dense.columns, collector.factoring.shapes, 2)
    store = collect(model, [tuple(x[:7] for x in batch), tuple(x[7:] for x in batch)], tmp_path / "s", **settings)
    close(store.expand(store.rows()), store.expand(rows), 1e-5)  # the factors themselves feel the rounding of other batches
    close(store.expand(store.rows()), expected, 1e-5)
    assert store.spec.projector == {"kind": "factored", "seed": 7, "k_in": 6, "k_out": 5, "rank": 2, "version": 1}
    with pytest.raises(ascribe.MethodError, match="factored"):
        store.expand(rows[:, :5].copy())


def test_scores_are_those_of_the_matrices(tmp_path):
    model, tokens = gpt2().eval(), ids(20)
    settings = {"projection": "factored:8x8:1"}
    datasets = [i % 3 for i in range(20)]
    store = collect(model, tokens, tmp_path / "s", datasets=datasets, **settings)
    queries = gradients(model, ids(3).tolist(), store=store, **settings)
    wide, q = store.expand(store.rows()).astype(np.float64), store.expand(queries).astype(np.float64)
    plain = ascribe.score(store, queries)
    np.testing.assert_allclose(plain.values, q @ wide.T, rtol=1e-5, atol=1e-6 * np.abs(q @ wide.T).max())
    by_dataset = np.stack([(q @ wide[[i for i in range(20) if i % 3 == k]].T).sum(1) for k in range(3)], 1)
    np.testing.assert_allclose(plain.datasets, by_dataset, rtol=1e-5, atol=1e-6 * np.abs(by_dataset).max())
    fisher = ascribe.fit(store, 0.3)
    dense = ascribe.Store.write(tmp_path / "dense", wide.astype(np.float32), store.ids, columned(store, wide.shape[1]))
    twin = ascribe.score(dense, q.astype(np.float32), ascribe.fit(dense, 0.3))
    mine = ascribe.score(store, queries, fisher)
    np.testing.assert_allclose(mine.values, twin.values, rtol=1e-4, atol=1e-6 * np.abs(twin.values).max())
    np.testing.assert_allclose(mine.datasets, twin.datasets, rtol=1e-6, atol=1e-8 * np.abs(twin.datasets).max())
    np.testing.assert_allclose(fisher.self_influence(store), ascribe.fit(dense, 0.3).self_influence(dense), rtol=1e-6)
    assert fisher.precondition(queries).shape == q.shape
    fisher.save(tmp_path / "f.safetensors")
    again = ascribe.Fisher.load(tmp_path / "f.safetensors", store)
    assert (ascribe.score(store, queries, again).values == mine.values).all()
    # Rows that are multiplied out already are taken as they are.
    assert (ascribe.score(store, store.expand(queries), fisher).values == mine.values).all()


def columned(store, dim):
    spec = store.spec
    shapes = json.loads((store.path / "layout.json").read_text())
    columns, start = [], 0
    for column, shape in zip(spec.columns, shapes, strict=True):
        width = column.len if shape is None else shape[0] * shape[1]
        columns.append(ascribe.Column(column.name, start, width))
        start += width
    assert start == dim
    fields = (spec.model, spec.checkpoint, spec.quantity, spec.loss, spec.normalizer, {"kind": "identity"})
    return ascribe.FeatureSpec(*fields, tuple(columns), dim, spec.corpus)


def test_what_would_dot_factors_is_refused(tmp_path):
    model = gpt2().eval()
    store = collect(model, ids(8), tmp_path / "s", projection="factored:8x8:1")
    with pytest.raises(ascribe.SearchError, match="factors"):
        store.search(store.rows(0, 1), 1)
    with pytest.raises(ascribe.SearchError, match="factors"):
        ascribe.Index.build(store)
    with pytest.raises(ascribe.SearchError, match="dataset_sums: .*factors"):
        store.dataset_sums()
    plain = collect(model, ids(8), tmp_path / "p", k=8)
    with pytest.raises(ValueError, match="LoRIF"):
        plain.expand(plain.rows())
    for words in ("factored", "factored:8", "factored:8x8:0", "factored:8x8x8:1", "factored:8x8:1:1", "factored:0x8:1"):
        with pytest.raises(ValueError, match="projection"):
            Collector(model, projection=words)


def test_the_layout_goes_where_the_rows_go(tmp_path):
    model = Net().eval()
    settings = {"loss": net_loss, "projection": "factored:6x5:1"}
    parts = []
    for i in range(2):
        batch = tuple(x[5 * i : 5 * i + 5] for x in net_batch(10))
        parts.append(collect(model, [batch], tmp_path / f"{i}", datasets=[i] * 5, corpus_sha256="ab" * 32, **settings))
    whole = ascribe.Store.merge([p.path for p in parts], tmp_path / "whole")
    half = whole.convert(tmp_path / "half", "bf16")
    expected = np.concatenate([p.expand(p.rows()) for p in parts])
    assert (whole.expand(whole.rows()) == expected).all()
    assert np.abs(half.expand(half.rows()) - expected).max() < 0.05 * np.abs(expected).max()
    layout = whole.path / "layout.json"
    for bad in ("{}", "[[1, 2]]", "[null, null, null, [0, 3]]", "nonsense", f"[[{2**60}, {2**60}], null, null, null]"):
        layout.write_text(bad)
        with pytest.raises((ValueError, ascribe.AscribeError)):
            ascribe.fit(whole)


def test_a_row_that_is_not_finite_is_refused(tmp_path):
    broken = gpt2()
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_fc.weight[0, 0] = float("inf")
    with pytest.raises(ascribe.NotFiniteError, match="row 0"):
        collect(broken, ids(4), tmp_path / "nan", projection="factored:8x8:1")
    with pytest.raises(ascribe.UnfinishedError):
        ascribe.Store(tmp_path / "nan")


def test_while_training(tmp_path):
    pytest.importorskip("accelerate")
    both = [AscribeCallback(tmp_path / "lorif", projection="factored:8x8:2"), AscribeCallback(tmp_path / "dense", k=8)]
    for callback, name in zip(both, "ab", strict=True):
        trainer(tmp_path / name, callback, num_train_epochs=1, save_strategy="no").train()
    dense, lorif = both[1].store, both[0].store
    shapes = json.loads((lorif.path / "layout.json").read_text())
    expected = truncated(dense.rows(), dense.spec.columns, shapes, 2)
    close(lorif.expand(lorif.rows()), expected, 1e-4)
