"""Convolutions in groups: outputs of a group see its inputs alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from ascribe.torch import Collector  # noqa: E402
from test_torch import by_autograd, close, net_batch, net_loss, of_any  # noqa: E402
from torch import nn  # noqa: E402


class Grouped(nn.Module):
    """A depthwise convolution between two in groups, as small networks for images have them."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 12, 1, groups=3)
        self.depth = nn.Conv2d(12, 24, (3, 2), groups=12, stride=2, padding=1, dilation=(1, 2))
        self.mixed = nn.Conv2d(24, 10, 2, groups=2)
        self.out = nn.Linear(10, 4)

    def forward(self, x, w):
        return self.out(self.mixed(self.depth(self.wide(x).tanh()).tanh()).mean((2, 3)))


@pytest.mark.parametrize("words", [None, "full", "masked:5x4:30", "sparse:40"])
def test_convolutions_in_groups(words):
    torch.manual_seed(4)
    model, batch = Grouped().eval(), net_batch()
    singles = [tuple(x[i : i + 1] for x in batch) for i in range(6)]
    moments = {n: torch.rand_like(p).square() + 0.1 for n, p in model.named_parameters()}
    settings = {"loss": net_loss, "k": 4, "biases": True}
    for more in ({}, {"moments": moments}):
        plain = Collector(model, **settings, **more)
        assert [c.name for c in plain.columns][:4] == ["wide", "depth", "mixed", "out"]
        scales = {c.name: moments[c.name if "bias" in c.name else f"{c.name}.weight"] for c in plain.columns} if more else None
        scales = scales and {name: 1 / (v.flatten(1 if v.ndim > 1 else 0).sqrt() + 1e-8) for name, v in scales.items()}
        scales = scales and {name: v if v.ndim > 1 else v[:, None] for name, v in scales.items()}
        if words is None:
            expected = by_autograd(model, net_loss, singles, plain.columns, 4, 7, of_any(model), scales)
            close(plain.rows(batch), expected)
            continue
        # The same projection of the whole gradient, which autograd gives: 4 stands for a side that is kept whole.
        wide = Collector(model, projection="full", loss=net_loss, biases=True, **more)
        whole = by_autograd(model, net_loss, singles, wide.columns, 10**6, 7, of_any(model), scales)
        close(wide.rows(batch), whole)
        found = Collector(model, projection=words, loss=net_loss, biases=True, **more)
        close(found.rows(batch), projected(whole, wide.columns, found))


def projected(whole, columns, collector):
    """Rows of whole gradients, projected by what the taps have drawn."""
    parts = []
    for tap, column in zip(collector.taps, columns, strict=True):
        g = torch.from_numpy(whole[:, column.start : column.start + column.len]).float()
        if tap.shape is not None:
            g = g.reshape(len(g), tap.fan_out, tap.fan_in)
            g = g if tap.p_in is None else g[..., tap.p_in]
            g = (g if tap.p_out is None else g[:, tap.p_out]).flatten(1)
        parts.append(g if tap.sums is None else tap.sums.of(g))
    return torch.cat(parts, 1).numpy()
