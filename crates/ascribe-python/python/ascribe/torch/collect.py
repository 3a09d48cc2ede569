"""From a model and examples to a feature store: one row per example, resumable, in parallel over ranks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from .._ascribe import SpecMismatchError
from ..progress import Progress, listener
from ..spec import FeatureSpec
from ..store import F32, U64, PathLike, Store, StoreWriter, pack_ids, unpack_ids
from .data import IGNORED, Sequences, corpus_digest, example_ids, model_digest
from .projection import Factoring, Projection
from .recorder import Recorder
from .taps import Tap, find_taps

__all__ = ["Collector", "Loss", "causal_lm_loss", "collect", "gradients"]

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch)`` is one number per example ``[B]``."""


def causal_lm_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Summed next-token cross-entropy per sequence, in nats; labels of −100 do not count."""
    labels = batch.get("labels", batch["input_ids"])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    output = model(**inputs, use_cache=False) if hasattr(model, "config") else model(**inputs)
    logits = output.logits if hasattr(output, "logits") else output
    targets = labels[:, 1:]
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none")
    return losses.sum(1)


class Collector:
    """Per-example gradients of one model, projected.

    ``k`` columns on either side of every module (or ``(k_in, k_out)``), drawn from ``seed`` and the module's name exactly as the
    Rust side draws them; or, by the command line's words, ``projection="full"``, ``"sparse:DIM[:NNZ]"``,
    ``"masked:INxOUT:DIM[:NNZ]"`` or ``"factored:INxOUT:RANK"``. ``norms`` and ``biases`` add these vectors as they are.
    ``moments`` are Adam's second moments by parameter name: gradients are divided by their roots. ``autocast`` runs the passes
    in that number type. The model is put into evaluation mode and its parameters ask for no gradient while rows are made; both
    are restored.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss | None = None,
        loss_name: str | None = None,
        k: int | tuple[int, int] = 16,
        seed: int = 7,
        projection: str | None = None,
        modules: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        embedding: bool = False,
        norms: bool = False,
        biases: bool = False,
        autocast: torch.dtype | None = None,
        moments: dict[str, Tensor] | None = None,
        eps: float = 1e-8,
    ) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
            hint = "torch.distributed.fsdp.fully_shard (FSDP2) keeps them"
            raise ValueError(
                f"model: expected parameters with their shapes, found FullyShardedDataParallel (FSDP1); hint: {hint}"
            )
        self.model, self.loss = model, loss or causal_lm_loss
        default = "next_token_nll_sum" if loss is None else getattr(loss, "__name__", "loss")
        self.loss_name = loss_name or default
        self.projection, self.autocast = Projection.read(projection, seed, k), autocast
        settings: dict[str, Any] = {"modules": modules, "exclude": exclude, "embedding": embedding}
        settings |= {"norms": norms, "biases": biases, "projection": self.projection}
        self.taps, columns = find_taps(model, **settings)
        self.normalizer = "none"
        if moments is not None:
            scales, digest = _scales(self.taps, moments, eps)
            self.taps, columns = find_taps(model, **settings, scales=scales)
            self.normalizer = f"adam_v:{digest}"
        self.columns = tuple(columns)
        self.wide = self.dim = columns[-1].start + columns[-1].len
        self.factoring: Factoring | None = None
        if self.projection.kind == "factored":
            shapes = {tap.name: tap.shape for tap in self.taps}
            self.factoring = Factoring.new(self.projection.rank, columns, [shapes[c.name] for c in columns])
            self.columns, self.dim = self.factoring.columns, self.factoring.dim
        self.device = next(model.parameters()).device

    def spec(self, model: str, corpus: str, checkpoint: str = "final") -> FeatureSpec:
        """What the rows are. ``model`` and ``corpus`` are SHA-256 in hex."""
        quantity = "gradient" if self.autocast is None else f"gradient_{str(self.autocast).removeprefix('torch.')}"
        quantity = quantity.replace("bfloat16", "bf16")
        projector = self.projection.spec()
        return FeatureSpec(
            model, checkpoint, quantity, self.loss_name, self.normalizer, projector, self.columns, self.dim, corpus
        )

    def check(self, store: Store) -> None:
        """Refuses a store whose rows are not of these settings: inner products with them would say nothing."""
        theirs = store.spec
        own = self.spec(theirs.model, theirs.corpus, theirs.checkpoint)
        for field in ("quantity", "loss", "normalizer", "projector", "dim", "columns"):
            expected, found = getattr(theirs, field), getattr(own, field)
            if expected != found:
                words = (expected, found) if field != "columns" else ([c.name for c in expected], [c.name for c in found])
                raise SpecMismatchError(f"{field} of the rows: expected {words[0]} as in {store.path}, found {words[1]}")

    def stored(self, rows: Tensor) -> Tensor:
        """Projected gradients ``[B, wide]`` as they are kept, ``[B, dim]``."""
        return rows if self.factoring is None else self.factoring.of(rows)

    def note(self, path: Path) -> None:
        """Writes what a spec does not tell of factored rows beside them: the shape of each module's matrix."""
        if self.factoring is not None:
            (path / "layout.json").write_text(json.dumps(self.factoring.shapes))

    def rows(self, batch: Any) -> F32:
        """The rows ``[B, dim]`` of one batch."""
        with self.prepared():
            return self._rows(batch)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The model as rows need it: evaluation mode, no gradients of parameters."""
        # Checkpointing works in training mode alone: what checkpoints keeps that mode, without a dropout of its own.
        training = [m for m in self.model.modules() if m.training]
        quiet = [m for m in training if not getattr(m, "gradient_checkpointing", False)]
        rates = [(m, name, getattr(m, name)) for m in training if m not in quiet for name in vars(m) if name.endswith("dropout")]
        rates = [rate for rate in rates if isinstance(rate[2], float)]
        wanted = [p for p in self.model.parameters() if p.requires_grad]
        for module in quiet:
            module.training = False
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)
            for module in quiet:
                module.training = True
            for module, name, rate in rates:
                setattr(module, name, rate)

    def _rows(self, batch: Any) -> F32:
        recorder = Recorder(self.model, self.taps, self.wide, start_graph=True)
        with torch.enable_grad(), recorder.recording(_batch_size(batch), self.device) as rows:
            with self._numbers():
                losses = self.loss(self.model, batch)
            if losses.shape != (len(rows),):
                raise ValueError(f"loss: expected one number per example, shape ({len(rows)},), found {tuple(losses.shape)}")
            torch.autograd.backward(losses.sum())
        found: F32 = self.stored(rows).cpu().numpy()
        return found

    def _numbers(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)


def _batch_size(batch: Any) -> int:
    first = batch
    while not isinstance(first, Tensor):
        first = next(iter(first.values())) if hasattr(first, "values") else first[0]
    return len(first)


def _scales(taps: Sequence[Tap], moments: dict[str, Tensor], eps: float) -> tuple[dict[str, Tensor], str]:
    """Factors ``1/(√v + ε)`` as ``[O, I]`` per module, and a digest of all of them."""
    scales, hasher = {}, hashlib.sha256()
    for tap in taps:
        v = moments.get(tap.parameter)
        if v is None:
            raise ValueError(f"moments: expected those of `{tap.parameter}`, found none")
        v = v.detach().float().cpu()
        if not bool(torch.isfinite(v).all()) or bool((v < 0).any()):
            raise ValueError(f"moments of `{tap.parameter}`: expected finite numbers of at least 0, found others")
        v = v.reshape(-1, 1) if tap.fan_in == 1 else v.mT if tap.turned else v.flatten(1)
        if tuple(v.shape) != (tap.fan_out, tap.fan_in):
            raise ValueError(f"moments of `{tap.parameter}`: expected {(tap.fan_out, tap.fan_in)}, found {tuple(v.shape)}")
        factors = (1.0 / (v.sqrt() + eps)).contiguous()
        hasher.update(f"{tap.name}\n".encode() + factors.numpy().tobytes())
        scales[tap.name] = factors
    return scales, hasher.hexdigest()


def gradients(model: nn.Module, batch: Any, *, store: Store | None = None, **settings: Any) -> F32:
    """Rows of one batch, for queries: the settings must be those of the store that they are compared with. Give that ``store``,
    and rows of other settings are refused (:class:`ascribe.SpecMismatchError`)."""
    collector = Collector(model, **settings)
    if store is not None:
        collector.check(store)
    if not isinstance(batch, (dict, Tensor, tuple)) and settings.get("loss") is None:
        sequences = Sequences.read(batch)
        batch = sequences.batch(range(len(sequences)), collector.device)
    return collector.rows(batch)


def collect(
    model: nn.Module,
    data: Any,
    out: PathLike,
    *,
    batch_size: int = 8,
    n_rows: int | None = None,
    datasets: Sequence[int] | None = None,
    dataset_names: Sequence[str] = ("data",),
    model_sha256: str | None = None,
    corpus_sha256: str | None = None,
    checkpoint: str = "final",
    row_type: str = "f32",
    progress: bool | Progress | None = None,
    **settings: Any,
) -> Store:
    """Streams a projected gradient per example into the store ``out``; a call that was killed goes on where it stopped.

    ``data`` is token sequences (a matrix of ids, a list of lists, a dataset with ``input_ids``), or, with a ``loss`` of your own,
    an iterable of batches in a fixed order, such as a ``DataLoader`` without shuffling. ``datasets`` gives each one's dataset.
    ``settings`` are those of :class:`Collector`.

    Under ``torch.distributed`` every rank makes the rows of its part of the sequences in a store of its own; the last step joins
    them into ``out``, equal to one process's store. Batches are taken as the rank's own: there ``datasets`` are the rank's, too.
    """
    collector = Collector(model, **settings)
    model_sha256 = model_sha256 or model_digest(collector.model)
    if settings.get("loss") is not None:
        if corpus_sha256 is None:
            corpus_sha256 = hashlib.sha256(f"batches of {Path(out).name}".encode()).hexdigest()
        spec = collector.spec(model_sha256, corpus_sha256, checkpoint)
        return _collect_batches(collector, data, Path(out), spec, datasets, n_rows, row_type, listener(progress))
    sequences = Sequences.read(data)
    ids = example_ids(datasets, len(sequences))
    corpus_sha256 = corpus_sha256 or corpus_digest(sequences, ids, dataset_names)
    spec = collector.spec(model_sha256, corpus_sha256, checkpoint)
    rank, world = _place()
    part, path = _part(len(sequences), rank, world), _part_path(Path(out), rank, world)

    def rows(done: int) -> Iterator[tuple[U64, F32]]:
        extra = _passes_to_keep_step(model, len(range(part.start + done, part.stop, batch_size)))
        for indices in sequences.batches(part.start + done, part.stop, batch_size):
            yield ids[indices.start : indices.stop], collector._rows(sequences.batch(indices, collector.device))
        for _ in range(extra):
            collector._rows(sequences.batch([0], collector.device))

    store = _fill(collector, path, spec, len(part), row_type, rows, listener(progress))
    return _join(store, Path(out), rank, world)


def _fill(
    collector: Collector,
    path: Path,
    spec: FeatureSpec,
    n_rows: int,
    row_type: str,
    rows: Callable[[int], Iterable[tuple[U64, F32]]],
    progress: Progress | None,
) -> Store:
    per_shard = max(1, min(1024, (16 << 20) // spec.dim))
    with StoreWriter(path, spec, n_rows, row_type=row_type, rows_per_shard=per_shard) as writer, collector.prepared():
        done = writer.n_committed
        if progress:
            progress.start("gradients", n_rows, "rows")
            progress.advance(done)
        for ids, found in rows(done):
            writer.push(ids, found)
            if progress:
                progress.advance(len(found))
        collector.note(path)
        store = writer.finish()
    if progress:
        progress.finish(f"{n_rows} rows")
    return store


def _collect_batches(
    collector: Collector,
    batches: Iterable[Any],
    out: Path,
    spec: FeatureSpec,
    datasets: Sequence[int] | None,
    n_rows: int | None,
    row_type: str,
    progress: Progress | None,
) -> Store:
    """Batches of anything. Without a known number of rows they wait in a file until all are there."""
    if isinstance(getattr(batches, "sampler", None), (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)):
        sampler = type(getattr(batches, "sampler", None)).__name__
        raise ValueError(f"data: expected batches in a fixed order, found a loader with a {sampler}; hint: shuffle=False")
    rank, world = _place()
    path = _part_path(out, rank, world)
    if n_rows is None:
        source: Any = getattr(batches, "dataset", None)
        n_rows = len(source) if hasattr(source, "__len__") and not getattr(batches, "drop_last", False) else None
    if world > 1 or n_rows is None:
        with tempfile.TemporaryFile(dir=_folder(path.parent)) as spool, collector.prepared():
            n_rows = 0
            for batch in batches:
                found = collector._rows(_on(batch, collector.device))
                spool.write(found.tobytes())
                n_rows += len(found)
            ids = _apart(example_ids(datasets, n_rows), rank, world)

            def spooled(done: int) -> Iterator[tuple[U64, F32]]:
                width = 4 * collector.dim
                spool.seek(done * width)
                for start in range(done, n_rows, 256):
                    stop = min(start + 256, n_rows)
                    yield (
                        ids[start:stop],
                        np.frombuffer(spool.read((stop - start) * width), np.float32).reshape(-1, collector.dim),
                    )

            store = _fill(collector, path, spec, n_rows, row_type, spooled, progress)
        return _join(store, out, rank, world)
    ids = example_ids(datasets, n_rows)

    def rows(done: int) -> Iterator[tuple[U64, F32]]:
        seen = 0
        for batch in batches:
            size = _batch_size(batch)
            if seen + size > done:
                skip = max(0, done - seen)
                found = collector._rows(_on(batch, collector.device))[skip:]
                yield ids[seen + skip : seen + size], found
            seen += size

    return _fill(collector, path, spec, n_rows, row_type, rows, progress)


def _on(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if hasattr(batch, "items"):
        return {name: _on(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(_on(value, device) for value in batch)
    return batch


def _place() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _apart(ids: U64, rank: int, world: int) -> U64:
    """Ids of a rank's own examples behind those of the ranks before it, dataset by dataset."""
    if world == 1:
        return ids
    dataset, position = unpack_ids(ids)
    counts: list[Any] = [None] * world
    torch.distributed.all_gather_object(counts, np.bincount(dataset).tolist())
    before = np.zeros(max(map(len, counts)) or 1, np.int64)
    for earlier in counts[:rank]:
        before[: len(earlier)] += np.asarray(earlier, np.int64)
    return pack_ids(dataset, position + before[dataset])


def _passes_to_keep_step(model: nn.Module, n_passes: int) -> int:
    """Passes that this rank makes beside its own: ranks that share parameters make equally many, or they wait for each other."""
    shares = any(hasattr(p, "full_tensor") for p in model.parameters())
    if not shares or _place()[1] == 1:
        return 0
    most = torch.tensor(n_passes, device=next(model.parameters()).device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most) - n_passes


def _part(n: int, rank: int, world: int) -> range:
    return range(n * rank // world, n * (rank + 1) // world)


def _part_path(out: Path, rank: int, world: int) -> Path:
    return out if world == 1 else out.with_name(f"{out.name}.rank-{rank:05}-of-{world:05}")


def _folder(path: Path) -> str:
    path.mkdir(parents=True, exist_ok=True)
    return os.fspath(path)


def _join(store: Store, out: Path, rank: int, world: int) -> Store:
    """Joins the ranks' stores, in their order, once all are finished."""
    if world == 1:
        return store
    torch.distributed.barrier()
    if rank == 0:
        parts = [_part_path(out, r, world) for r in range(world)]
        Store.merge(parts, out)
        for part in parts:
            shutil.rmtree(part)
    torch.distributed.barrier()
    return Store(out)
