"""Which modules of a model are tapped, and how a module's inputs and output gradients become its columns of a row.

For each module the row holds ``P_outᵀ · G · P_in`` of its gradient ``G = Σ_t δ_t x_tᵀ`` (LoGra, arXiv:2405.13954), computed as
``(Δ·P_out)ᵀ(X·P_in)``: the weight gradient is never formed (other projections form what they keep of it). Matrices, names and the
order of columns are the Rust side's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..spec import Column
from .projection import Projection, Sides, Sums

__all__ = ["Tap", "clean_name", "find_taps"]

ADAPTER = re.compile(r"\.(lora_[AB])\.[^.]+(?=$|\.)")
WRAPPERS = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")


def clean_name(name: str) -> str:
    """A module's name without what FSDP, compile, checkpoint and PEFT wrappers add."""
    plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    return ADAPTER.sub(r".\1", plain.removeprefix("base_model.model."))


@dataclass
class Tap:
    """One module, its columns, and its projection."""

    name: str
    module: nn.Module
    kind: str
    fan_in: int
    fan_out: int
    place: slice
    p_in: Tensor | None
    """``[I, k_in]``, or the inputs that are kept (integers); none where the side is kept whole."""
    p_out: Tensor | None
    """``[O, k_out]``; of an embedding, the rows of its words."""
    scale: Tensor | None = None
    """``[O, I]``: factors of the gradient's numbers (Adam), before the projection."""
    sums: Sums | None = None
    """What the projected gradient is added up into, if it is."""
    _placed: dict[torch.device, tuple[Tensor | None, Tensor | None, Tensor | None, Sums | None]] = field(default_factory=dict)

    @property
    def parameter(self) -> str:
        """Name of the parameter whose gradient it is."""
        return self.name if self.kind == "bias" else f"{self.name}.weight"

    @property
    def shape(self) -> tuple[int, int] | None:
        """``[k_out, k_in]`` of the projected gradient; none of a vector."""
        if self.kind in ("bias", "norm"):
            return None
        wide = [fan if p is None else p.shape[-1] for fan, p in ((self.fan_out, self.p_out), (self.fan_in, self.p_in))]
        return wide[0], wide[1]

    @property
    def turned(self) -> bool:
        """Whether the module keeps its matrix as ``[I, O]``."""
        return type(self.module).__name__ == "Conv1D"

    def on(self, device: torch.device) -> tuple[Tensor | None, Tensor | None, Tensor | None, Sums | None]:
        """The matrices on a device."""
        if device not in self._placed:
            there = (self.p_in, self.p_out, self.scale, self.sums)
            self._placed[device] = tuple(None if m is None else m.to(device) for m in there)  # type: ignore[assignment]
        return self._placed[device]

    def inputs(self, x: Tensor) -> Tensor:
        """What is kept of a module's input until its gradient comes: ``[B, T, k_in]``; word numbers ``[B, T]``; of a norm the
        normalised input ``[B, T, O]``; nothing for a bias."""
        if self.kind == "bias":
            return x.new_empty(0)
        if self.kind == "norm":
            return _normalised(x, self.module).reshape(len(x), -1, self.fan_out)
        if self.kind == "embedding":
            return x.reshape(len(x), -1)
        if self.kind == "conv2d":
            conv: Any = self.module
            x = nn.functional.unfold(_padded(x, conv).float(), conv.kernel_size, conv.dilation, 0, conv.stride).mT
            x = x if conv.groups == 1 else x.reshape(*x.shape[:2], conv.groups, self.fan_in)  # [B, T, groups, I]
        else:
            x = x.reshape(len(x), -1, self.fan_in)
        p_in, _, scale, _ = self.on(x.device)
        return x if p_in is None or scale is not None else _side(x, p_in)

    def block(self, kept: Tensor, gradient: Tensor) -> Tensor:
        """The module's columns ``[B, k_out · k_in]`` from what was kept and the gradient of its output."""
        if self.kind == "embedding":
            return self._embedding_block(kept, gradient)
        if isinstance(self.module, nn.Conv2d):
            delta = gradient.flatten(2).mT.float()
        else:
            delta = gradient.reshape(len(gradient), -1, self.fan_out).float()
        p_in, p_out, scale, sums = self.on(delta.device)
        if self.kind in ("bias", "norm"):
            total = (delta if self.kind == "bias" else delta * kept).sum(1)  # [B, O]
            return total if scale is None else total * scale[:, 0]
        module: Any = self.module
        groups = int(module.groups) if self.kind == "conv2d" else 1
        if groups > 1:  # outputs of a group see its inputs alone
            delta = delta.reshape(*delta.shape[:2], groups, -1)  # [B, T, groups, O / groups]
            found = torch.einsum("btgo,btgi->bgoi", delta, kept.float()).flatten(1, 2)  # [B, O, I], or k_in without scales
            if scale is not None:
                found = found * scale
                found = found if p_in is None else _side(found, p_in)
            found = found if p_out is None else _side(found.mT, p_out).mT
        elif scale is None:
            # [B, T, k_out]ᵀ [B, T, k_in]
            found = torch.bmm((delta if p_out is None else _side(delta, p_out)).mT, kept.float())
        else:
            found = torch.bmm(delta.mT, kept.float()) * scale  # [B, O, I]
            found = found if p_in is None else _side(found, p_in)
            found = found if p_out is None else _side(found.mT, p_out).mT
        return found.flatten(1) if sums is None else sums.of(found.flatten(1))

    def _embedding_block(self, words: Tensor, gradient: Tensor) -> Tensor:
        delta = gradient.reshape(len(gradient), -1, self.fan_in).float()
        p_in, p_out, scale, _ = self.on(delta.device)
        if scale is not None:
            delta = delta * scale[words]
        if p_in is not None:
            delta = delta @ p_in
        rows = nn.functional.one_hot(words, self.fan_out).float() if p_out is None else p_out[words]  # [B, T, k_out]
        return torch.bmm(rows.mT, delta).flatten(1)


def _side(x: Tensor, p: Tensor) -> Tensor:
    """The last axis times a matrix, or what is kept of it."""
    return x.float() @ p if p.is_floating_point() else x[..., p]


def _padded(x: Tensor, conv: Any) -> Tensor:
    if conv.padding == "valid" or conv.padding == (0, 0):
        return x
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)


def _kind(module: nn.Module, embedding: bool) -> tuple[str, int, int] | None:
    """Kind, fan-in and fan-out of a module that can be tapped."""
    if isinstance(module, nn.Linear):
        return "linear", module.in_features, module.out_features
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        return "conv2d", module.in_channels // module.groups * height * width, module.out_channels
    if isinstance(module, nn.Embedding) and embedding:
        return "embedding", module.embedding_dim, module.num_embeddings
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2:  # GPT-2's, weight [I, O]
        return "linear", int(weight.shape[0]), int(weight.shape[1])
    return None


def _norm_width(module: nn.Module) -> int | None:
    """Numbers that a layer or root-mean-square norm has a weight for."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return math.prod(module.normalized_shape)
    return len(weight) if type(module).__name__.endswith("RMSNorm") and weight.ndim == 1 else None


def _normalised(x: Tensor, norm: Any) -> Tensor:
    """What a norm multiplies its weight with."""
    if isinstance(norm, nn.LayerNorm):
        return nn.functional.layer_norm(x.float(), norm.normalized_shape, None, None, norm.eps)
    axes = tuple(range(-len(norm.normalized_shape), 0)) if isinstance(norm, nn.RMSNorm) else (-1,)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    x = x.float()
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps)


def _chosen(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern.replace("[", "[[]")) for pattern in patterns)


def _output_layer(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    try:
        return get() if callable(get) else None
    except (NotImplementedError, AttributeError):
        return None


_Found = tuple[str, nn.Module, tuple[str, int, int]]


def find_taps(
    model: nn.Module,
    *,
    projection: Projection,
    modules: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    embedding: bool = False,
    norms: bool = False,
    biases: bool = False,
    scales: dict[str, Tensor] | None = None,
) -> tuple[list[Tap], list[Column]]:
    """Taps of a model in the order of its modules, then tables of embeddings, then vectors as they are: ``norms`` (weights and
    biases), and ``biases`` of the tapped modules, under the module's name with ``.bias``.

    ``modules`` are patterns of names, ``*`` for any text; the default is every Linear, Conv1D and Conv2d but a language model's
    output layer (and, of a PEFT model, its trainable ones alone). An output layer that shares its matrix with a tapped embedding
    is added into the embedding's columns, whatever the patterns: the two are one parameter.
    """
    head = _output_layer(model)
    trainable = hasattr(model, "peft_config")
    found: list[_Found] = []
    tables: list[_Found] = []
    vectors: list[_Found] = []
    for raw, module in model.named_modules():
        name, shape, width = clean_name(raw), _kind(module, embedding), _norm_width(module)
        if _chosen(name, exclude):
            continue
        weight = getattr(module, "weight", None)
        open_to_training = not (trainable and isinstance(weight, Tensor) and not weight.requires_grad)
        if norms and width is not None and open_to_training:
            vectors.append((name, module, ("norm", 1, width)))
            if isinstance(getattr(module, "bias", None), Tensor):
                vectors.append((f"{name}.bias", module, ("bias", 1, width)))
        if shape is None:
            continue
        wanted = module is not head and open_to_training if modules is None else _chosen(name, modules)
        if wanted or shape[0] == "embedding":
            (tables if shape[0] == "embedding" else found).append((name, module, shape))
    for pattern in modules or ():
        if not any(_chosen(name, [pattern]) for name, _, _ in found + tables):
            names = ", ".join(name for name, m in model.named_modules() if _kind(m, embedding))
            raise ValueError(f"modules: expected a pattern that matches one of {names}, found {pattern!r}")
    if biases:
        with_bias = [(name, m, shape) for name, m, shape in found if isinstance(getattr(m, "bias", None), Tensor)]
        vectors += [(f"{name}.bias", m, ("bias", 1, shape[2])) for name, m, shape in with_bias]
    vectors = [vector for vector in vectors if not _chosen(vector[0], exclude)]
    if tables and projection.kind not in ("two_sided", "factored"):
        raise ValueError(f"projection: expected columns on two sides where embeddings are tapped, found {projection.kind}")
    taps: list[Tap] = []
    columns: list[Column] = []
    places: dict[int, Tap] = {}
    start = 0
    shared = {id(m.weight): name for name, m, _ in tables if isinstance(m.weight, Tensor)}
    for name, module, (kind, fan_in, fan_out) in [*found, *tables, *vectors]:
        weight = getattr(module, "bias" if kind == "bias" else "weight", None)
        if kind != "embedding" and id(weight) in shared:
            continue  # joins the table below
        whole = kind in ("bias", "norm")
        sides = Sides(None, None, None, fan_out) if whole else projection.sides(name, fan_in, fan_out)
        scale = None if scales is None else scales[name]
        place = slice(start, start + sides.width)
        tap = Tap(name, module, kind, fan_in, fan_out, place, sides.p_in, sides.p_out, scale, sides.sums)
        taps.append(tap)
        columns.append(Column(name, start, sides.width))
        places[id(weight)] = tap
        start += sides.width
    for name, module in model.named_modules():
        table, shape = places.get(id(getattr(module, "weight", None))), _kind(module, False)
        if shape is not None and table is not None and table.kind == "embedding" and not _chosen(clean_name(name), exclude):
            kind, fan_in, fan_out = shape
            joined = Tap(table.name, module, kind, fan_in, fan_out, table.place, table.p_in, table.p_out, table.scale)
            taps.append(joined)
    if not taps:
        raise ValueError("modules: expected at least one Linear, Conv1D, Conv2d or Embedding, found none")
    return taps, columns
