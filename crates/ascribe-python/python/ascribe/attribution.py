"""Fit, score, and what scores become: files, shares."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _ascribe
from .progress import Progress, listener
from .registry import Registry
from .store import F32, F64, U64, PathLike, Store, as_rows, unpack_ids
from .table import ShareTable, Table, excerpt

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Fisher", "Scores", "ShareBook", "dataset_scores", "fit", "read_scores", "read_shares", "score", "shares"]


class Fisher:
    """Damped block-Fisher curvature of a store's rows, one block per module."""

    def __init__(self, raw: _ascribe.BlockFisher) -> None:
        self._raw = raw

    @property
    def damping(self) -> float:
        """Relative to each block's mean eigenvalue."""
        return self._raw.damping_rel

    @property
    def n_rows(self) -> int:
        """Rows that were fitted."""
        return self._raw.n_rows

    def precondition(self, queries: Any) -> F64:
        """``(H + λ)⁻¹ q`` of every query, in float64."""
        return self._raw.precondition(as_rows(queries, "queries"))

    def self_influence(self, store: Store, progress: bool | Progress | None = None) -> F64:
        """``gᵀ(H + λ)⁻¹g`` of every row: large for outliers and wrong labels."""
        return self._raw.self_influence(store._raw, listener(progress))

    def save(self, path: PathLike) -> None:
        """Writes a factor file."""
        self._raw.save(os.fspath(path))

    @staticmethod
    def load(path: PathLike, store: Store) -> Fisher:
        """Reads a factor file of :meth:`save`; one of other rows is refused."""
        return Fisher(_ascribe.BlockFisher.load(os.fspath(path), store._raw))

    def __repr__(self) -> str:
        return f"<Fisher of {self.n_rows} rows, damping {self.damping}>"


@dataclass
class Scores:
    """Scores ``[queries, rows]``, positive = the row's presence makes the output likelier.

    ``scores.records = texts`` (one per row) shows what the rows are, in notebooks and data frames.
    """

    ids: U64
    values: F32
    datasets: F64
    """``[queries, datasets]``: exact sums of the scores (before any normalisation of rows)."""
    records: Sequence[str] | None = None
    """Texts of the rows."""

    def top(self, k: int = 10) -> list[list[tuple[int, int, float]]]:
        """Per query the best rows as (dataset, position, score), ties by id."""
        dataset, position = unpack_ids(self.ids)
        return [[(int(dataset[n]), int(position[n]), float(line[n])) for n in self._order(line, k)] for line in self.values]

    def _order(self, line: F32, k: int | None) -> list[int]:
        if k is not None and k < 0:
            raise ValueError(f"k: expected at least 0, found {k}")
        order: list[int] = np.lexsort((self.ids, -line.astype(np.float64)))[:k].tolist()
        return order

    def best(self, k: int | None = 10) -> dict[str, Any]:
        """Columns query, rank, row, id, dataset, position, score (and record) of the ``k`` best rows per query, or of all."""
        orders = [self._order(line, k) for line in self.values]
        row = np.array([n for order in orders for n in order], np.int64)
        query = np.repeat(np.arange(len(orders)), [len(order) for order in orders])
        rank = np.array([r for order in orders for r in range(len(order))], np.int64)
        dataset, position = unpack_ids(self.ids[row])
        place = {"query": query, "rank": rank, "row": row, "id": self.ids[row], "dataset": dataset, "position": position}
        columns: dict[str, Any] = {**place, "score": self.values[query, row]}
        return columns if self.records is None else {**columns, "record": [self.records[n] for n in row.tolist()]}

    def to_pandas(self, k: int | None = 10) -> pd.DataFrame:
        """A ``pandas.DataFrame`` of :meth:`best`."""
        import pandas as pd

        return pd.DataFrame(self.best(k))

    def to_arrow(self, k: int | None = 10) -> pa.Table:
        """A ``pyarrow.Table`` of :meth:`best`."""
        import pyarrow as pa

        return pa.table(self.best(k))

    def write(self, path: PathLike, store: Store, method: str, top_k: int | None = None) -> int:
        """Writes a sealed score file (Parquet), which ``ascribe pay`` and the rest of Ascribe read. Returns its rows."""
        return _ascribe.write_scores(os.fspath(path), store._raw.spec_json, method, self.ids, self.values, top_k, self.datasets)

    def _repr_html_(self) -> str:
        head, lines = "<tr><th>query</th><th>dataset:position</th><th>score</th>", []
        head += "</tr>" if self.records is None else "<th>record</th></tr>"
        best = Scores(self.ids, self.values[:10], self.datasets, self.records).best(5)
        for i in range(len(best["query"])):
            cells = [str(best["query"][i]), f"{best['dataset'][i]}:{best['position'][i]}", f"{best['score'][i]:.6g}"]
            cells += [] if self.records is None else [html.escape(excerpt(best["record"][i]))]
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        caption = f"{self.values.shape[0]} queries, {self.values.shape[1]} rows; the best five of the first ten queries"
        return f"<table><caption>{caption}</caption>{head}{''.join(lines)}</table>"

    def __repr__(self) -> str:
        return f"<Scores: {self.values.shape[0]} queries, {self.values.shape[1]} rows, {self.datasets.shape[1]} datasets>"


def fit(store: Store, damping: float = 0.1, progress: bool | Progress | None = None) -> Fisher:
    """Fits block-Fisher curvature to a store's rows (LoGra, arXiv:2405.13954)."""
    return Fisher(_ascribe.fit(store._raw, damping, listener(progress)))


def score(
    store: Store,
    queries: Any,
    fisher: Fisher | None = None,
    *,
    normalise: str = "none",
    progress: bool | Progress | None = None,
) -> Scores:
    """Scores every row against every query: plain inner products, or influence in the metric of ``fisher``.

    ``normalise``: ``none``, ``unit_query``, ``unit_train``, ``cosine``, ``relat_if``, ``distance``.

    >>> import tempfile
    >>> store = Store.write(tempfile.mkdtemp() + "/s", np.array([[1, 0], [0, 2]], dtype=np.float32))
    >>> score(store, np.array([[3, 1]], dtype=np.float32)).values.tolist()
    [[3.0, 2.0]]
    """
    rows = as_rows(queries, "queries")
    raw = fisher._raw if fisher else None
    ids, values = _ascribe.score(store._raw, rows, raw, normalise, listener(progress))
    return Scores(ids, values, _ascribe.dataset_scores(store._raw, rows, raw))


def dataset_scores(store: Store, queries: Any, fisher: Fisher | None = None) -> F64:
    """Exact influence of whole datasets ``[queries, datasets]``: no row is read, the store keeps sums."""
    return _ascribe.dataset_scores(store._raw, as_rows(queries, "queries"), fisher._raw if fisher else None)


def read_scores(path: PathLike) -> Table:
    """Everything in a score file: method, level, query, dataset, example (2⁶⁴−1 at dataset level), score."""
    return Table(_ascribe.read_scores(os.fspath(path))[0])


class ShareBook:
    """What the policy decided, response by response: integer weights per dataset and owner."""

    def __init__(self, raw: _ascribe.ShareBook) -> None:
        self._raw = raw

    @property
    def coverage(self) -> float:
        """The part of a response's pool that evidence covers."""
        return self._raw.coverage_ppm / 1e6

    def datasets(self) -> ShareTable:
        """A row per response and dataset."""
        return ShareTable(self._raw.datasets())

    def owners(self) -> ShareTable:
        """A row per response and owner."""
        return ShareTable(self._raw.owners())

    def responses(self) -> Table:
        """A row per response: payable, no_proponent, cancelled or too_noisy."""
        return Table(self._raw.responses())

    def write(self, path: PathLike) -> None:
        """Writes ``shares.json``."""
        Path(path).write_bytes(bytes(self._raw.to_json()))

    def __len__(self) -> int:
        return len(self._raw)

    def _repr_html_(self) -> str:
        return self.datasets()._repr_html_()

    def __repr__(self) -> str:
        return f"<ShareBook: {len(self)} responses, coverage {self.coverage:.1%}>"


def shares(
    values: F64,
    owners: Registry | Sequence[tuple[str, str, str]],
    *,
    intervals: npt.NDArray[np.float64] | None = None,
    noise_floor: float | None = None,
    coverage: float = 1.0,
    max_width: float | None = None,
    scores_sha256: str | None = None,
    spec_sha256: str | None = None,
) -> ShareBook:
    """Weighs datasets for responses, in the one documented rounding from floats to integers.

    ``values`` ``[responses, datasets]``: calibrated shares, or raw scores if ``noise_floor`` is given (negatives are netted per
    owner, and a net below it earns nothing). ``owners``: a registry, or a (uuid, name, owner) per dataset. ``intervals``
    ``[responses, datasets, 2]``; without them nothing is known well enough to be payable.
    """
    registry = owners._raw if isinstance(owners, Registry) else None
    datasets = None if isinstance(owners, Registry) else [tuple(o) for o in owners]
    raw = _ascribe.shares(values, registry, datasets, intervals, noise_floor, coverage, scores_sha256, spec_sha256, max_width)
    return ShareBook(raw)


def read_shares(path: PathLike) -> ShareBook:
    """Reads ``shares.json``; shares, owners and verdicts are computed again."""
    return ShareBook(_ascribe.read_shares(os.fspath(path)))
