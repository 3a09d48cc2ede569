"""Files of other tools become stores and score files: bergson, LogIX, TRAK, kronfluence, dattri.

Gradients: :func:`bergson_gradients`, :func:`logix_gradients`, :func:`trak_gradients`, :func:`dattri_gradients` stream into a
store (kronfluence keeps none per example). Scores: :func:`bergson_scores`, :func:`trak_scores`, :func:`kronfluence_scores`,
:func:`dattri_scores` give a :class:`~ascribe.Scores`, which :func:`write_scores` seals into a score file (LogIX writes none).

Scores become ``[query, train]``, positive = proponent. What a tool means by its sign is its caller's to know: ``sign=-1`` turns
them. Rows keep the tool's projection, so they compare with rows of the same run alone; their spec says the tool and the digest
of its notes.

::

    from ascribe.migrate import bergson_gradients
    store = bergson_gradients("runs/train", "out/store", datasets=dataset_of_each)
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _ascribe
from .attribution import Scores
from .spec import ZEROS, Column, FeatureSpec, identity
from .store import F32, PathLike, Store, StoreWriter, pack_ids

__all__ = [
    "bergson_gradients",
    "bergson_scores",
    "dattri_gradients",
    "dattri_scores",
    "kronfluence_scores",
    "logix_gradients",
    "trak_gradients",
    "trak_scores",
    "write_scores",
]

_CHUNK_NUMBERS = 4 << 20


@contextmanager
def _reading(path: PathLike, tool: str) -> Iterator[None]:
    """Whatever a file that is not what it should be makes Python say becomes one clear error."""
    wrong = (KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, EOFError, RuntimeError, SyntaxError)
    try:
        yield
    except (
        *wrong,
        tokenize.TokenError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:
        raise ValueError(
            f"{path}: expected what {tool} writes, found something else ({type(error).__name__}: {error})"
        ) from error


def bergson_gradients(path: PathLike, out: PathLike, datasets: Sequence[int] | None = None, **settings: Any) -> Store:
    """A bergson index (``bergson build``): ``gradients.bin`` and ``info.json``, one group of columns per module."""
    folder = Path(path)
    with _reading(folder, "bergson"):
        info = _json(folder / "info.json")
        if info.get("attribute_tokens"):
            raise ValueError(f"{folder}: expected a row per example, found rows per token; hint: build without attribute_tokens")
        name = info["base_dtype"] if "base_dtype" in info else info["dtype"]["formats"][0]
        kind, wide = _bergson_kind(name)
        sizes = {str(name): int(size) for name, size in info["grad_sizes"].items()}
        shape = (int(info["num_grads"]), sum(sizes.values()))
        rows = _map(folder / "gradients.bin", kind, shape)
        spec = _spec("bergson", _digest(folder / "info.json"), list(sizes.items()))
    return _store(lambda start, stop: wide(rows[start:stop]), shape[0], out, spec, datasets, settings)


def bergson_scores(path: PathLike, datasets: Sequence[int] | None = None, sign: int = 1) -> Scores:
    """A bergson score folder (``bergson score``): ``scores.bin`` and ``info.json``. Rows of a per-token index are refused."""
    folder = Path(path)
    with _reading(folder, "bergson"):
        info = _json(folder / "info.json")
        if info.get("attribute_tokens"):
            raise ValueError(f"{folder}: expected a score per example, found scores per token")
        fields: Any = info["dtype"]
        if (folder / "candidates.npy").exists():
            raise ValueError(f"{folder}: expected scores of every row, found those of candidates; hint: score without candidates")
        names, formats = fields["names"], fields["formats"]
        both = list(zip(names, formats, strict=True))
        kinds = [np.dtype(np.bool_) if name.startswith("written_") else _bergson_kind(f)[0] for name, f in both]
        layout = {"names": names, "formats": kinds, "offsets": fields["offsets"], "itemsize": fields["itemsize"]}
        kind: np.dtype[Any] = np.dtype(layout)  # type: ignore[call-overload]
        wide = {name: _bergson_kind(f)[1] for name, f in both if name.startswith("score_")}
        table = _map(folder / "scores.bin", kind, (int(info["num_rows"]),))
        n = int(info["num_scores"])
        for i in range(n):
            if not table[f"written_{i}"].all():
                raise ValueError(f"{folder}: expected a finished run, found cells of query {i} that were never written")
        values = np.stack([wide[f"score_{i}"](table[f"score_{i}"]) for i in range(n)])
    return _scores(values, datasets, sign)


def logix_gradients(path: PathLike, out: PathLike, datasets: Sequence[int] | None = None, **settings: Any) -> Store:
    """A LogIX log folder: ``log_*.mmap`` with ``*_metadata.json`` beside each. ``data_ids.json`` in the store keeps its ids."""
    folder = Path(path)
    files = sorted(folder.glob("log_*_metadata.json"), key=lambda p: [int(x) for x in p.name.split("_") if x.isdigit()])
    if not files:
        raise ValueError(f"{folder}: expected log_*_metadata.json, found none")
    with _reading(folder, "LogIX"):
        entries: list[tuple[Path, dict[str, Any]]] = []
        for file in files:
            data = file.with_name(file.name.removesuffix("_metadata.json") + ".mmap")
            entries += [(data, entry) for entry in _json(file)]
        first = entries[0][1]
        names = [".".join(p[:-1]) if p[-1] in ("grad", "forward", "backward") else ".".join(p) for p in first["path"]]
        sizes = [math.prod(map(int, shape)) for shape in first["shape"]]
        if len(names) != len(sizes) or min(sizes, default=0) < 1:
            raise ValueError(f"{folder}: expected a shape per module, found {len(sizes)} for {len(names)} modules")
        data_ids = [entry["data_id"] for _, entry in entries]
    maps: dict[Path, Any] = {}

    def rows(start: int, stop: int) -> F32:
        found = np.empty((stop - start, sum(sizes)), np.float32)
        with _reading(folder, "LogIX"):
            for row, (data, entry) in zip(found, entries[start:stop], strict=True):
                if [math.prod(map(int, shape)) for shape in entry["shape"]] != sizes:
                    raise ValueError(
                        f"{data}: expected blocks of {sizes} numbers, found {entry['shape']} of {entry['data_id']!r}"
                    )
                if data not in maps:
                    maps[data] = np.memmap(data, np.uint8, "r")
                kind, size, at = _floats(np.dtype(entry["dtype"])), int(entry["block_size"]), int(entry["offset"])
                raw = maps[data][max(at, 0) : max(at, 0) + max(size, 0) * kind.itemsize]
                if at < 0 or len(raw) != size * kind.itemsize:
                    raise ValueError(f"{data}: expected {size} numbers at {at}, found the end of the file")
                row[:] = np.frombuffer(raw.tobytes(), kind)
        return found

    spec = _spec("logix", _digest(*files), list(zip(names, sizes, strict=True)))
    store = _store(rows, len(entries), out, spec, datasets, settings)
    (store.path / "data_ids.json").write_text(json.dumps(data_ids))
    return store


def trak_gradients(
    path: PathLike,
    out: PathLike,
    model_id: int = 0,
    what: str = "features",
    datasets: Sequence[int] | None = None,
    **settings: Any,
) -> Store:
    """A TRAK ``save_dir``: ``<model_id>/features.mmap`` (``what="features"``) or ``grads.mmap`` (``"grads"``)."""
    if what not in ("features", "grads"):
        raise ValueError(f"what: expected 'features' or 'grads', found {what!r}")
    folder = Path(path)
    with _reading(folder, "TRAK"):
        rows = _array(folder / str(model_id) / f"{what}.mmap")
        done = folder / str(model_id) / "_is_featurized.mmap"
        if done.exists() and not np.load(done, mmap_mode="r", allow_pickle=False).all():
            raise ValueError(f"{folder}: expected every example featurized, found some that are not")
        spec = _spec(f"trak_{what}", _digest(folder / "metadata.json"), [("all", int(rows.shape[1]))], str(model_id))
    return _store(lambda start, stop: rows[start:stop], len(rows), out, spec, datasets, settings)


def trak_scores(path: PathLike, experiment: str, datasets: Sequence[int] | None = None, sign: int = 1) -> Scores:
    """A TRAK ``save_dir``: ``scores/<experiment>.mmap``, kept as ``[train, targets]``."""
    with _reading(path, "TRAK"):
        values = _array(Path(path) / "scores" / f"{experiment}.mmap")
    return _scores(values.T, datasets, sign)


def kronfluence_scores(path: PathLike, datasets: Sequence[int] | None = None, sign: int = 1) -> Scores:
    """kronfluence's ``pairwise_scores.safetensors`` (or its folder): ``[query, train]``; per-module scores are added up."""
    file = Path(path)
    if file.is_dir():
        file = file / "pairwise_scores.safetensors"
    with _reading(file, "kronfluence"):
        tensors = _safetensors(file)
        if not tensors:
            raise ValueError(f"{file}: expected scores, found no tensor")
        values, *others = tensors.values()
        if others:
            values = values.astype(np.float64)
            for tensor in others:
                if tensor.shape != values.shape:
                    raise ValueError(f"{file}: expected one shape, found {values.shape} and {tensor.shape}")
                values += tensor
    return _scores(values, datasets, sign)


def dattri_scores(path: PathLike, datasets: Sequence[int] | None = None, sign: int = 1) -> Scores:
    """A dattri score tensor ``[train, test]``, saved with ``torch.save`` or ``numpy.save``."""
    with _reading(path, "dattri"):
        values = _matrix(path)
    return _scores(values.T, datasets, sign)


def dattri_gradients(path: PathLike, out: PathLike, datasets: Sequence[int] | None = None, **settings: Any) -> Store:
    """A tensor of per-example gradients ``[train, dim]``, saved with ``torch.save`` or ``numpy.save``."""
    with _reading(path, "dattri"):
        rows = _matrix(path)
        spec = _spec("dattri", _digest(Path(path)), [("all", int(rows.shape[1]))])
    return _store(lambda start, stop: rows[start:stop], len(rows), out, spec, datasets, settings)


def write_scores(scores: Scores, out: PathLike, method: str, top_k: int | None = None) -> int:
    """Writes imported scores as a sealed score file, which ``ascribe pay run --scores`` takes. Returns its rows."""
    spec = FeatureSpec.plain(1, quantity=f"scores_of_{method}")
    return _ascribe.write_scores(str(out), spec.to_json(), method, scores.ids, scores.values, top_k, scores.datasets)


def _json(path: Path) -> Any:
    with path.open() as stream:
        return json.load(stream)


def _digest(*files: Path) -> str:
    hasher = hashlib.sha256()
    for file in files:
        hasher.update(file.read_bytes() if file.exists() else b"")
    return hasher.hexdigest()


def _bergson_kind(name: Any) -> tuple[np.dtype[Any], Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]:
    """A number type of bergson, as numpy keeps it, and how it becomes one that numpy computes with."""
    if name == "bfloat16":  # known to numpy only where ml_dtypes was imported
        return np.dtype("<u2"), lambda bits: (bits.astype(np.uint32) << 16).view(np.float32)
    return _floats(np.dtype(name).base), lambda numbers: numbers


def _floats(kind: np.dtype[Any]) -> np.dtype[Any]:
    """Refuses what is no real number: object arrays would be read as addresses."""
    if kind.kind != "f" or kind.itemsize > 8:
        raise ValueError(f"numbers: expected float16, float32 or float64, found {kind}")
    return kind


def _array(path: Path) -> npt.NDArray[Any]:
    """A matrix of an .npy file (whatever its name), mapped."""
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    _floats(values.dtype)
    if values.ndim != 2:
        raise ValueError(f"{path}: expected a matrix, found shape {values.shape}")
    return np.asarray(values)


def _map(path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    expected = kind.itemsize * math.prod(shape) if min(shape) >= 0 else -1
    found = path.stat().st_size
    if found != expected:
        raise ValueError(f"{path}: expected {expected} bytes for {shape} of {kind}, found {found}")
    if expected == 0:
        return np.zeros(shape, kind)
    return np.memmap(path, kind, "r", shape=shape)


def _matrix(path: PathLike) -> npt.NDArray[Any]:
    if str(path).endswith(".npy"):
        return _array(Path(path))
    import torch

    values: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(values, torch.Tensor) or values.is_complex():
        found = type(values).__name__ if not isinstance(values, torch.Tensor) else values.dtype
        raise ValueError(f"{path}: expected a tensor of real numbers, found {found}")
    values = values.detach().to_dense().float().numpy()
    if values.ndim != 2:
        raise ValueError(f"{path}: expected a matrix, found shape {values.shape}")
    return np.asarray(values)


def _safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Tensors of a safetensors file; read here, since its library is no dependency of this package."""
    if path.stat().st_size < 8:
        raise ValueError(f"{path}: expected a safetensors file, found {path.stat().st_size} bytes")
    data = np.memmap(path, np.uint8, "r")
    base = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if base > len(data):
        raise ValueError(f"{path}: expected a safetensors file, found {len(data)} bytes")
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    tensors = {}
    for name, entry in json.loads(data[8:base].tobytes()).items():
        if name == "__metadata__":
            continue
        start, end = map(int, entry["data_offsets"])
        raw = data[base + start : base + end] if 0 <= start <= end else data[:0]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] in kinds:
            values = np.frombuffer(raw, kinds[entry["dtype"]])
        else:
            raise ValueError(f"{path}: expected floats in {name!r}, found {entry['dtype']}")
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def _spec(tool: str, notes: str, sizes: Sequence[tuple[str, int]], checkpoint: str = "final") -> FeatureSpec:
    columns, start = [], 0
    for name, size in sizes:
        columns.append(Column(name, start, int(size)))
        start += int(size)
    return FeatureSpec(notes, checkpoint, f"gradient_of_{tool}", tool, "none", identity(), tuple(columns), start, ZEROS)


def _ids(datasets: Sequence[int] | None, n: int) -> Any:
    ordinals = np.zeros(n, np.int64) if datasets is None else np.asarray(datasets)
    if ordinals.shape != (n,) or (n and (ordinals.dtype.kind not in "iu" or ordinals.min() < 0)):
        raise ValueError(
            f"datasets: expected {n} ordinals of at least 0, one per example, found {ordinals.dtype} {ordinals.shape}"
        )
    positions = np.zeros(n, np.int64)
    for ordinal in np.unique(ordinals):
        mask = ordinals == ordinal
        positions[mask] = np.arange(int(mask.sum()))
    return pack_ids(ordinals, positions)


def _chunks(n: int, dim: int, done: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK_NUMBERS // max(1, dim))
    for start in range(done, n, step):
        yield start, min(start + step, n)


def _store(
    rows: Callable[[int, int], npt.NDArray[Any]],
    n: int,
    out: PathLike,
    spec: FeatureSpec,
    datasets: Sequence[int] | None,
    settings: dict[str, Any],
) -> Store:
    ids = _ids(datasets, n)
    with StoreWriter(out, spec, n, **settings) as writer:
        for start, stop in _chunks(n, spec.dim, writer.n_committed):
            writer.push(np.ascontiguousarray(ids[start:stop]), np.ascontiguousarray(rows(start, stop), dtype=np.float32))
        return writer.finish()


def _scores(values: npt.NDArray[Any], datasets: Sequence[int] | None, sign: int) -> Scores:
    if sign not in (1, -1):
        raise ValueError(f"sign: expected 1 or -1, found {sign}")
    if values.ndim != 2:
        raise ValueError(f"scores: expected a matrix, found shape {values.shape}")
    for query, line in enumerate(values):  # line by line: whole matrices beside this one would be memory that nobody expects
        if not np.isfinite(line).all():
            row = int(np.flatnonzero(~np.isfinite(line))[0])
            raise ValueError(f"scores: expected finite numbers, found {line[row]} of query {query}, example {row}")
    turned = np.array(values, dtype=np.float32, order="C")  # the one copy: the tool may write its file again
    if sign == -1:
        np.negative(turned, out=turned)
    if not all(np.isfinite(line).all() for line in turned):
        raise ValueError("scores: expected numbers that float32 holds, found larger ones")
    ids = _ids(datasets, turned.shape[1])
    ordinals = (ids >> np.uint64(32)).astype(np.int64)
    sums = np.zeros((len(turned), int(ordinals.max(initial=-1)) + 1))
    for query, line in enumerate(turned):
        sums[query] = np.bincount(ordinals, weights=line, minlength=sums.shape[1])
    return Scores(ids, turned, sums)
