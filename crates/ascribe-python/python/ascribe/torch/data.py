"""What a collector reads: token sequences or batches, their ids, and digests that pin model and examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..store import U64, PathLike, pack_ids
from .taps import clean_name

__all__ = ["Sequences", "corpus_digest", "example_ids", "model_digest", "weights_digest"]

IGNORED = -100


def example_ids(datasets: Sequence[int] | None, n: int) -> U64:
    """Ids of ``n`` examples: the dataset of each, and its place among those of that dataset."""
    if datasets is None:
        return pack_ids(0, np.arange(n))
    ordinals = np.asarray(datasets)
    if ordinals.shape != (n,):
        raise ValueError(f"datasets: expected {n} ordinals, one per example, found shape {ordinals.shape}")
    if ordinals.dtype.kind not in "iu" or (n and ordinals.min() < 0):
        raise ValueError(f"datasets: expected ordinals of at least 0, found {ordinals.dtype}")
    positions = np.zeros(n, dtype=np.int64)
    for ordinal in np.unique(ordinals):
        mask = ordinals == ordinal
        positions[mask] = np.arange(int(mask.sum()))
    return pack_ids(ordinals, positions)


@dataclass
class Sequences:
    """Token sequences of a language model. ``loss_from`` is the first token whose prediction counts."""

    tokens: list[np.ndarray[Any, np.dtype[np.int64]]]
    loss_from: list[int]

    @classmethod
    def read(cls, data: Any) -> Sequences:
        """From a matrix of ids, a list of lists, or a dataset whose items have ``input_ids`` (and perhaps ``labels``)."""
        tokens, starts = [], []
        for i in range(len(data)):
            item = data[i]
            labels = item.get("labels") if hasattr(item, "get") else None
            ids = np.asarray(item["input_ids"] if hasattr(item, "get") else item)
            if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
                raise ValueError(f"example {i}: expected a sequence of token ids, found {ids.dtype} of shape {ids.shape}")
            mask = item.get("attention_mask") if hasattr(item, "get") else None
            if mask is not None:
                ids = ids[: int(np.asarray(mask).sum())]
            start = 0
            if labels is not None:
                counted = np.flatnonzero(np.asarray(labels)[: len(ids)] != IGNORED)
                start = int(counted[0]) if len(counted) else len(ids)
            tokens.append(ids.astype(np.int64))
            starts.append(start)
        return cls(tokens, starts)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Padded ids, mask and labels of some examples."""
        longest = max(len(self.tokens[i]) for i in indices)
        ids = torch.zeros(len(indices), longest, dtype=torch.long)
        labels = torch.full((len(indices), longest), IGNORED, dtype=torch.long)
        mask = torch.zeros(len(indices), longest, dtype=torch.long)
        for row, i in enumerate(indices):
            sequence = torch.from_numpy(self.tokens[i])
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
            labels[row, self.loss_from[i] : len(sequence)] = sequence[self.loss_from[i] :]
        batch = {"input_ids": ids.to(device), "labels": labels.to(device)}
        if not bool(mask.all()):
            batch["attention_mask"] = mask.to(device)
        return batch

    def batches(self, first: int, stop: int, size: int) -> Iterator[range]:
        """Ranges of examples ``first .. stop``."""
        for start in range(first, stop, size):
            yield range(start, min(start + size, stop))


def corpus_digest(sequences: Sequences, ids: U64, names: Sequence[str]) -> str:
    """SHA-256 over dataset names and windows: that of ``ascribe features`` for the same sequences."""
    hasher = hashlib.sha256()
    for name in names:
        encoded = name.encode()
        hasher.update(len(encoded).to_bytes(8, "little") + encoded)
    for packed, start, tokens in zip(ids.tolist(), sequences.loss_from, sequences.tokens, strict=True):
        for number in (packed, start, len(tokens)):
            hasher.update(number.to_bytes(8, "little"))
        hasher.update(tokens.astype("<u4").tobytes())
    return hasher.hexdigest()


def model_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 bytes of all parameters, in the order of their names."""
    hasher = hashlib.sha256(b"ascribe-torch-parameters-v1\0")
    for raw, parameter in sorted(model.named_parameters(), key=lambda item: clean_name(item[0])):
        value: Any = parameter.detach()
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        array = value.to("cpu", torch.float32).contiguous().numpy()
        hasher.update(f"{clean_name(raw)} {list(array.shape)}\n".encode())
        hasher.update(array.astype("<f4").tobytes())
    return hasher.hexdigest()


def weights_digest(model: nn.Module, path: PathLike) -> str:
    """SHA-256 of a model folder's weights file, as the Rust side names a model; refuses a model with other weights.

    The file is ``model.safetensors`` of the folder; every tensor in it must equal the model's, in float32.
    """
    from safetensors.torch import load_file

    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    state = {clean_name(name): value for name, value in model.state_dict().items()}
    for name, stored in load_file(file).items():
        own = state.get(name)
        if own is None:
            own = next((value for key, value in state.items() if key.endswith("." + name)), None)
        if own is None or own.shape != stored.shape or not torch.equal(own.cpu().float(), stored.float()):
            raise ValueError(f"{file}: expected the weights of this model, found another `{name}`")
    hasher = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()
