"""Stores that tests share, made anew in temporary folders."""

from __future__ import annotations

from pathlib import Path

import ascribe
import numpy as np
import pytest
from hypothesis import settings

# The same examples in every run: a failure is a change of the code, and nobody has to look for the seed.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(300, 24)).astype(np.float32)


@pytest.fixture
def ids() -> np.ndarray:
    return ascribe.pack_ids(np.arange(300) % 3, np.arange(300) // 3)


@pytest.fixture
def store(tmp_path: Path, rows: np.ndarray, ids: np.ndarray) -> ascribe.Store:
    return ascribe.Store.write(tmp_path / "store", rows, ids, rows_per_shard=128)
