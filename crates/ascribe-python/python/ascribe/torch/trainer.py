"""A Hugging Face ``Trainer`` callback that keeps the gradient of every example while the model is trained."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..store import F32, U64, PathLike, Store, StoreWriter, pack_ids
from .collect import Collector, _part_path, _place
from .recorder import Recorder
from .taps import clean_name

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ImportError:
        TrainerCallback = object

__all__ = ["AscribeCallback"]


class AscribeCallback(TrainerCallback):
    """``Trainer(..., callbacks=[AscribeCallback("out/trained")])`` writes a row per example that training saw.

    A row is the example's part of the gradient of the step's loss, as it was when it was trained on (scaled as the trainer
    scales losses, dropout and all), so the spec's loss is ``training_step``. Rows come in the order of training;
    ``examples.npz`` beside the store says the optimiser step of each, and the example and dataset if batches carry
    ``example_id`` and ``dataset_id`` (the trainer hands them on with ``remove_unused_columns=False``; they are taken off before
    the model sees them). Adam's second moments at the end, bias-corrected, go to ``second_moments.safetensors``:
    ``collect(..., moments=load_file(...))`` divides by their roots.

    Rows wait in ``<out>.spool`` until training ends. A training that resumes from a checkpoint keeps the rows up to its step.
    Under fp16 the trainer scales losses up; rows are divided by that, and a step that overflowed and was left out leaves none.
    Ranks write stores of their own (``<out>.rank-…``), which ``Store.merge`` joins.
    """

    def __init__(self, out: PathLike, *, model_sha256: str = "0" * 64, corpus_sha256: str = "0" * 64, **settings: Any) -> None:
        self.out, self._whole, self._first = Path(out), Path(out), 0
        self._model_sha256, self._corpus_sha256, self._settings = model_sha256, corpus_sha256, settings
        self.store: Store | None = None
        self.overhead = float("nan")
        """Time spent collecting, as a part of the time that training took without it."""
        self._handles: list[Any] = []
        self._meta: list[dict[str, list[int]]] = []
        self._pending: dict[str, list[int]] = {}
        self._scale = 0.0  # of losses, at the last micro-batch

    # The trainer's events; each is called with (args, state, control, model=…, optimizer=…, …).

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Puts the hooks on."""
        rank, world = _place()  # known now at the latest: the trainer itself joins the ranks
        self.out = _part_path(self._whole, rank, world)
        self._first = rank << 24  # ranks number their rows apart, so that their stores can be joined
        self._collector = Collector(model, loss_name="training_step", **self._settings)
        self._recorder = Recorder(self._collector.model, self._collector.taps, self._collector.wide, start_graph=False)
        self._handles = self._recorder.attach()
        self._handles.append(self._collector.model.register_forward_pre_hook(self._before, with_kwargs=True))
        self._open(state.global_step)
        self._n = sum(len(entry["step"]) for entry in self._meta)
        self._start, self._flushing = perf_counter(), 0.0

    def on_substep_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """A micro-batch that does not end its step."""
        self._flush(state.global_step + 1, optimizer)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """The last micro-batch of a step."""
        self._flush(state.global_step + 1, optimizer)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """The step was made, or, under fp16, left out because a gradient overflowed."""
        # A fused optimizer leaves the step out by itself, which accelerate does not see; but then, too, the loss scale falls.
        scaler = getattr(optimizer, "scaler", None)
        fell = scaler is not None and scaler.get_scale() < self._scale
        if fell or getattr(optimizer, "step_was_skipped", False):
            self._forget(state.global_step + 1)

    def on_train_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Takes the hooks off and makes the store."""
        spent = self._recorder.seconds + self._flushing
        total = perf_counter() - self._start
        self.overhead = spent / max(total - spent, 1e-9)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._spool.close()
        n = self._n
        self.store = self._write(n)
        if optimizer is not None:
            self._save_moments(optimizer)
        print(f"ascribe: {n} rows of {self._collector.dim} numbers, {self.overhead:.1%} of the time of training", file=sys.stderr)

    def _before(self, model: nn.Module, positional: tuple[Any, ...], batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Begins a batch: how many examples it has, and which they are."""
        batch = dict(batch)
        names = {key: batch.pop(key, None) for key in ("example_id", "dataset_id")}
        if not torch.is_grad_enabled():
            return positional, batch
        first = next(v for v in (*positional, *batch.values()) if isinstance(v, Tensor) and v.ndim > 0)
        n = len(first)
        self._recorder.begin(n, self._collector.device)
        unknown = [-1] * n
        self._pending = {key: unknown if v is None else torch.as_tensor(v).cpu().tolist() for key, v in names.items()}
        return positional, batch

    def _flush(self, step: int, optimizer: Any) -> None:
        rows = self._recorder.end()
        if rows is None:
            return
        clock = perf_counter()
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None:
            self._scale = scaler.get_scale()
            rows = rows / self._scale
        self._spool.write(self._collector.stored(rows).cpu().numpy().tobytes())
        entry = {"step": [step] * len(rows), **self._pending}
        self._meta.append(entry)
        self._log.write(json.dumps(entry) + "\n")
        self._n += len(rows)
        self._flushing += perf_counter() - clock

    def _forget(self, step: int) -> None:
        """Takes the rows of a step back."""
        kept = [entry for entry in self._meta if entry["step"][0] != step]
        self._meta, self._n = kept, sum(len(entry["step"]) for entry in kept)
        os.truncate(self._spool.name, 4 * self._collector.dim * self._n)
        self._log.seek(0)
        self._log.truncate()
        self._log.write("".join(json.dumps(entry) + "\n" for entry in kept))

    def _open(self, step: int) -> None:
        """The files that rows wait in; rows of steps that will be trained again are cut off."""
        spool = self.out.with_name(self.out.name + ".spool")
        spool.mkdir(parents=True, exist_ok=True)
        rows, log = spool / "rows.f32", spool / "steps.jsonl"
        self._meta = []
        if step > 0 and log.exists() and rows.exists():
            for line in log.read_text().splitlines():
                entry = json.loads(line)
                if entry["step"][0] <= step:
                    self._meta.append(entry)
        log.write_text("".join(json.dumps(entry) + "\n" for entry in self._meta))
        kept = 4 * self._collector.dim * sum(len(entry["step"]) for entry in self._meta)
        rows.touch()
        if rows.stat().st_size < kept:
            raise RuntimeError(f"{rows}: expected at least {kept} bytes of earlier steps, found {rows.stat().st_size}")
        os.truncate(rows, kept)
        self._spool, self._log = rows.open("ab", buffering=0), log.open("a", buffering=1)

    def _write(self, n: int) -> Store:
        keys = ("step", "example_id", "dataset_id")
        columns = {
            key: np.concatenate([np.zeros(0, np.int64), *(np.asarray(e[key], np.int64) for e in self._meta)]) for key in keys
        }
        dataset = np.maximum(columns["dataset_id"], 0)
        ids = pack_ids(dataset, self._first + np.arange(n))
        spec = self._collector.spec(self._model_sha256, self._corpus_sha256, checkpoint="training")
        path = self.out.with_name(self.out.name + ".spool") / "rows.f32"
        self._log.close()
        with StoreWriter(self.out, spec, n) as writer:
            done = writer.n_committed
            for chunk_ids, rows in _chunks(path, ids, self._collector.dim, done):
                writer.push(chunk_ids, rows)
            self._collector.note(self.out)
            store = writer.finish()
        step, example, of = columns["step"], columns["example_id"], columns["dataset_id"]
        np.savez(self.out / "examples.npz", step=step, example_id=example, dataset_id=of)
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
        return store

    def _save_moments(self, optimizer: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        names = {id(p): clean_name(name) for name, p in self._collector.model.named_parameters()}
        moments = {}
        for group in inner.param_groups:
            beta2 = group.get("betas", (0.0, 0.0))[1]
            for parameter in group["params"]:
                state = inner.state.get(parameter, {})
                if "exp_avg_sq" in state and id(parameter) in names:
                    correction = 1.0 - beta2 ** float(state["step"])
                    value = state["exp_avg_sq"]
                    value = value.full_tensor() if hasattr(value, "full_tensor") else value  # of sharded parameters
                    moments[names[id(parameter)]] = (value.float() / correction).cpu().contiguous()
        if moments:
            from safetensors.torch import save_file

            save_file(moments, self.out / "second_moments.safetensors")


def _chunks(path: Path, ids: U64, dim: int, done: int) -> Iterator[tuple[U64, F32]]:
    with path.open("rb") as stream:
        stream.seek(4 * dim * done)
        for start in range(done, len(ids), 256):
            stop = min(start + 256, len(ids))
            yield ids[start:stop], np.frombuffer(stream.read(4 * dim * (stop - start)), np.float32).reshape(-1, dim)
