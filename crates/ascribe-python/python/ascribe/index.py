"""The approximate index: graphs that nominate rows, which the store then scores exactly."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _ascribe
from .store import F64, PathLike, Store, as_rows
from .table import Hits, Table

__all__ = ["Effort", "Index", "RecallCurve"]

FOLDER = "hnsw"
"""Where the command line looks for a store's index: in the store's folder."""


class Effort(NamedTuple):
    """How hard a search tries."""

    ef: int
    """Rows that each graph nominates."""
    n_exact: int
    """Nominees that are scored exactly."""


class RecallCurve:
    """Recall that was measured at rising efforts."""

    def __init__(self, k: int, n_queries: int, table: _ascribe.Table) -> None:
        self.k = k
        """Rows asked for; 0 if nothing was measured."""
        self.n_queries = n_queries
        """Queries that it was measured with."""
        self.table = Table(table)
        """Columns ef, n_exact, recall (the mean over queries) and worst (the least)."""

    @property
    def ef(self) -> npt.NDArray[np.uint64]:
        """Efforts, rising."""
        found: npt.NDArray[np.uint64] = self.table["ef"]
        return found

    @property
    def recall(self) -> F64:
        """Mean recall at each."""
        found: F64 = self.table["recall"]
        return found

    def recall_at(self, effort: Effort) -> float:
        """What was measured at the largest effort that is no larger than this one; NaN if none is."""
        below = (self.ef <= effort.ef) & (self.table["n_exact"] <= effort.n_exact)
        return float(self.recall[below][-1]) if below.any() else float("nan")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        points = ", ".join(f"{r:.3f} at {e}" for e, r in zip(self.ef.tolist(), self.recall.tolist(), strict=True))
        return f"<RecallCurve@{self.k} over {self.n_queries} queries: {points}>"

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


class Index:
    """Navigable small-world graphs over the rows of a store: few rows are looked at, scores are exact, recall is measured.

    >>> import tempfile
    >>> rows = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    >>> store = Store.write(tempfile.mkdtemp() + "/store", rows)
    >>> index = Index.build(store)
    >>> index.save()                                        # beside the store, where `ascribe search --mode ann` finds it
    >>> hits = Index.open(store).search(rows[:2], k=5, recall=0.9)
    >>> hits.proven, hits.recall >= 0.9, hits["score"].tolist() == store.search(rows[:2], k=5)["score"].tolist()
    (False, True, True)

    An index belongs to the examples that it was built over: rows that the store lost since are skipped, new ones are looked at
    always while they are few (5 %). It keeps the generation of the store that it was opened over.
    """

    def __init__(self, raw: _ascribe.Index, store: Store) -> None:
        self._raw, self.store = raw, store

    @classmethod
    def build(
        cls,
        store: Store,
        *,
        metric: str = "inner_product",
        n_neighbours: int = 16,
        ef_construction: int = 100,
        point_dim: int | None = None,
        n_graphs: int = 64,
        seed: int = 0,
    ) -> Index:
        """Builds graphs over all rows, in memory, and measures recall with 64 rows that have as much noise again.

        ``metric`` is ``"inner_product"`` or ``"cosine"`` (scores are cosines then). Rows longer than ``point_dim`` (1,024) are
        projected to it for the graphs; ``n_graphs`` are the ranges of norms that have one each.
        """
        settings = (metric, n_neighbours, ef_construction, point_dim, n_graphs, seed)
        return cls(_ascribe.Index.build(store._raw, *settings), store)

    @classmethod
    def open(cls, store: Store, path: PathLike | None = None) -> Index:
        """Opens a kept index over a store of its spec; without ``path`` the one in the store's folder. Every byte is checked."""
        return cls(_ascribe.Index.open(store._raw, os.fspath(path or store.path / FOLDER)), store)

    def save(self, path: PathLike | None = None) -> None:
        """Keeps the index, in place of one that is there; without ``path`` in the store's folder."""
        self._raw.save(os.fspath(path or self.store.path / FOLDER))

    def __len__(self) -> int:
        return self._raw.n_rows

    @property
    def settings(self) -> dict[str, Any]:
        """How it was built."""
        return self._raw.params

    @property
    def n_graphs(self) -> int:
        """Graphs."""
        return self._raw.n_graphs

    @property
    def n_orphans(self) -> int:
        """Rows that no graph leads to; every search looks at them."""
        return self._raw.n_orphans

    @property
    def deleted(self) -> list[int]:
        """Ids that were taken out."""
        return self._raw.deleted

    def delete(self, ids: Iterable[int]) -> None:
        """Takes examples out of every later search; :meth:`save` keeps that. Build again when a good part is gone."""
        self._raw.delete([int(i) for i in ids])

    @property
    def curve(self) -> RecallCurve:
        """Recall at rising efforts, as measured at build or by :meth:`measure`."""
        return RecallCurve(*self._raw.curve())

    def measure(self, queries: Any, *, keep: bool = False) -> RecallCurve:
        """Recall@10 for queries of your own, against the exact search. ``keep`` puts it in the place of the curve that efforts
        are read from: preconditioned gradients are harder to find than what a build measures with."""
        return RecallCurve(*self._raw.measure(as_rows(queries, "queries"), keep))

    def effort_for(self, recall: float) -> Effort | None:
        """The least effort whose measured recall is at least ``recall``; None if none was: then search exactly."""
        found = self._raw.effort_for(float(recall))
        return None if found is None else Effort(*found)

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        recall: float = 0.95,
        effort: Effort | int | None = None,
        datasets: Iterable[int] | None = None,
        exclude: Iterable[int] | None = None,
    ) -> Hits:
        """The best rows per query that the graphs find, with exact scores; fewer than ``k`` where the filter leaves fewer.

        Tries as hard as the measured curve says that ``recall`` takes, or with ``effort`` (nominees per graph; eight times as
        many are scored). Where no measured effort reached ``recall``, the store is searched exactly, and the hits are ``proven``;
        an index of cosines refuses instead, since exact search ranks by products.
        """
        if k < 0:
            raise ValueError(f"k: expected at least 0, found {k}")
        if isinstance(effort, int):
            effort = Effort(effort, 8 * effort)
        if effort is not None and min(effort) < 1:
            raise ValueError(f"effort: expected at least 1, found {tuple(effort)}")
        chosen = effort or self.effort_for(recall)
        only = None if datasets is None else [int(d) for d in datasets]
        without = None if exclude is None else [int(i) for i in exclude]
        if chosen is None:
            if self.settings["metric"] == "cosine":
                raise _ascribe.SearchError(f"recall: expected at most what was measured, {self.curve!r}, found {recall}")
            return self.store.search(queries, k, datasets=only, exclude=[*(without or ()), *self.deleted])
        found = self._raw.search(as_rows(queries, "queries"), k, chosen.ef, chosen.n_exact, only, without)
        return Hits(found, {}, effort=chosen, recall=self.curve.recall_at(chosen))

    def __repr__(self) -> str:
        return f"<Index: {len(self)} rows of {self._raw.dim} numbers in {self.n_graphs} graphs, {self.n_orphans} orphans>"
