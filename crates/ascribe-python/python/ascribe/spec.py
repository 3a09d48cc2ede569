"""What makes two feature rows comparable: the same words, in the same order, as the Rust side hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Column", "FeatureSpec", "identity", "masked_sparse", "sparse", "two_sided"]

ZEROS = "0" * 64


@dataclass(frozen=True)
class Column:
    """A contiguous group of columns that belongs to one module (one curvature block)."""

    name: str
    start: int
    len: int


def two_sided(seed: int, k_in: int, k_out: int) -> dict[str, Any]:
    """LoGra's projection ``P_outᵀ · G · P_in`` with seeded ±1/√k entries, version 1."""
    return {"kind": "two_sided", "seed": seed, "k_in": k_in, "k_out": k_out, "version": 1}


def factored(seed: int, k_in: int, k_out: int, rank: int) -> dict[str, Any]:
    """The best factors of rank ``rank`` of each module's two-sided projection (LoRIF, arXiv:2601.21929), version 1."""
    return {"kind": "factored", "seed": seed, "k_in": k_in, "k_out": k_out, "rank": rank, "version": 1}


def sparse(seed: int, dim: int, nnz: int) -> dict[str, Any]:
    """A sparse Johnson-Lindenstrauss transform of each module's whole gradient, version 1."""
    return {"kind": "sparse", "seed": seed, "dim": dim, "nnz": nnz, "version": 1}


def masked_sparse(seed: int, keep_in: int, keep_out: int, dim: int, nnz: int) -> dict[str, Any]:
    """A seeded mask on either side of each module's gradient, then a sparse transform, version 1."""
    kept = {"keep_in": keep_in, "keep_out": keep_out}
    return {"kind": "masked_sparse", "seed": seed, **kept, "dim": dim, "nnz": nnz, "version": 1}


def identity() -> dict[str, Any]:
    """No projection: a row is what it is."""
    return {"kind": "identity"}


@dataclass(frozen=True)
class FeatureSpec:
    """Two rows may be compared if and only if the hashes of their specs are equal.

    ``model`` and ``corpus`` are SHA-256 in hex: of the weights, and of what fixes the examples and their order.

    >>> spec = FeatureSpec.plain(dim=3)
    >>> FeatureSpec.from_json(spec.to_json()) == spec
    True
    """

    model: str
    checkpoint: str
    quantity: str
    loss: str
    normalizer: str
    projector: dict[str, Any]
    columns: tuple[Column, ...]
    dim: int
    corpus: str

    @classmethod
    def plain(cls, dim: int, model: str = ZEROS, corpus: str = ZEROS, quantity: str = "features") -> FeatureSpec:
        """Rows of any origin in one group of columns."""
        columns = (Column("row", 0, dim),)
        return cls(model, "final", quantity, "none", "none", identity(), columns, dim, corpus)

    def to_json(self) -> str:
        """The compact form that is hashed: fields in their declared order, no blanks."""
        fields = {
            "model": self.model,
            "checkpoint": self.checkpoint,
            "quantity": self.quantity,
            "loss": self.loss,
            "normalizer": self.normalizer,
            "projector": self.projector,
            "columns": [{"name": c.name, "start": c.start, "len": c.len} for c in self.columns],
            "dim": self.dim,
            "corpus": self.corpus,
        }
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> FeatureSpec:
        """A spec out of its JSON."""
        fields = json.loads(text)
        fields["columns"] = tuple(Column(**column) for column in fields["columns"])
        return cls(**fields)

    @property
    def sha256(self) -> str:
        """SHA-256 of the JSON: it travels with rows, scores, shares and receipts."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
