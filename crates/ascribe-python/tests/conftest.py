"""Stores that tests share, made anew in temporary folders."""

from __future__ import annotations

from pathlib import Path

import ascribe
import numpy as np
import pytest


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(300, 24)).astype(np.float32)


@pytest.fixture
def ids() -> np.ndarray:
    return ascribe.pack_ids(np.arange(300) % 3, np.arange(300) // 3)


@pytest.fixture
def store(tmp_path: Path, rows: np.ndarray, ids: np.ndarray) -> ascribe.Store:
    return ascribe.Store.write(tmp_path / "store", rows, ids, rows_per_shard=128)
