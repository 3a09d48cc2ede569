"""Files of other tools. Those that bergson 2.5.1, LogIX 0.1.1, TRAK 0.3.2, kronfluence 1.0.1 and dattri 0.3.0 wrote themselves,
with what their own readers say of them (`tests/conformance/python/peers.py` made them); and faulty ones, in their forms.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import ascribe
import numpy as np
import pytest
from ascribe import migrate

ROWS = np.random.default_rng(4).normal(size=(12, 7)).astype(np.float32)
SCORES = np.random.default_rng(5).normal(size=(3, 12)).astype(np.float32)
OF = [i % 2 for i in range(12)]

FILES = Path(os.environ.get("ASCRIBE_PEER_FILES", Path(__file__).parent / "peers"))


def says(tool):
    with np.load(FILES / tool / "expected.npz") as found:
        return dict(found)


def test_bergson_itself(tmp_path):
    theirs = says("bergson")
    store = migrate.bergson_gradients(FILES / "bergson" / "index", tmp_path / "store", datasets=OF)
    assert store.spec.projector == {"kind": "identity"} and len(store.spec.columns) == 4
    np.testing.assert_array_equal(store.rows(), theirs["gradients"])
    assert store.n_datasets == 2 and (ascribe.score(store, store.rows(0, 1)).values[0, 0] > 0)
    scores = migrate.bergson_scores(FILES / "bergson" / "scores", datasets=OF)
    np.testing.assert_array_equal(scores.values, theirs["scores"])
    np.testing.assert_allclose(scores.datasets[:, 0], theirs["scores"][:, ::2].sum(1), rtol=1e-5)


def test_logix_itself(tmp_path):
    store = migrate.logix_gradients(FILES / "logix" / "log", tmp_path / "store")
    np.testing.assert_array_equal(store.rows(), says("logix")["gradients"])
    assert json.loads((tmp_path / "store" / "data_ids.json").read_text()) == [f"x{i}" for i in range(12)]


def test_trak_itself(tmp_path):
    theirs = says("trak")
    store = migrate.trak_gradients(FILES / "trak" / "run", tmp_path / "store")
    np.testing.assert_array_equal(store.rows(), theirs["gradients"])
    np.testing.assert_array_equal(migrate.trak_scores(FILES / "trak" / "run", "test").values, theirs["scores"])


def test_kronfluence_itself(tmp_path):
    theirs = says("kronfluence")["scores"]
    scores = migrate.kronfluence_scores(FILES / "kronfluence" / "scores_s")
    np.testing.assert_array_equal(scores.values, theirs)
    by_module = migrate.kronfluence_scores(FILES / "kronfluence" / "scores_m")
    np.testing.assert_allclose(by_module.values, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    n = migrate.write_scores(scores, tmp_path / "scores.parquet", "kronfluence")
    assert n == 3 * (12 + 1) == len(ascribe.read_scores(tmp_path / "scores.parquet"))


def test_dattri_itself():
    pytest.importorskip("torch")
    np.testing.assert_array_equal(migrate.dattri_scores(FILES / "dattri" / "score.pt").values, says("dattri")["scores"])


def test_bergson(tmp_path):
    info = {"num_items": 12, "num_grads": 12, "grad_sizes": {"h.0": 4, "h.1": 3}, "base_dtype": "float16"}
    (tmp_path / "info.json").write_text(json.dumps(info))
    (tmp_path / "gradients.bin").write_bytes(ROWS.astype(np.float16).tobytes())
    store = migrate.bergson_gradients(tmp_path, tmp_path / "store", datasets=OF)
    assert (store.rows() == ROWS.astype(np.float16)).all() and [c.name for c in store.spec.columns] == ["h.0", "h.1"]
    assert store.n_datasets == 2
    bits = (ROWS.view(np.uint32) >> 16).astype("<u2")
    (tmp_path / "info.json").write_text(json.dumps({**info, "base_dtype": "bfloat16"}))
    (tmp_path / "gradients.bin").write_bytes(bits.tobytes())
    rough = migrate.bergson_gradients(tmp_path, tmp_path / "bf16").rows()
    assert (rough.view(np.uint32) == bits.astype(np.uint32) << 16).all() and np.abs(rough - ROWS).max() < 0.02
    for more, words in (
        ({"attribute_tokens": True}, "per token"),
        ({"base_dtype": "O"}, "float16"),
        ({"num_grads": -1}, "bytes"),
    ):
        (tmp_path / "info.json").write_text(json.dumps({**info, **more}))
        with pytest.raises(ValueError, match=words):
            migrate.bergson_gradients(tmp_path, tmp_path / "again")
    (tmp_path / "info.json").write_text(json.dumps(info))
    (tmp_path / "gradients.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="168 bytes"):
        migrate.bergson_gradients(tmp_path, tmp_path / "again")


def test_bergson_scores(tmp_path):
    names = [n for i in range(3) for n in (f"score_{i}", f"written_{i}")]
    formats, offsets = ["<f4", "?"] * 3, [8 * (i // 2) + 4 * (i % 2) for i in range(6)]
    kind = {"names": names, "formats": formats, "offsets": offsets, "itemsize": 24}
    table = np.zeros(12, np.dtype(kind))
    for i in range(3):
        table[f"score_{i}"], table[f"written_{i}"] = SCORES[i], True
    (tmp_path / "scores.bin").write_bytes(table.tobytes())
    (tmp_path / "info.json").write_text(json.dumps({"num_items": 12, "num_rows": 12, "num_scores": 3, "dtype": kind}))
    scores = migrate.bergson_scores(tmp_path, datasets=OF)
    assert (scores.values == SCORES).all()
    np.testing.assert_allclose(scores.datasets[:, 1], SCORES[:, 1::2].sum(1), rtol=1e-6)
    assert migrate.write_scores(scores, tmp_path / "scores.parquet", "bergson", top_k=4) == 3 * (4 + 2)
    assert len(ascribe.read_scores(tmp_path / "scores.parquet")) == 18
    assert (migrate.bergson_scores(tmp_path, sign=-1).values == -SCORES).all()
    np.save(tmp_path / "candidates.npy", np.arange(12))
    with pytest.raises(ValueError, match="candidates"):
        migrate.bergson_scores(tmp_path)
    (tmp_path / "candidates.npy").unlink()
    table["written_1"][3] = False
    (tmp_path / "scores.bin").write_bytes(table.tobytes())
    with pytest.raises(ValueError, match="never written"):
        migrate.bergson_scores(tmp_path)


def test_logix(tmp_path):
    path = [["h.0", "grad"], ["h.1", "grad"]]
    for chunk, rows in enumerate((ROWS[:8], ROWS[8:])):
        (tmp_path / f"log_0_{chunk}.mmap").write_bytes(rows.tobytes())
        entries = [
            {
                "data_id": f"x{8 * chunk + i}",
                "path": path,
                "offset": 28 * i,
                "shape": [[2, 2], [3]],
                "block_size": 7,
                "dtype": "float32",
            }
            for i in range(len(rows))
        ]
        (tmp_path / f"log_0_{chunk}_metadata.json").write_text(json.dumps(entries))
    store = migrate.logix_gradients(tmp_path, tmp_path / "store")
    assert (store.rows() == ROWS).all() and [c.len for c in store.spec.columns] == [4, 3]
    assert json.loads((tmp_path / "store" / "data_ids.json").read_text())[9] == "x9"
    (tmp_path / "log_0_1.mmap").write_bytes(ROWS[8:].tobytes()[:50])
    with pytest.raises(ValueError, match="end of the file"):
        migrate.logix_gradients(tmp_path, tmp_path / "again")
    with pytest.raises(ascribe.UnfinishedError):
        ascribe.Store(tmp_path / "again")


def test_trak(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "scores").mkdir()
    (tmp_path / "metadata.json").write_text("{}")
    for name, values in (
        ("0/features", ROWS),
        ("0/_is_featurized", np.ones((12, 1), np.int32)),
        ("scores/test", SCORES.T.copy()),
    ):
        with (tmp_path / f"{name}.mmap").open("wb") as stream:
            np.lib.format.write_array(stream, values)
    assert (migrate.trak_gradients(tmp_path, tmp_path / "store").rows() == ROWS).all()
    assert (migrate.trak_scores(tmp_path, "test").values == SCORES).all()


def test_kronfluence(tmp_path):
    st = pytest.importorskip("safetensors.numpy")
    half = {"a": SCORES - 1, "b": np.ones_like(SCORES)}
    st.save_file(half, tmp_path / "pairwise_scores.safetensors")
    np.testing.assert_allclose(migrate.kronfluence_scores(tmp_path).values, SCORES, atol=1e-6)
    bad = {"all_modules": np.where(SCORES > 2, np.nan, SCORES * np.nan)}
    st.save_file(bad, tmp_path / "pairwise_scores.safetensors")
    with pytest.raises(ValueError, match="finite"):
        migrate.kronfluence_scores(tmp_path)


def test_dattri(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.from_numpy(SCORES.T.copy()), tmp_path / "score.pt")
    assert (migrate.dattri_scores(tmp_path / "score.pt").values == SCORES).all()
    np.save(tmp_path / "grads.npy", ROWS)
    assert (migrate.dattri_gradients(tmp_path / "grads.npy", tmp_path / "store").rows() == ROWS).all()
    torch.save({"a": 1}, tmp_path / "no.pt")
    with pytest.raises(ValueError, match="tensor"):
        migrate.dattri_scores(tmp_path / "no.pt")
    with pytest.raises(ValueError, match="ordinals"):
        migrate.dattri_scores(tmp_path / "score.pt", datasets=[0])
