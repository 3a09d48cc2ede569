"""Tables of results: numpy columns, and Arrow without copies for whoever reads it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _ascribe

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Hits", "ShareTable", "Table", "excerpt"]

_SHOWN = 20
_TEXT_SHOWN = 160


def excerpt(text: str) -> str:
    """The beginning of a record's text, for a cell."""
    words = " ".join(text[: 4 * _TEXT_SHOWN].split())
    return words if len(words) <= _TEXT_SHOWN else words[:_TEXT_SHOWN] + " …"


class Table:
    """Columns of one length. ``table["score"]`` borrows a column; ``to_arrow`` and any library that speaks the Arrow PyCapsule
    interface (polars, duckdb, pyarrow) borrow all of it. ``to_pandas`` copies, since data frames are written to."""

    def __init__(self, raw: _ascribe.Table) -> None:
        self._raw = raw

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return self._raw.names

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, name: str) -> Any:
        return self._raw.column(name)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows as dicts of Python values."""
        columns = [self[name] for name in self.names]
        lists = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns]
        for values in zip(*lists, strict=True):
            yield dict(zip(self.names, values, strict=True))

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]:
        return self._raw.__arrow_c_array__(requested_schema)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._raw.__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> object:
        return self._raw.__arrow_c_schema__()

    def to_arrow(self) -> pa.Table:
        """A ``pyarrow.Table``; numbers and texts are not copied."""
        import pyarrow as pa

        return pa.Table.from_batches([pa.record_batch(self)])

    def to_pandas(self) -> pd.DataFrame:
        """A ``pandas.DataFrame``."""
        import pandas as pd

        return pd.DataFrame({name: self[name] for name in self.names})

    def to_dict(self) -> dict[str, Any]:
        """Columns by name."""
        return {name: self[name] for name in self.names}

    def _caption(self) -> str:
        return f"{len(self)} rows"

    def _cell(self, name: str, value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6g}"
        return html.escape(str(value))

    def _repr_html_(self) -> str:
        names, lines = self.names, []
        for i, row in enumerate(self.rows()):
            names = list(row)
            if i == _SHOWN:
                more = len(self) - _SHOWN
                lines.append(f'<tr><td colspan="{len(names)}">… {more} more</td></tr>')
                break
            lines.append("<tr>" + "".join(f"<td>{self._cell(n, v)}</td>" for n, v in row.items()) + "</tr>")
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        caption = f"<caption>{html.escape(self._caption())}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._caption()}; {', '.join(self.names)}>"


class Hits(Table):
    """Best rows per query, best first: query, rank, row, id, dataset, position, score. Scores are exact in any case.

    ``hits.records = texts`` (one per row of the store) shows what the rows are, in notebooks and data frames.
    """

    records: Sequence[str] | None = None
    """Texts of the store's rows."""

    def __init__(
        self,
        raw: _ascribe.Table,
        certificate: dict[str, Any],
        *,
        effort: tuple[int, int] | None = None,
        recall: float = 1.0,
    ) -> None:
        super().__init__(raw)
        self.certificate = certificate
        """``rows`` scanned, how they are kept (``scanned``), and per query how many were scored again (``rescored``). All others
        are proven to lie below the k-th hit. Empty for hits of an approximate index."""
        self.effort = effort
        """Of an approximate index: rows that each graph nominated, and nominees that were scored exactly."""
        self.recall = recall
        """Mean part of the true best rows that this effort found when it was measured; 1 if proven, NaN if never measured."""

    @property
    def proven(self) -> bool:
        """Whether no row can be missing."""
        return self.effort is None

    def of_query(self, query: int) -> dict[str, Any]:
        """The columns of one query's hits."""
        mask = self["query"] == query
        return {name: self[name][mask] for name in self.names}

    def to_pandas(self) -> pd.DataFrame:
        """A ``pandas.DataFrame``, with a column ``record`` if the texts are known."""
        frame = super().to_pandas()
        if self.records is not None:
            frame["record"] = [self.records[i] for i in self["row"].tolist()]
        return frame

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows as dicts of Python values, with ``record`` if the texts are known."""
        for row in super().rows():
            yield row if self.records is None else {**row, "record": self.records[row["row"]]}

    def _cell(self, name: str, value: Any) -> str:
        return html.escape(excerpt(value)) if name == "record" else super()._cell(name, value)

    def _caption(self) -> str:
        if self.effort is not None:
            return f"{len(self)} hits by an approximate index, recall {self.recall:.3f} when measured"
        rescored = self.certificate["rescored"]
        return (
            f"{len(self)} hits of {len(rescored)} queries, proven best of {self.certificate['rows']} rows "
            f"({self.certificate['scanned']}; {sum(rescored)} scored again)"
        )


class ShareTable(Table):
    """Shares per response, with intervals where there are any."""

    def _cell(self, name: str, value: Any) -> str:
        if name == "share":
            width = max(0.0, min(1.0, float(value))) * 100
            bar = f"background:linear-gradient(90deg,#9ecae1 {width:.1f}%,transparent {width:.1f}%)"
            return f'<span style="display:inline-block;min-width:7em;{bar}">{value:.1%}</span>'
        if name in ("low", "high"):
            return f"{value:.1%}"
        return super()._cell(name, value)
