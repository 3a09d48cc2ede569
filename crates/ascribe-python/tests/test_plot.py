"""Plots show the numbers that they were given."""

from __future__ import annotations

import ascribe
import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from ascribe import plot  # noqa: E402

OWNERS = [("urn:uuid:1", "poems", "ann"), ("urn:uuid:2", "code", "bob"), ("urn:uuid:3", "news", "ann")]


def test_shares_with_their_intervals(tmp_path):
    values = np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
    intervals = np.stack([np.maximum(values - 0.05, 0), np.minimum(values + 0.1, 1)], axis=2)
    book = ascribe.shares(values, OWNERS, intervals=intervals)
    ax = plot.shares(book)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["code", "poems", "news"]
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.25, 0.25]
    (ends,) = next(c for c in ax.containers if hasattr(c, "has_xerr")).lines[2]
    np.testing.assert_allclose([[a[0], b[0]] for a, b in ends.get_segments()], [[0.45, 0.6], [0.2, 0.35], [0.2, 0.35]], atol=1e-6)
    assert plot.shares(book, query=1, ax=ax) is ax and ax.get_title() == "response 1"
    ax.figure.savefig(tmp_path / "shares.png")
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")


def test_influence_of_datasets(store, rows):
    scores = ascribe.score(store, rows[:4])
    ax = plot.dataset_scores(scores, ["a", "b", "c"])
    assert (ax.images[0].get_array() == scores.datasets).all()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    low, high = ax.images[0].get_clim()
    assert high == -low == np.abs(scores.datasets).max()
