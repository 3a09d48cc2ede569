"""The boundary under arbitrary input: an exception or a right answer, never a crash, never half a store."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ascribe
import numpy as np
import pytest
from ascribe import _ascribe, metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

REFUSALS = (ascribe.AscribeError, TypeError, ValueError, OverflowError, KeyError, OSError, MemoryError)

dtypes = st.one_of(
    hnp.floating_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.boolean_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.unicode_string_dtypes(),
)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))
f32 = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6))
f64 = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6))
anything = st.one_of(arrays, f32, f64, st.none(), st.text(), st.integers(), st.lists(st.floats()))


def strided(array, how):
    if not isinstance(array, np.ndarray) or array.ndim < 2:
        return array
    return {0: array, 1: array.T, 2: array[::2], 3: array[:, ::-1], 4: np.asfortranarray(array)}[how]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rows = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    return ascribe.Store.write(tmp_path_factory.mktemp("fuzz") / "s", rows)


@given(anything, anything, st.integers(0, 4))
@settings(max_examples=300, deadline=None)
def test_push(ids, rows, how):
    rows = strided(rows, how)
    with tempfile.TemporaryDirectory() as folder:
        with ascribe.StoreWriter(Path(folder) / "s", ascribe.FeatureSpec.plain(4), 3) as writer:
            try:
                writer._raw.push(ids, rows)
            except REFUSALS:
                assert writer.n_taken == 0
                return
            taken = writer.n_taken
        assert isinstance(rows, np.ndarray) and rows.dtype == np.float32 and rows.shape == (taken, 4)


@given(anything, st.integers(-5, 60), st.integers(0, 4))
@settings(max_examples=300, deadline=None)
def test_search_and_score(store, queries, k, how):
    queries = strided(queries, how)
    for call in (
        lambda: store.search(queries, k),
        lambda: ascribe.score(store, queries).values,
        lambda: ascribe.dataset_scores(store, queries),
    ):
        try:
            found = call()
        except REFUSALS:
            continue
        assert len(found) >= 0


@pytest.fixture(scope="module")
def index(store):
    return ascribe.Index.build(store, n_graphs=2)


@given(anything, st.integers(-5, 60), st.integers(0, 4), st.integers(0, 2**70), st.lists(st.integers(-1, 2**65), max_size=4))
@settings(max_examples=200, deadline=None)
def test_index(index, queries, k, how, effort, ids):
    queries = strided(queries, how)
    for call in (
        lambda: index.search(queries, k, effort=effort, exclude=ids),
        lambda: index.search(queries, k, datasets=ids),
        lambda: index.measure(queries),
        lambda: index._raw.search(queries, k, effort, ids, None, None),
    ):
        try:
            found = call()
        except REFUSALS:
            continue
        assert len(found) >= 0


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_specs(text):
    for call in (lambda: _ascribe.spec_hash(text), lambda: _ascribe.Store("/nonexistent", text)):
        with pytest.raises(REFUSALS):
            call()


@given(anything, anything, anything)
@settings(max_examples=300, deadline=None)
def test_measures(a, b, c):
    calls = [
        lambda: metrics.lds(a, b, c),
        lambda: metrics.loo(a, b),
        lambda: metrics.roc_auc(a, b),
        lambda: metrics.spearman(a, b),
        lambda: metrics.share_error(a, b),
        lambda: metrics.evaluate(a, b, c),
        lambda: metrics.removal_effect(a, b),
        lambda: metrics.brittleness(a, b),
        lambda: metrics.tail_patch(a, b),
        lambda: metrics.label_top1(a, b, c),
        lambda: metrics.bootstrap_mean(a),
        lambda: metrics.recall_at(3, a, b),
        lambda: ascribe.shares(a, [("u", "n", "o")], intervals=b),
    ]
    for call in calls:
        try:
            call()
        except REFUSALS:
            continue


@given(f64, hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6)), f64)
@settings(max_examples=200, deadline=None)
def test_measures_of_the_right_types(a, b, c):
    for call in (lambda: metrics.lds(a, b, c), lambda: metrics.loo(a, c), lambda: metrics.removal_effect(a, c)):
        try:
            found = call()
        except REFUSALS:
            continue
        assert found.dtype == np.float64


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_files(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        (Path(folder) / "store.json").write_bytes(data)
        for call in (
            lambda: ascribe.read_scores(path),
            lambda: ascribe.read_shares(path),
            lambda: ascribe.read_journal(path),
            lambda: ascribe.read_payout(path),
            lambda: ascribe.Store(folder),
            lambda: ascribe.Registry(folder),
        ):
            with pytest.raises((*REFUSALS, UnicodeDecodeError)):
                call()
