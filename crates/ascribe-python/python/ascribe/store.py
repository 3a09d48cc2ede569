"""Feature stores: rows on disk, and what is asked of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _ascribe
from .progress import Progress, listener
from .spec import FeatureSpec
from .table import Hits

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Store", "StoreWriter", "as_rows", "pack_ids", "unpack_ids"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]
PathLike = str | os.PathLike[str]


def pack_ids(dataset: Any, position: Any) -> U64:
    """Ids of examples: the dataset's ordinal in the high half, the position within it in the low half.

    >>> pack_ids([0, 1], [5, 0]).tolist()
    [5, 4294967296]
    """
    high, low = np.broadcast_arrays(np.asarray(dataset, dtype=np.uint64), np.asarray(position, dtype=np.uint64))
    if high.size and (int(high.max()) >> 32 or int(low.max()) >> 32):
        raise ValueError("ids: expected ordinals and positions below 2^32, found larger ones")
    return np.ascontiguousarray((high << np.uint64(32)) | low)


def unpack_ids(ids: U64) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Dataset ordinals and positions of ids."""
    return (ids >> np.uint64(32)).astype(np.uint32), (ids & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def as_rows(rows: Any, what: str = "rows") -> F32:
    """A numpy array of what a caller has: a torch tensor is taken off its device, an Arrow column of lists of one length is
    borrowed (pyarrow reads it). A single row becomes a matrix. Another number type than float32 is refused, not rounded."""
    if hasattr(rows, "detach"):
        rows = rows.detach().cpu().contiguous().numpy()
    elif hasattr(rows, "__arrow_c_array__") or hasattr(rows, "__arrow_c_stream__"):
        rows = _of_arrow(rows, what)
    if isinstance(rows, np.ndarray) and rows.ndim == 1:
        rows = rows[None, :]
    if not isinstance(rows, np.ndarray):
        raise TypeError(f"{what}: expected a numpy array or a torch tensor of float32, found {type(rows).__name__}")
    return rows


def _refuse(what: str, array: Any, kind: type[np.generic], n_dims: int) -> None:
    """What the writer refuses of an array's form, said before a store is begun."""
    if not isinstance(array, np.ndarray) or array.dtype != kind:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{what}: expected {kind.__name__}, found {found}; hint: numpy.asarray(x, numpy.{kind.__name__})")
    if array.ndim != n_dims:
        raise ValueError(f"{what}: expected {n_dims} dimensions, found {array.ndim} dimensions, shape {array.shape}")
    if not array.flags.c_contiguous:
        found = "an array that is not C-contiguous; hint: numpy.ascontiguousarray(x)"
        raise ValueError(f"{what}: expected numbers side by side in memory, found {found}")


def _of_arrow(rows: Any, what: str) -> F32:
    """The numbers of an Arrow column ``FixedSizeList<float32>`` where they lie (chunks are joined)."""
    import pyarrow as pa

    column = pa.chunked_array(rows) if hasattr(rows, "__arrow_c_stream__") else pa.array(rows)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_fixed_size_list(column.type) or column.type.value_type != pa.float32():
        raise TypeError(f"{what}: expected an Arrow column of fixed_size_list<float>, found {column.type}")
    numbers = column.flatten()  # that of this slice; lists that are null are left out
    if column.null_count or numbers.null_count:
        raise ValueError(f"{what}: expected no nulls, found {column.null_count} rows and {numbers.null_count} numbers")
    found: F32 = numbers.to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)
    return found


class Store:
    """A finished feature store, open for reading from any number of threads.

    What is open stays as it is while others append, delete or compact. ``spec`` refuses a store of another spec.
    """

    def __init__(self, path: PathLike, spec: FeatureSpec | None = None) -> None:
        self._raw = _ascribe.Store(os.fspath(path), spec.to_json() if spec else None)

    @classmethod
    def _of(cls, raw: _ascribe.Store) -> Store:
        store = cls.__new__(cls)
        store._raw = raw
        return store

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self._raw.path)

    @property
    def spec(self) -> FeatureSpec:
        """What the rows are."""
        return FeatureSpec.from_json(self._raw.spec_json)

    @property
    def spec_sha256(self) -> str:
        """Hash of the spec."""
        return self._raw.spec_sha256

    @property
    def dim(self) -> int:
        """Numbers per row."""
        return self._raw.dim

    @property
    def row_type(self) -> str:
        """``f32``, ``bf16``, ``f16``, ``int8`` or ``int4``."""
        return self._raw.row_type

    @property
    def generation(self) -> int:
        """Number of the generation that is open."""
        return self._raw.generation

    @property
    def n_datasets(self) -> int:
        """One more than the highest dataset ordinal that was ever written."""
        return self._raw.n_datasets

    @property
    def n_shards(self) -> int:
        """Shards."""
        return self._raw.n_shards

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and numbers per row."""
        return len(self), self.dim

    def __len__(self) -> int:
        return self._raw.n_rows

    @property
    def ids(self) -> U64:
        """Ids of all rows (:func:`unpack_ids`)."""
        return self._raw.ids()

    @property
    def norms(self) -> F32:
        """Euclidean norms of all rows as stored."""
        return self._raw.norms()

    def shard(self, i: int) -> F32:
        """Rows of a shard as they lie in the mapped file: no copy, read-only. Only for f32 shards without deleted rows."""
        return self._raw.shard_rows(i)

    def rows(self, start: int = 0, stop: int | None = None) -> F32:
        """Rows ``start .. stop`` as float32, a copy."""
        if start < 0 or (stop is not None and stop < 0):
            raise ValueError("rows: expected places of at least 0, found a negative one")
        return self._raw.rows(start, stop)

    def expand(self, rows: Any) -> F32:
        """Factored rows (``projection="factored:…"``) multiplied out, ``[n, wide]``: what inner products are taken of."""
        return self._raw.expand(as_rows(rows))

    def to_arrow(self, start: int = 0, stop: int | None = None) -> pa.Table:
        """Rows ``start .. stop`` as a ``pyarrow.Table``: id, dataset, position, norm, and ``row`` as lists of ``dim`` float32."""
        import pyarrow as pa

        rows = self.rows(start, stop)
        ids = self.ids[start : start + len(rows)]
        dataset, position = unpack_ids(ids)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), self.dim)
        norm = self.norms[start : start + len(rows)]
        return pa.table({"id": ids, "dataset": dataset, "position": position, "norm": norm, "row": lists})

    def dataset_sums(self) -> tuple[F64, U64]:
        """Exact sums of the rows per dataset ``[K, dim]``, and how many rows each has. Not of factored rows."""
        return self._raw.dataset_sums()

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        datasets: Iterable[int] | None = None,
        exclude: Iterable[int] | None = None,
        companion: str | None = None,
    ) -> Hits:
        """The ``k`` best rows per query by inner product, proven equal to scoring every row in float64.

        ``queries`` is ``[Q, dim]`` float32 (or one query). ``datasets`` keeps to some, ``exclude`` leaves ids out, ``companion``
        (``"int8"``, see :meth:`make_companion`) scans rows in fewer bits: the same hits, faster.
        """
        if k < 0:
            raise ValueError(f"k: expected at least 0, found {k}")
        only = None if datasets is None else [int(d) for d in datasets]
        without = None if exclude is None else [int(i) for i in exclude]
        return Hits(*self._raw.search(as_rows(queries, "queries"), k, companion, only, without))

    def make_companion(self, rows: str = "int8", progress: bool | Progress | None = None) -> None:
        """Writes the rows in fewer bits beside the store, for faster search."""
        _ascribe.make_companion(self._raw, rows, listener(progress))

    def convert(self, out: PathLike, rows: str, progress: bool | Progress | None = None) -> Store:
        """Writes the rows in another row type into a new store."""
        return Store._of(_ascribe.convert(self._raw, os.fspath(out), rows, listener(progress)))

    def delete(self, datasets: Sequence[int] = (), ids: Sequence[int] = ()) -> Store:
        """Withdraws whole datasets or single rows; returns the next generation, open. This one stays as it is."""
        return Store._of(self._raw.delete([int(d) for d in datasets], [int(i) for i in ids]))

    def verify(self) -> dict[str, int]:
        """Hashes every byte and adds up all rows again; raises at the first that is not as it was written."""
        return self._raw.verify()

    @staticmethod
    def merge(inputs: Iterable[PathLike], out: PathLike, progress: bool | Progress | None = None) -> Store:
        """Joins finished stores of one spec (the shards of workers) into a new one."""
        return Store._of(_ascribe.merge([os.fspath(p) for p in inputs], os.fspath(out), listener(progress)))

    @staticmethod
    def write(path: PathLike, rows: Any, ids: U64 | None = None, spec: FeatureSpec | None = None, **settings: Any) -> Store:
        """A store of rows that fit in memory. Without ``ids`` all rows are of dataset 0.

        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> store = Store.write(folder + "/store", np.eye(3, dtype=np.float32))
        >>> store.search(np.array([0, 2, 1], dtype=np.float32), k=1)["row"].tolist()
        [1]
        """
        matrix = as_rows(rows)
        _refuse("rows", matrix, np.float32, 2)
        ids = pack_ids(0, np.arange(len(matrix))) if ids is None else ids
        _refuse("ids", ids, np.uint64, 1)
        spec = spec or FeatureSpec.plain(matrix.shape[1])
        with StoreWriter(path, spec, len(matrix), **settings) as writer:
            done = writer.n_committed
            writer.push(ids[done:], matrix[done:])
            return writer.finish()

    def __repr__(self) -> str:
        return f"<Store {self.path}: {len(self)} rows of {self.dim} numbers, {self.row_type}, generation {self.generation}>"

    def _repr_html_(self) -> str:
        spec = self.spec
        facts = {
            "rows": f"{len(self):,}",
            "numbers per row": f"{self.dim:,}",
            "kept as": self.row_type,
            "datasets": self.n_datasets,
            "generation": self.generation,
            "modules": len(spec.columns),
            "quantity": spec.quantity,
            "projector": spec.projector.get("kind"),
            "spec": self.spec_sha256[:16],
        }
        lines = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in facts.items())
        return f"<table><caption>Store {self.path.name}</caption><tbody>{lines}</tbody></table>"


class StoreWriter:
    """Takes rows and commits them shard by shard; a killed writer resumes where :attr:`n_committed` says.

    ``n_rows`` is what the finished store has. Use as a context manager: leaving it lets go of the store's lock.
    """

    def __init__(
        self, path: PathLike, spec: FeatureSpec, n_rows: int, *, row_type: str = "f32", rows_per_shard: int = 1024
    ) -> None:
        if n_rows < 0 or rows_per_shard < 1:
            raise ValueError(f"rows: expected counts of at least 0 and 1, found {n_rows} and {rows_per_shard}")
        self._raw = _ascribe.StoreWriter(os.fspath(path), spec.to_json(), n_rows, row_type, rows_per_shard)

    @classmethod
    def append(cls, path: PathLike, spec: FeatureSpec, n_rows: int) -> StoreWriter:
        """Goes on with a finished store: ``n_rows`` more rows, its next generation."""
        writer = cls.__new__(cls)
        writer._raw = _ascribe.StoreWriter.append(os.fspath(path), spec.to_json(), n_rows)
        return writer

    @property
    def n_committed(self) -> int:
        """Rows that are durable: push those behind them."""
        return self._raw.n_committed

    @property
    def n_taken(self) -> int:
        """Rows taken so far."""
        return self._raw.n_taken

    def push(self, ids: U64, rows: Any) -> None:
        """Takes ``[n, dim]`` float32 rows with their ids, all or none."""
        self._raw.push(ids, as_rows(rows))

    def finish(self) -> Store:
        """Seals the store and opens it."""
        return Store._of(self._raw.finish())

    def close(self) -> None:
        """Lets go of the store; what is committed stays."""
        self._raw.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
