"""Registries and books, read."""

from __future__ import annotations

import os
from dataclasses import dataclass

from . import _ascribe
from .progress import Progress, listener
from .table import Table

__all__ = ["Journal", "Registry", "read_journal", "read_payout"]


class Registry:
    """A registry folder: which datasets exist, whose they are, on what signed terms."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._raw = _ascribe.Registry(os.fspath(path))

    @property
    def digest(self) -> str:
        """SHA-256 over all manifests and licences."""
        return self._raw.digest

    def datasets(self) -> Table:
        """A row per dataset, by ordinal."""
        return Table(self._raw.datasets())

    def owners(self) -> Table:
        """A row per owner and payee."""
        return Table(self._raw.owners())

    def verify(self, progress: bool | Progress | None = None) -> Table:
        """Recomputes every content root and licence signature; raises at the first that does not hold."""
        return Table(self._raw.verify(listener(progress)))

    def __len__(self) -> int:
        return len(self._raw)

    def _repr_html_(self) -> str:
        return self.datasets()._repr_html_()

    def __repr__(self) -> str:
        return f"<Registry {self._raw.path}: {len(self)} datasets>"


@dataclass
class Journal:
    """A run's double-entry books. Amounts are decimal text, exact."""

    run_id: str
    transfers: Table
    balances: Table

    def _repr_html_(self) -> str:
        return self.balances._repr_html_()


def read_journal(path: str | os.PathLike[str]) -> Journal:
    """Reads ``journal.json``; every transfer is posted again and every balance compared."""
    run_id, transfers, balances = _ascribe.read_journal(os.fspath(path))
    return Journal(run_id, Table(transfers), Table(balances))


def read_payout(path: str | os.PathLike[str]) -> Table:
    """Reads ``payout.csv``: a row per payee."""
    return Table(_ascribe.read_payout(os.fspath(path)))
