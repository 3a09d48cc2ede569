"""The boundary under arbitrary input: an exception or a right answer, never a crash, never half a store.

Seeds are fixed (conftest.py)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import ascribe
import numpy as np
import pytest
from ascribe import _ascribe, metrics, pure
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
@settings(max_examples=300)
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


any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.integers(2**24, 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)
counts = st.one_of(st.integers(0, 9), st.integers(-(2**70), 2**70), st.sampled_from([2**24, 2**31, 2**32 - 1, 2**63]), anything)
row_types = st.one_of(st.sampled_from(["f32", "f32", "bf16", "f16", "int8", "int4"]), st.text(max_size=6), anything)
names = st.one_of(
    st.just("s"), st.text(max_size=12).map(lambda text: text.replace("/", "_")), st.just("file"), st.just("n" * 300)
)


@st.composite
def specs(draw):
    """A spec's JSON with none, one or two of its fields changed or gone, or something else."""
    spec = json.loads(ascribe.FeatureSpec.plain(4).to_json())
    for _ in range(draw(st.integers(0, 2))):
        field = draw(st.sampled_from(sorted(spec)))
        spec[field] = draw(st.sampled_from([2**20, 2**24, 2**24 + 1, 2**63, -1, 0.5]) | any_json)
        if draw(st.integers(0, 9)) == 0:
            del spec[field]
    return draw(st.sampled_from([json.dumps(spec)] * 6) | st.text(max_size=40) | anything)


@given(names, specs(), counts, row_types, counts, st.integers(0, 5))
@settings(max_examples=600)
def test_the_writer_is_made_of_anything(name, spec, n_rows, row_type, per_shard, n_defaults):
    """A writer that takes rows and resumes, or an exception with a message and no store."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_bytes(b"no folder")
        path = f"{folder}/d/{name}" if name != "file" else f"{folder}/file"
        arguments = [path, spec, n_rows, row_type, per_shard][: max(3, 5 - n_defaults)]
        try:
            writer = _ascribe.StoreWriter(*arguments)
        except REFUSALS as error:
            assert str(error) and not isinstance(error, MemoryError)
            with pytest.raises((*REFUSALS, UnicodeEncodeError)):
                _ascribe.Store(path)
            return
        dim, n_rows = json.loads(spec)["dim"], int(n_rows)
        try:
            assert (writer.n_committed, writer.n_taken) == (0, 0)
            if dim <= 2**16 and n_rows > 0:
                writer.push(np.zeros(1, np.uint64), np.ones((1, dim), np.float32))
                assert writer.n_taken == 1
            if n_rows > 1:
                with pytest.raises(ascribe.UnfinishedError):
                    writer.finish()
        finally:
            writer.close()
        again = _ascribe.StoreWriter(*arguments)
        assert again.n_committed in (0, 1)
        again.close()
        with pytest.raises(ascribe.SpecMismatchError):  # of another size
            _ascribe.StoreWriter(path, spec, n_rows + 1 if n_rows < 2**63 else n_rows - 1, *arguments[3:])


@given(anything, st.integers(-5, 60), st.integers(0, 4))
@settings(max_examples=300)
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
@settings(max_examples=200)
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
@settings(max_examples=200)
def test_specs(text):
    for call in (lambda: _ascribe.spec_hash(text), lambda: _ascribe.Store("/nonexistent", text)):
        with pytest.raises(REFUSALS):
            call()


@given(anything, anything, anything)
@settings(max_examples=300)
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
@settings(max_examples=200)
def test_measures_of_the_right_types(a, b, c):
    for call in (lambda: metrics.lds(a, b, c), lambda: metrics.loo(a, c), lambda: metrics.removal_effect(a, c)):
        try:
            found = call()
        except REFUSALS:
            continue
        assert found.dtype == np.float64


@given(st.binary(max_size=300))
@settings(max_examples=100)
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


PLAIN = json.loads(ascribe.FeatureSpec.plain(4).to_json())
PROJECTORS = st.sampled_from(
    [
        {"kind": "identity"},
        {"kind": "two_sided", "seed": 1, "k_in": 2, "k_out": 2, "version": 1},
        {"kind": "factored", "seed": 1, "k_in": 2, "k_out": 2, "rank": 1, "version": 1},
        {"kind": "factored", "seed": 1, "k_in": 2**40, "k_out": 2**40, "rank": 2**40, "version": 1},
        {"kind": "factored", "seed": 1, "k_in": 0, "k_out": 0, "rank": 0, "version": 1},
        {"kind": "nothing"},
        None,
    ]
)
numbers = st.one_of(st.integers(-3, 9), st.integers(2**31, 2**70), st.none(), st.floats(), st.text(max_size=3))
columns = st.lists(st.fixed_dictionaries({"name": st.text(max_size=4), "start": numbers, "len": numbers}), max_size=3)
fields = st.fixed_dictionaries(
    {},
    optional={
        "model": st.text(max_size=70),
        "dim": numbers,
        "columns": columns,
        "projector": PROJECTORS,
        "corpus": st.none(),
        "more": st.none(),
    },
)


@given(fields, anything, anything, st.integers(-2, 5), st.integers(-1, 4))
@settings(max_examples=200)
def test_the_pure_writer(changes, ids, rows, n_rows, per_shard):
    text = json.dumps({**PLAIN, **changes})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        try:
            writer = pure.Writer(path, text, n_rows, per_shard)
        except REFUSALS:
            return
        with writer:
            try:
                writer.push(ids, rows)
            except REFUSALS:
                assert writer.n_committed == 0
                return
            try:
                writer.finish()
            except ValueError:
                return
        assert len(ascribe.Store(path)) == n_rows


@given(anything, st.integers(0, 4), PROJECTORS)
@settings(max_examples=200)
def test_factored_stores(queries, how, projector):
    """A store that says that its rows are factors, whether or not they can be."""
    queries = strided(queries, how)
    columns = [{"name": "a", "start": 0, "len": 4}, {"name": "b", "start": 4, "len": 3}]
    spec = {**PLAIN, "dim": 7, "columns": columns, "projector": projector}
    with tempfile.TemporaryDirectory() as folder:
        try:
            spec = ascribe.FeatureSpec.from_json(json.dumps(spec))
            rows = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
            store = ascribe.Store.write(Path(folder) / "s", rows, spec=spec)
        except REFUSALS:
            return
        for call in (
            lambda: store.expand(queries),
            lambda: store.expand(rows),
            lambda: ascribe.score(store, rows).values,
            lambda: ascribe.score(store, queries, ascribe.fit(store)).values,
            lambda: ascribe.dataset_scores(store, queries),
            lambda: store.search(rows, 1),
        ):
            try:
                assert len(call()) >= 0
            except REFUSALS:
                continue


@given(st.data())
@settings(max_examples=200)
def test_damaged_stores(store, data):
    """One byte of one file changed, a file cut off or gone: refused, or the rows as they were."""
    files = sorted(p for p in store.path.rglob("*") if p.is_file() and p.name != "writer.lock")
    file = data.draw(st.sampled_from(files))
    content = file.read_bytes()
    at, what = data.draw(st.integers(0, max(len(content) - 1, 0))), data.draw(st.sampled_from(["flip", "cut", "gone", "more"]))
    good = store.rows()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        for old in files:
            new = path / old.relative_to(store.path)
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(old.read_bytes())
        damaged = path / file.relative_to(store.path)
        if what == "gone":
            damaged.unlink()
        else:
            flipped = bytes([content[at] ^ data.draw(st.integers(1, 255))]) if content else b""
            damaged.write_bytes(
                {"flip": content[:at] + flipped + content[at + 1 :], "cut": content[:at], "more": content + b"x"}[what]
            )
        try:
            copy = ascribe.Store(path)
            copy.search(good[:2], 3)
            ascribe.fit(copy)
            copy.verify()
        except REFUSALS:
            return
        assert (copy.rows() == good).all()
