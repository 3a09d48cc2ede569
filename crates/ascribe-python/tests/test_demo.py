"""What the command line wrote, read and computed again: a finished demo's folder, named by ASCRIBE_DEMO."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import ascribe
import numpy as np
import pytest

DEMO = Path(os.environ.get("ASCRIBE_DEMO", "/nonexistent"))
ROOT = Path(os.environ.get("ASCRIBE_ROOT", "/nonexistent"))
COMMAND = os.environ.get("ASCRIBE", "")

pytestmark = pytest.mark.skipif(not (DEMO / "run.toml").exists(), reason="ASCRIBE_DEMO names no demo")


def asked(*arguments):
    done = subprocess.run([COMMAND, *map(str, arguments), "--format", "json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def store():
    return ascribe.Store(DEMO / "store" / "final")


@pytest.fixture(scope="module")
def queries():
    return ascribe.Store(DEMO / "store" / "final-responses").rows()


@pytest.mark.skipif(not COMMAND, reason="ASCRIBE names no command")
def test_best_rows_are_those_of_the_command(tmp_path, store, queries):
    np.save(tmp_path / "q.npy", queries[:8])
    found = asked("search", "--store", store.path, "--queries", tmp_path / "q.npy", "--k", 10)
    hits = store.search(queries[:8], 10)
    assert [row for query in found["queries"] for row in query["rows"]] == hits["row"].tolist()
    assert [x for query in found["queries"] for x in query["scores"]] == hits["score"].tolist()


@pytest.mark.skipif(not COMMAND, reason="ASCRIBE names no command")
def test_sums_are_those_of_the_command(store):
    found = asked("store", "stats", store.path)["datasets"]
    sums, counts = store.dataset_sums()
    assert counts.tolist() == [d["rows"] for d in found]
    np.testing.assert_allclose(np.linalg.norm(sums, axis=1), [d["sum_norm"] for d in found], rtol=1e-12)


def test_influence_of_datasets_is_that_of_the_demo(store, queries):
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((DEMO / "run.toml").read_text())
    damping = next(v["damping_rel"] for v in [settings, *settings.values()] if isinstance(v, dict) and "damping_rel" in v)
    scores = ascribe.dataset_scores(store, queries, ascribe.fit(store, damping))
    table = ascribe.read_scores(DEMO / "scores.parquet")
    mine = (np.array(table["method"]) == "block_fisher") & (np.array(table["level"]) == "dataset")
    written = np.zeros_like(scores)
    written[table["query"][mine], table["dataset"][mine]] = table["score"][mine]
    assert mine.sum() == scores.size
    np.testing.assert_allclose(scores, written, rtol=1e-9, atol=1e-9 * np.abs(written).max())


def test_shares_and_books(tmp_path):
    book = ascribe.read_shares(DEMO / "shares.json")
    assert len(book) == 120 and 0 < book.coverage < 1
    owners = book.owners()
    for query in range(0, 120, 17):
        assert owners["share"][owners["query"] == query].sum() == pytest.approx(1, abs=1e-4)
    journal = ascribe.read_journal(DEMO / "payout" / "journal.json")
    assert len(journal.transfers) > 100 and "pool" in journal.balances["account"]
    payout = ascribe.read_payout(DEMO / "payout" / "payout.csv")
    assert set(payout["owner"]) <= set(ascribe.Registry(ROOT / "datasets").owners()["owner"])
    (tmp_path / "journal.json").write_bytes((DEMO / "payout" / "journal.json").read_bytes().replace(b'"fund"', b'"find"', 1))
    with pytest.raises(ascribe.LedgerError):
        ascribe.read_journal(tmp_path / "journal.json")


def test_registry():
    registry = ascribe.Registry(ROOT / "datasets")
    report = registry.verify()
    assert len(report) == len(registry) == 10 and report["content_root"] == registry.datasets()["content_root"]
    with pytest.raises(ascribe.RegistryError):
        ascribe.Registry(ROOT / "models")
