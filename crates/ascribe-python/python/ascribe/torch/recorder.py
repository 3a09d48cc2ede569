"""Hooks that turn one backward pass into one row per example of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .taps import Tap

__all__ = ["Recorder"]


class Recorder:
    """While :meth:`recording`, every backward pass through the model adds the examples' columns into ``rows [B, dim]``.

    A module's input is projected as soon as it is seen and kept until its output's gradient comes, so memory grows by ``k_in``
    numbers per token and module, not by activations. Safe under gradient checkpointing of both kinds: what a re-entrant first
    pass computes without a graph is not looked at, and of two passes over one segment only the one whose graph is walked counts.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap], dim: int, *, start_graph: bool) -> None:
        self.model, self.taps, self.dim = model, list(taps), dim
        self.seconds = 0.0
        """Time spent in hooks, as the processor saw it."""
        self._start_graph = start_graph
        self._rows: Tensor | None = None
        self._seen: set[str] = set()

    def attach(self) -> list[Any]:
        """Puts the hooks on; their handles take them off."""
        handles = [tap.module.register_forward_hook(self._hook(tap)) for tap in self.taps]
        if self._start_graph and _checkpoints(self.model):
            # A re-entrant checkpoint asks its inputs whether there will be a backward pass.
            tables = [m for m in self.model.modules() if isinstance(m, nn.Embedding)]
            handles = [m.register_forward_hook(_begin) for m in tables] + handles
        return handles

    def begin(self, n: int, device: torch.device) -> Tensor:
        """Rows of the next batch."""
        self._rows, self._seen = torch.zeros(n, self.dim, dtype=torch.float32, device=device), set()
        return self._rows

    def end(self) -> Tensor | None:
        """The rows of the batch, if one was begun; nothing is recorded until the next begins."""
        rows, self._rows = self._rows, None
        return rows

    @contextmanager
    def recording(self, n: int, device: torch.device) -> Iterator[Tensor]:
        """Rows of a batch of ``n`` examples; they are complete when the block ends."""
        rows = self.begin(n, device)
        handles = self.attach()
        try:
            yield rows
        finally:
            for handle in handles:
                handle.remove()
            self.end()
        silent = [tap.name for tap in self.taps if tap.name not in self._seen]
        if n and silent:
            raise RuntimeError(
                f"taps: expected a gradient at every module, found none at {', '.join(silent[:5])}"
                f"{' …' if len(silent) > 5 else ''}; hint: exclude what the loss does not use"
            )

    def _hook(self, tap: Tap) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            rows = self._rows
            if rows is None or not torch.is_grad_enabled():
                return None
            x = inputs[0].detach()
            if x.shape[0] != len(rows):
                raise RuntimeError(
                    f"{tap.name}: expected a batch of {len(rows)} examples in the first dimension, found shape "
                    f"{tuple(x.shape)}; hint: exclude modules that see tokens of several examples side by side"
                )
            replaced = None
            if not output.requires_grad:
                if not self._start_graph:
                    return None
                output = replaced = _begin(module, inputs, output)
            clock = perf_counter()
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                kept = tap.inputs(x)
            self.seconds += perf_counter() - clock

            def take(gradient: Tensor) -> None:
                clock = perf_counter()
                with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                    rows[:, tap.place] += tap.block(kept, gradient).to(rows.device)
                self._seen.add(tap.name)
                self.seconds += perf_counter() - clock

            output.register_hook(take)  # type: ignore[no-untyped-call]
            return replaced

        return hook


def _begin(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Lets the graph begin at an output that nothing below asks a gradient of: a copy, since what follows may write to it."""
    if output.requires_grad or not torch.is_grad_enabled() or not output.is_floating_point():
        return output
    return output.detach().requires_grad_(True).clone()


def _checkpoints(model: nn.Module) -> bool:
    return any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
