"""Plots of results; needs matplotlib (``pip install ascribe[plot]``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .attribution import Scores, ShareBook

__all__ = ["dataset_scores", "shares"]


def shares(book: ShareBook, query: int = 0, ax: Any = None) -> Any:
    """Shares of one response with their intervals, largest first. Returns the axes."""
    import matplotlib.pyplot as plt

    table = book.datasets()
    mine = np.flatnonzero(table["query"] == query)
    order = mine[np.argsort(-table["share"][mine], kind="stable")]
    names, share = [table["dataset"][i] for i in order], table["share"][order]
    low, high = table["low"][order], table["high"][order]
    ax = ax or plt.subplots(figsize=(6, 0.4 * len(order) + 1))[1]
    error = np.stack([np.maximum(share - low, 0), np.maximum(high - share, 0)])
    ax.barh(range(len(order)), share, xerr=error, color="#9ecae1", ecolor="#555")
    ax.set_yticks(range(len(order)), names)
    ax.invert_yaxis()
    ax.set_xlabel("share")
    ax.set_xlim(0, 1)
    ax.set_title(f"response {query}")
    return ax


def dataset_scores(scores: Scores, names: list[str] | None = None, ax: Any = None) -> Any:
    """Influence of every dataset on every query as a heat map. Returns the axes."""
    import matplotlib.pyplot as plt

    values = scores.datasets
    ax = ax or plt.subplots()[1]
    limit = float(np.abs(values).max(initial=0)) or 1.0
    image = ax.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    ax.set_xlabel("dataset")
    ax.set_ylabel("query")
    if names is not None:
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.figure.colorbar(image, ax=ax, label="influence")
    return ax
