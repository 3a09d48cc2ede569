"""The pure-Python writer against the Rust reader, byte by byte where bytes are promised."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import ascribe
import numpy as np
import pytest
from ascribe import FeatureSpec, pure
from ascribe._ascribe import spec_hash, stream_words, two_sided
from hypothesis import given, settings
from hypothesis import strategies as st


def test_rust_reads_what_python_wrote(tmp_path, rows, ids):
    spec = FeatureSpec.plain(24)
    with pure.Writer(tmp_path / "p", spec, 300, rows_per_shard=128) as writer:
        writer.push(ids[:200], rows[:200])
        writer.push(ids[200:], rows[200:])
        writer.finish()
    mine, theirs = ascribe.Store(tmp_path / "p"), ascribe.Store.write(tmp_path / "r", rows, ids, spec, rows_per_shard=128)
    assert mine.verify()["n_rows"] == 300
    assert (mine.rows() == rows).all() and (mine.ids == ids).all() and mine.spec_sha256 == theirs.spec_sha256
    for a, b in zip(mine.dataset_sums(), theirs.dataset_sums(), strict=True):
        assert (a == b).all()
    assert mine.search(rows[:9], 5)["score"].tolist() == theirs.search(rows[:9], 5)["score"].tolist()
    head = [json.loads((tmp_path / p / "store.json").read_text()) for p in "pr"]
    assert head[0]["uuid"] == head[1]["uuid"] and head[0]["checksum"] == head[1]["checksum"]
    with ascribe.StoreWriter.append(tmp_path / "p", spec, 1) as more:
        more.push(ascribe.pack_ids([3], [0]), rows[:1])
        assert len(more.finish()) == 301
    for side in sorted((tmp_path / "r" / "side").iterdir()):
        pq = pytest.importorskip("pyarrow.parquet")
        left, right = pq.read_table(tmp_path / "p" / "side" / side.name), pq.read_table(side)
        assert left.drop_columns("norm").equals(right.drop_columns("norm"))
        np.testing.assert_allclose(left["norm"].to_numpy(), right["norm"].to_numpy(), rtol=2e-7)


def test_it_resumes_and_so_does_rust(tmp_path, rows, ids):
    spec = FeatureSpec.plain(24)
    with pure.Writer(tmp_path / "p", spec, 300, rows_per_shard=100) as writer:
        writer.push(ids[:250], rows[:250])
        with pytest.raises(RuntimeError, match="somebody else"):
            pure.Writer(tmp_path / "p", spec, 300, rows_per_shard=100)
        with pytest.raises(ValueError, match="300"):
            writer.finish()
    with (tmp_path / "p" / "manifest.log").open("ab") as log:
        log.write(b'{"torn')
    with pure.Writer(tmp_path / "p", spec, 300, rows_per_shard=100) as writer:
        assert writer.n_committed == 200
        writer.push(ids[200:260], rows[200:260])
    with ascribe.StoreWriter(tmp_path / "p", spec, 300, rows_per_shard=100) as writer:
        assert writer.n_committed == 200
        writer.push(ids[200:], rows[200:])
        assert (writer.finish().rows() == rows).all()


def test_bad_input(tmp_path, rows, ids):
    with pure.Writer(tmp_path / "p", FeatureSpec.plain(24), 300) as writer:
        bad = rows.copy()
        bad[5, 6] = np.inf
        for ids_, rows_, words in (
            (ids, bad, "row 5, column 6"),
            (ids, rows.astype(np.float64), "float32"),
            (ids[:5], rows, "shape"),
            (np.zeros(300, np.uint64), rows, "twice"),
            (np.arange(400, dtype=np.uint64), np.zeros((400, 24), np.float32), "300"),
        ):
            with pytest.raises(ValueError, match=words):
                writer.push(ids_, rows_)
        writer.push(ids, rows)
        writer.finish()
    assert len(ascribe.Store(tmp_path / "p")) == 300
    with pytest.raises(ValueError, match="spec"):
        pure.Writer(tmp_path / "p", FeatureSpec.plain(24, model="22" * 32), 300)


def test_it_needs_nothing_of_ascribe(tmp_path):
    """The file alone, in an interpreter that has no `ascribe`."""
    source = importlib.util.find_spec("ascribe.pure").origin
    target = tmp_path / "writer.py"
    target.write_bytes(Path(source).read_bytes())
    numpy_home = str(Path(np.__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {numpy_home!r}); sys.modules['ascribe'] = None\n"
        "import json, numpy as np, writer\n"
        f"spec = {FeatureSpec.plain(2).to_json()!r}\n"
        "with writer.Writer('s', spec, 2) as w:\n"
        "    w.push(np.arange(2, dtype=np.uint64), np.eye(2, dtype=np.float32)); w.finish()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (ascribe.Store(tmp_path / "s").rows() == np.eye(2)).all()


def test_blake3_of_the_published_vectors():
    def pattern(n):
        return bytes(i % 251 for i in range(n))

    # From test_vectors.json of the BLAKE3 specification.
    assert pure.blake3(pattern(1)) == "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"
    assert pure.blake3(pattern(1025)) == "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"
    assert pure.blake3(pattern(102400)) == "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"


text = st.text(st.characters(codec="utf-8"), max_size=30)


@given(text, text, st.integers(1, 2**20), st.integers(0, 2**64 - 1))
@settings(max_examples=100)
def test_a_spec_hashes_as_in_rust(checkpoint, name, dim, seed):
    columns = (ascribe.Column(name, 0, dim),)
    projector = {"kind": "two_sided", "seed": seed, "k_in": 4, "k_out": 4, "version": 1}
    spec = FeatureSpec("ab" * 32, checkpoint, "gradient", name, "none", projector, columns, dim, "cd" * 32)
    assert spec_hash(spec.to_json()) == (spec.to_json(), spec.sha256)


@given(st.integers(0, 2**64 - 1), text, st.integers(0, 2**64 - 1))
@settings(max_examples=50)
def test_random_words_are_those_of_the_definition(seed, name, first):
    key = hashlib.sha256(b"ascribe-stream-v1\0" + seed.to_bytes(8, "little") + name.encode()).digest()[:8]
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def word(i):
        z = (int.from_bytes(key, "little") + golden * ((i + 1) & mask)) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert stream_words(seed, name, first, 3).tolist() == [word((first + i) & mask) for i in range(3)]


def test_projection_matrices():
    p_in, p_out = two_sided(7, "m", 20, 4, 8, 8)
    signs = np.where(stream_words(7, "m/in", 0, 160) >> np.uint64(63) == 0, 1, -1).reshape(20, 8)
    assert (np.sign(p_in) == signs).all() and (p_out == np.eye(4)).all()
    with pytest.raises(ValueError, match="k_in"):
        two_sided(7, "m", 20, 4, 0, 8)
