"""Registries, read and added to; books, read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _ascribe
from .progress import Progress, listener
from .table import Table

__all__ = ["Journal", "Registry", "read_journal", "read_payout"]

_TERMS_FILES = ("terms.txt", "LICENSE", "LICENCE", "LICENSE.txt", "LICENCE.txt", "LICENSE.md", "COPYING", "NOTICE")
_WHOLE_PPM = 1_000_000


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

    @staticmethod
    def init(path: str | os.PathLike[str], name: str | None = None, *, chain_id: int = 1) -> None:
        """Makes a registry in a folder that is none yet, with a new key for its licence log. ``name`` sets the domain that
        licences are signed for; without one it is random."""
        _ascribe.registry_init(os.fspath(path), name, chain_id)

    @staticmethod
    def add(
        path: str | os.PathLike[str],
        folder: str | os.PathLike[str],
        *,
        licence: str,
        payees: str | Mapping[str, int],
        name: str | None = None,
        title: str | None = None,
        owner: str | None = None,
        language: str = "und",
        permits: Sequence[str] = ("ai-train",),
        prohibits: Sequence[str] = (),
        terms: str | None = None,
        source: str = "the contributor's own",
        source_version: str = "1",
        notes: str = "",
        text_field: str = "text",
        id_field: str = "id",
        skip_empty: bool = False,
        in_place: bool = False,
        progress: bool | Progress | None = None,
    ) -> dict[str, Any]:
        """Registers the records in ``folder`` (JSONL, CSV, TSV, Parquet, Arrow, texts, a saved Hugging Face dataset), or the next
        version of them: what ``ascribe registry add`` does. The same twice changes nothing; what is refused leaves nothing.

        ``licence`` is an SPDX expression; ``payees`` a CAIP-10 account, or several with parts per million that sum to 1,000,000.
        ``terms`` is the legal text; without it that of a file in the folder (``LICENSE``, ``terms.txt``, …) or the expression's
        name. A dataset counts when its licence is signed: ``ascribe licence sign``, or any wallet. Returns name, uuid, version,
        whether it is new, records, len_bytes and content_root.
        """
        place = Path(folder)
        name = _name_of(place) if name is None else name
        shares = {payees: _WHOLE_PPM} if isinstance(payees, str) else dict(payees)
        if not shares or not all(type(ppm) is int and 0 < ppm <= _WHOLE_PPM for ppm in shares.values()):
            raise ValueError(f"payees: expected accounts with 1 to 1,000,000 parts per million each, found {shares}")
        if terms is None:
            files = [file for file in (place / n for n in _TERMS_FILES) if file.is_file()]
            default = f"Licensed under the terms of the SPDX licence expression {licence}.\n"
            terms = files[0].read_text(encoding="utf-8") if files else default
        description = {
            "name": name,
            "title": name if title is None else title,
            "owner": next(iter(shares), "") if owner is None else owner,
            "language": language,
            "licence": licence,
            "permits": list(permits),
            "prohibits": list(prohibits),
            "payees": list(shares.items()),
            "source": source,
            "source_version": source_version,
            "notes": notes,
            "terms": terms,
            "text_field": text_field,
            "id_field": id_field,
            "skip_empty": skip_empty,
            "in_place": in_place,
        }
        return _ascribe.registry_add(os.fspath(path), os.fspath(folder), description, listener(progress))

    def verify(self, progress: bool | Progress | None = None) -> Table:
        """Recomputes every content root and licence signature; raises at the first that does not hold."""
        return Table(self._raw.verify(listener(progress)))

    def __len__(self) -> int:
        return len(self._raw)

    def _repr_html_(self) -> str:
        return self.datasets()._repr_html_()

    def __repr__(self) -> str:
        return f"<Registry {self._raw.path}: {len(self)} datasets>"


def _name_of(folder: Path) -> str:
    """A dataset's name out of the folder's, as the command derives it."""
    bare = folder.resolve().name.lower().split(".")[0]
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in bare).strip("-")
    return plain[:64] or "dataset"


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
