"""Ascribe: which registered datasets caused a model's output, and what each owner gets.

>>> import ascribe, numpy as np, tempfile
>>> rows = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
>>> store = ascribe.Store.write(tempfile.mkdtemp() + "/store", rows)
>>> hits = store.search(rows[:2], k=3)
>>> len(hits), hits["query"].tolist()
(6, [0, 0, 0, 1, 1, 1])

Gradients of PyTorch models: :mod:`ascribe.torch`. Measures: :mod:`ascribe.metrics`. A running server: :mod:`ascribe.client`.
Files of other tools: :mod:`ascribe.migrate`. A writer without compiled code: :mod:`ascribe.pure`.
"""

from . import metrics
from ._ascribe import (
    AscribeError,
    EvalError,
    LedgerError,
    LockedError,
    MethodError,
    NotFiniteError,
    RegistryError,
    SearchError,
    SharesError,
    SpecMismatchError,
    StoreError,
    UnfinishedError,
    __version__,
)
from .attribution import (
    Fisher,
    Scores,
    ShareBook,
    dataset_scores,
    fit,
    read_scores,
    read_shares,
    score,
    shares,
)
from .index import Effort, Index, RecallCurve
from .registry import Journal, Registry, read_journal, read_payout
from .spec import Column, FeatureSpec
from .store import Store, StoreWriter, pack_ids, unpack_ids
from .table import Hits, ShareTable, Table

__all__ = [
    "AscribeError",
    "Column",
    "Effort",
    "EvalError",
    "FeatureSpec",
    "Fisher",
    "Hits",
    "Index",
    "Journal",
    "LedgerError",
    "LockedError",
    "MethodError",
    "NotFiniteError",
    "RecallCurve",
    "Registry",
    "RegistryError",
    "Scores",
    "SearchError",
    "ShareBook",
    "ShareTable",
    "SharesError",
    "SpecMismatchError",
    "Store",
    "StoreError",
    "StoreWriter",
    "Table",
    "UnfinishedError",
    "__version__",
    "dataset_scores",
    "fit",
    "metrics",
    "pack_ids",
    "read_journal",
    "read_payout",
    "read_scores",
    "read_shares",
    "score",
    "shares",
    "unpack_ids",
]
