"""Damaged files of other tools: a clear error and no store, or rows that a store may hold. Seeds are fixed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import ascribe
import numpy as np
import pytest
from ascribe import migrate
from hypothesis import given, settings
from hypothesis import strategies as st

FILES = Path(__file__).parent / "peers"
REFUSALS = (ascribe.AscribeError, ValueError, OSError)
"""What an importer may raise; anything else is a file that it believed."""

IMPORTERS = {
    "bergson_gradients": ("bergson/index", lambda path, out: migrate.bergson_gradients(path, out)),
    "bergson_scores": ("bergson/scores", lambda path, _: migrate.bergson_scores(path)),
    "logix_gradients": ("logix/log", lambda path, out: migrate.logix_gradients(path, out)),
    "trak_gradients": ("trak/run/0", lambda path, out: migrate.trak_gradients(path.parent, out)),
    "trak_grads": ("trak/run/0", lambda path, out: migrate.trak_gradients(path.parent, out, what="grads")),
    "trak_scores": ("trak/run/scores", lambda path, _: migrate.trak_scores(path.parent, "test")),
    "kronfluence_scores": ("kronfluence/scores_m", lambda path, _: migrate.kronfluence_scores(path)),
    "dattri_scores": ("dattri", lambda path, _: migrate.dattri_scores(path / "score.pt")),
    "dattri_gradients": ("dattri", lambda path, out: migrate.dattri_gradients(path / "score.pt", out)),
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.integers(2**31, 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def damage(draw, files):
    """The files with one or two of them damaged."""
    files = dict(files)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(files)))
        data = files[name]
        how = draw(st.sampled_from(["cut", "flip", "flip", "zero", "more", "gone", "swap", "edit", "edit"]))
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        if how == "cut":
            data = data[:at]
        elif how == "flip" and data:
            changed = bytearray(data)
            for _ in range(draw(st.integers(1, 8))):
                changed[draw(st.integers(0, min(len(data), draw(st.sampled_from([16, 300, len(data)]))) - 1))] ^= draw(
                    st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128])
                )
            data = bytes(changed)
        elif how == "zero":
            n = draw(st.integers(1, 64))
            data = data[:at] + bytes(len(data[at : at + n])) + data[at + n :]
        elif how == "more":
            data += draw(st.binary(min_size=1, max_size=40))
        elif how == "swap":
            data = files[draw(st.sampled_from(sorted(files)))]
        elif how == "edit" and name.endswith(".json"):
            data = edited(draw, data)
        files[name] = data
        if how == "gone":
            del files[name]
        if not files:
            break
    return files


def edited(draw, data):
    """Another value at a place of a JSON file."""
    try:
        tree = whole = json.loads(data)
    except ValueError:
        return data
    while True:
        keys = sorted(tree) if isinstance(tree, dict) else range(len(tree))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if not isinstance(tree[key], (dict, list)) or draw(st.booleans()):
            if draw(st.integers(0, 4)):
                tree[key] = draw(json_values)
            else:
                del tree[key]
            break
        tree = tree[key]
    return json.dumps(whole).encode()


@pytest.mark.parametrize("name", sorted(IMPORTERS))
def test_damaged_files(name):
    if name.startswith("dattri"):
        pytest.importorskip("torch")
    source, call = FILES / IMPORTERS[name][0], IMPORTERS[name][1]
    good = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    refused = taken = 0

    @given(damage(good))
    @settings(max_examples=60)
    def check(files):
        nonlocal refused, taken
        with tempfile.TemporaryDirectory() as folder:
            path, out = Path(folder) / source.name, Path(folder) / "out"
            path.mkdir()
            for file, data in files.items():
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                (path / file).write_bytes(data)
            try:
                found = call(path, out)
            except REFUSALS as error:
                assert str(error)
                with pytest.raises(ascribe.StoreError):
                    ascribe.Store(out)
                refused += 1
                return
            if isinstance(found, ascribe.Store):
                found.verify()
                values = found.rows()
                assert len(values) == len(found.ids) == len(found)
            else:
                values = found.values
                assert values.shape[1] == len(found.ids) and len(found.datasets) == len(values)
            assert values.dtype == np.float32 and np.isfinite(values).all()
            taken += 1

    check()
    assert refused >= 10 and taken >= 5, (refused, taken)  # both happen, or the damage is none or all
