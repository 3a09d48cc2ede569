"""How a module's gradient becomes its columns: the projections of the Rust side, drawn from the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _ascribe
from ..spec import Column, factored, identity, masked_sparse, sparse, two_sided

__all__ = ["Factoring", "Projection", "Sides", "Sums", "factors"]

NNZ = 1
"""Places that each number of a gradient is added to, if not given."""


@dataclass(frozen=True)
class Sums:
    """A sparse transform: number ``j`` is added, times ``signs[r, j]``, to the place ``places[r, j]`` for every ``r``."""

    places: Tensor
    signs: Tensor
    dim: int

    def to(self, device: torch.device) -> Sums:
        """The same on a device."""
        return Sums(self.places.to(device), self.signs.to(device), self.dim)

    def of(self, g: Tensor) -> Tensor:
        """``[B, n]`` to ``[B, dim]``."""
        out = g.new_zeros(len(g), self.dim)
        for places, signs in zip(self.places, self.signs, strict=True):
            out.index_add_(1, places, g * signs)
        return out


@dataclass(frozen=True)
class Sides:
    """What is done to one module's gradient ``[O, I]``."""

    p_in: Tensor | None
    """A matrix ``[I, k]``, the inputs that are kept (integers), or none for all."""
    p_out: Tensor | None
    sums: Sums | None
    width: int
    """Numbers that come out."""


@dataclass(frozen=True)
class Projection:
    """Two-sided (LoGra), or by the command line's words: ``full``, ``sparse:DIM[:NNZ]`` (arXiv:1012.1577),
    ``masked:INxOUT:DIM[:NNZ]`` (FactGraSS, arXiv:2505.18976), ``factored:INxOUT:RANK`` (LoRIF, arXiv:2601.21929)."""

    seed: int
    k_in: int
    k_out: int
    kind: str = "two_sided"
    dim: int = 0
    nnz: int = NNZ
    rank: int = 0
    """Columns of the factors, where rows are factored."""

    @classmethod
    def read(cls, text: str | None, seed: int, k: int | tuple[int, int]) -> Projection:
        """Reads the words; none are ``k`` columns on either side."""
        k_in, k_out = (k, k) if isinstance(k, int) else k
        if text is None:
            return cls(seed, k_in, k_out)
        kind, *rest = text.split(":")
        try:
            if kind in ("masked", "factored"):
                kept = [int(n) for n in rest.pop(0).split("x")]
                k_in, k_out = (kept * 2)[:2] if len(kept) == 1 else (kept[0], kept[1])
            counts = [int(n) for n in rest]
            if (kind, len(counts)) == ("factored", 1) and min(*counts, k_in, k_out) > 0 and len(kept) < 3:
                return cls(seed, k_in, k_out, kind, rank=counts[0])
            if (kind, len(counts)) in (("full", 0), *((s, n) for s in ("sparse", "masked") for n in (1, 2))):
                dim, nnz = [*counts, NNZ][:2] if counts else (1, NNZ)
                if min(dim, nnz, k_in, k_out) > 0 and (kind != "masked" or len(kept) < 3):
                    return cls(seed, k_in, k_out, kind, dim, nnz)
        except (ValueError, IndexError):
            pass
        expected = "full, sparse:DIM[:NNZ], masked:INxOUT:DIM[:NNZ] or factored:INxOUT:RANK"
        raise ValueError(f"projection: expected {expected}, found {text!r}")

    def spec(self) -> dict[str, Any]:
        """As a feature spec names it."""
        if self.kind == "full":
            return identity()
        if self.kind == "factored":
            return factored(self.seed, self.k_in, self.k_out, self.rank)
        if self.kind == "sparse":
            return sparse(self.seed, self.dim, self.nnz)
        if self.kind == "masked":
            return masked_sparse(self.seed, self.k_in, self.k_out, self.dim, self.nnz)
        return two_sided(self.seed, self.k_in, self.k_out)

    def sides(self, name: str, fan_in: int, fan_out: int) -> Sides:
        """Draws what a module's gradient ``[fan_out, fan_in]`` goes through."""
        n = fan_in * fan_out
        if self.kind in ("two_sided", "factored"):
            p_in, p_out = _ascribe.two_sided(self.seed, name, fan_in, fan_out, self.k_in, self.k_out)
            kept = torch.from_numpy(p_in) if fan_in > self.k_in else None
            return Sides(kept, torch.from_numpy(p_out) if fan_out > self.k_out else None, None, p_in.shape[1] * p_out.shape[1])
        if self.kind == "full" or (self.kind == "sparse" and n <= self.dim):
            return Sides(None, None, None, n)
        if self.kind == "sparse":
            return Sides(None, None, self._sums(name, n, 1.0), self.dim)
        rows, columns = self._mask(f"{name}/out", fan_out, self.k_out), self._mask(f"{name}/in", fan_in, self.k_in)
        lost = (fan_in / len(columns)) * (fan_out / len(rows))
        sums = self._sums(name, len(rows) * len(columns), float(np.sqrt(lost)))
        return Sides(columns, rows, sums, self.dim)

    def _sums(self, name: str, n: int, factor: float) -> Sums:
        nnz = min(self.nnz, self.dim)
        words = _ascribe.stream_words(self.seed, f"{name}/sjlt", 0, n * nnz).reshape(n, nnz).T
        edges = np.arange(nnz + 1, dtype=np.uint64)[:, None] * np.uint64(self.dim) // np.uint64(nnz)
        first, wide = edges[:-1], np.diff(edges, axis=0)
        places = first + ((words & np.uint64(0xFFFFFFFF)) * wide >> np.uint64(32))
        size = np.float32(1.0) / np.sqrt(np.float32(nnz)) * np.float32(factor)
        signs = np.where(words >> np.uint64(63), -size, size)
        return Sums(torch.from_numpy(places.astype(np.int64)), torch.from_numpy(signs), self.dim)

    def _mask(self, name: str, n: int, keep: int) -> Tensor:
        """``keep`` different numbers below ``n``, rising."""
        everything = np.arange(n, dtype=np.int64)
        if keep < n:
            high = (_ascribe.stream_words(self.seed, name, 0, keep) >> np.uint64(32)).tolist()
            for i, word in enumerate(high):
                j = i + (word * (n - i) >> 32)
                everything[[i, j]] = everything[[j, i]]
            everything = np.sort(everything[:keep])
        return torch.from_numpy(everything)


@dataclass(frozen=True)
class Factoring:
    """How rows become those of LoRIF: ``left [o, rank]``, then ``right [i, rank]`` of each module's projected gradient
    ``[o, i]``, where that is shorter than the gradient itself."""

    rank: int
    shapes: tuple[tuple[int, int] | None, ...]
    """Per module ``[o, i]``; none where its columns are kept whole."""
    columns: tuple[Column, ...]
    """As stored."""
    places: tuple[slice, ...]
    """Of the modules in a row that is not factored yet."""
    dim: int

    @classmethod
    def new(cls, rank: int, columns: Sequence[Column], shapes: Sequence[tuple[int, int] | None]) -> Factoring:
        """From the columns of projected gradients and their shapes; none for what is no matrix."""
        stored: list[Column] = []
        kept: list[tuple[int, int] | None] = []
        start = 0
        for column, shape in zip(columns, shapes, strict=True):
            pays = shape is not None and sum(shape) * rank < shape[0] * shape[1]
            kept.append(shape if pays else None)
            width = sum(shape) * rank if shape is not None and pays else column.len
            stored.append(Column(column.name, start, width))
            start += width
        return cls(rank, tuple(kept), tuple(stored), tuple(slice(c.start, c.start + c.len) for c in columns), start)

    def of(self, rows: Tensor) -> Tensor:
        """``[B, wide]`` to ``[B, dim]``; a row that is not finite becomes NaN, which a store refuses."""
        whole = torch.isfinite(rows).all(1)
        rows = torch.where(whole[:, None], rows, torch.zeros_like(rows))
        out = rows.new_empty(len(rows), self.dim)
        for place, column, shape in zip(self.places, self.columns, self.shapes, strict=True):
            block, target = rows[:, place], slice(column.start, column.start + column.len)
            if shape is None:
                out[:, target] = block
            else:
                left, right = factors(block.reshape(len(rows), *shape), self.rank)
                out[:, target] = torch.cat([left.flatten(1), right.flatten(1)], 1).to(out.dtype)
        out[~whole] = float("nan")
        return out


def factors(a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``left [B, o, rank]`` and ``right [B, i, rank]`` in float64: the best of their rank for ``a [B, o, i]`` (Eckart and Young),
    both with the root of the singular values. As on the Rust side they come of the smaller of ``A·Aᵀ`` and ``Aᵀ·A``, and the
    largest number of that side's vector is positive."""
    a = a.double()
    if a.shape[1] > a.shape[2]:
        right, left = factors(a.mT, rank)
        return left, right
    vectors = torch.linalg.eigh(a @ a.mT).eigenvectors[..., -rank:].flip(-1)  # [B, o, rank]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = torch.where(largest < 0, -vectors, vectors)
    image = a.mT @ vectors  # [B, i, rank]
    root = torch.linalg.vector_norm(image, dim=1, keepdim=True).sqrt()
    empty = root == 0
    return torch.where(empty, 0.0, vectors * root), torch.where(empty, 0.0, image / torch.where(empty, 1.0, root))
