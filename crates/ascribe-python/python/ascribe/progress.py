"""Progress of long calls: tqdm where it is installed, or any object with ``start``, ``advance`` and ``finish``."""

from __future__ import annotations

import threading
from typing import Any, Protocol

__all__ = ["Progress", "Tqdm", "listener"]


class Progress(Protocol):
    """A listener to long work. Calls come from worker threads; one that raises stops the work."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins; ``total`` is 0 when unknown."""

    def advance(self, n: int) -> None:
        """``n`` more units are done."""

    def finish(self, note: str) -> None:
        """The stage is over."""


class Tqdm:
    """Draws stages as tqdm bars (in a notebook, as widgets)."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._make: Any = tqdm
        self._bar: Any = None
        self._lock = threading.Lock()

    def start(self, stage: str, total: int, unit: str) -> None:
        """Opens a bar."""
        with self._lock:
            self._bar = self._make(total=total or None, desc=stage, unit=f" {unit}" if unit else "it", leave=False)

    def advance(self, n: int) -> None:
        """Moves it."""
        with self._lock:
            if self._bar is not None:
                self._bar.update(n)

    def finish(self, note: str) -> None:
        """Closes it."""
        with self._lock:
            if self._bar is not None:
                self._bar.set_postfix_str(note)
                self._bar.close()
                self._bar = None


def listener(progress: bool | Progress | None) -> Progress | None:
    """``True`` means tqdm if it can be imported; an object is taken as it is."""
    if progress is None or progress is False:
        return None
    if progress is True:
        try:
            return Tqdm()
        except ImportError:
            return None
    return progress
