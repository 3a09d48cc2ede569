"""Files of other tools, written here as those write them (bergson 2.5, LogIX 0.1, TRAK 0.3, kronfluence 1.0, dattri 0.3)."""

from __future__ import annotations

import json

import ascribe
import numpy as np
import pytest
from ascribe import migrate

ROWS = np.random.default_rng(4).normal(size=(12, 7)).astype(np.float32)
SCORES = np.random.default_rng(5).normal(size=(3, 12)).astype(np.float32)
OF = [i % 2 for i in range(12)]


def test_bergson(tmp_path):
    info = {"num_items": 12, "num_grads": 12, "grad_sizes": {"h.0": 4, "h.1": 3}, "base_dtype": "float16"}
    (tmp_path / "info.json").write_text(json.dumps(info))
    (tmp_path / "gradients.bin").write_bytes(ROWS.astype(np.float16).tobytes())
    store = migrate.bergson_gradients(tmp_path, tmp_path / "store", datasets=OF)
    assert (store.rows() == ROWS.astype(np.float16)).all() and [c.name for c in store.spec.columns] == ["h.0", "h.1"]
    assert store.n_datasets == 2
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
