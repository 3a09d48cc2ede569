"""EK-FAC of dattri on a case with a known answer.

One linear layer, squared-error-like curvature built so that inputs and output gradients are independent: the Fisher matrix is then
exactly S (x) A, and EK-FAC must give H^-1 = (S (x) A + damping)^-1. Inputs x take the columns of a rotated scaled basis, output
gradients d those of another, in all pairs; so A = E[x x^T], S = E[d d^T] have known, distinct eigenvectors that are not axes.
The formula with eigenvectors in their places, the formula as the peer's code has it, and the peer itself on the case are compared
with the dense inverse. Prints relative errors; the exit code is 0 whatever they are: this is a measurement.
"""
import json
import sys

import torch

torch.manual_seed(0)
torch.set_num_threads(1)
n_in, n_out, damping = 5, 3, 1e-2
basis = lambda n: torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
q_a, q_s = basis(n_in), basis(n_out)
l_a = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64)
l_s = torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64)
a, s = q_a @ torch.diag(l_a) @ q_a.T, q_s @ torch.diag(l_s) @ q_s.T
v = torch.randn(n_out, n_in, dtype=torch.float64)
dense = torch.linalg.solve(torch.kron(s, a) + damping * torch.eye(n_in * n_out, dtype=torch.float64), v.flatten()).view(n_out, n_in)
right = q_s @ ((q_s.T @ v @ q_a) / (torch.outer(l_s, l_a) + damping)) @ q_a.T


def error(x):
    return float(((x - dense).norm() / dense.norm()))


out = {"right formula, relative error": error(right)}

# dattri 0.3.0 turns V by `q_s @ V @ q_a.T` and back by `q_s.T @ ... @ q_a`, with the eigenvectors of eigh as columns.
import inspect

from dattri.algorithm.influence_function import IFAttributorEKFAC

source = inspect.getsource(IFAttributorEKFAC)
turned = q_s.T @ ((q_s @ v @ q_a.T) / (((q_s @ s @ q_s.T).diagonal()[:, None] * (q_a @ a @ q_a.T).diagonal()[None, :]) + damping)) @ q_a
out["eigenvectors applied transposed, as dattri's code reads, relative error"] = error(turned)
out["dattri's lines"] = sorted({line.strip() for line in source.splitlines() if "@" in line and "q_" in line})[:6]

# The whole of dattri on the same case: a linear model whose per-example gradients are d x^T.
from dattri.task import AttributionTask
from torch.utils.data import DataLoader, TensorDataset

pairs = [(n_in**0.5 * l_a[i].sqrt() * q_a[:, i], n_out**0.5 * l_s[j].sqrt() * q_s[:, j]) for i in range(n_in) for j in range(n_out)]
x = torch.stack([p[0] for p in pairs]).float()
d = torch.stack([p[1] for p in pairs]).float()
model = torch.nn.Sequential(torch.nn.Linear(n_in, n_out, bias=False))


def loss(params, data):
    x, d = data
    if x.dim() == 1:
        x, d = x.unsqueeze(0), d.unsqueeze(0)
    y = torch.func.functional_call(model, params, (x,))
    return (y * d).sum(-1).mean()  # gradient of an example by y: its d


try:
    task = AttributionTask(loss_func=loss, model=model, checkpoints={k: p.detach() for k, p in model.named_parameters()})
    attributor = IFAttributorEKFAC(task, device="cpu", damping=damping)
    attributor.cache(DataLoader(TensorDataset(x, d), batch_size=len(x), shuffle=False))
    scores = attributor.attribute(
        DataLoader(TensorDataset(x, d), batch_size=len(x), shuffle=False),
        DataLoader(TensorDataset(x, d), batch_size=len(x), shuffle=False),
    ).double()
    g = torch.einsum("no,ni->noi", d.double(), x.double()).flatten(1)
    exact = g @ torch.linalg.solve(torch.kron(s, a) + damping * torch.eye(n_in * n_out, dtype=torch.float64), g.T)
    corr = torch.corrcoef(torch.stack([scores.flatten(), exact.flatten()]))[0, 1]
    out["dattri 0.3.0 EK-FAC: correlation of its scores with the exact ones"] = float(corr)
    off = exact - torch.diag(exact.diagonal())
    out["exact scores off the diagonal, largest"] = float(off.abs().max())
    scaled = scores / scores.diagonal().mean() * exact.diagonal().mean()
    out["dattri 0.3.0 EK-FAC: largest off the diagonal, same mean diagonal"] = float((scaled - torch.diag(scaled.diagonal())).abs().max())
except Exception as problem:  # the peer's own failure is a result too
    out["dattri 0.3.0 EK-FAC"] = f"{type(problem).__name__}: {problem}"

# pyDVL 0.10.0 makes its EK-FAC from gradients of its own label-free loss in the place of labels. On one layer of logits with the answer p the
# Fisher matrix is diag(p) - p p^T; one gradient per example has an outer product of rank one.
p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
fisher = torch.diag(p) - torch.outer(p, p)
try:
    from pydvl.influence.torch.util import empirical_cross_entropy_loss_fn

    z = p.log().unsqueeze(0).requires_grad_()
    (g,) = torch.autograd.grad(empirical_cross_entropy_loss_fn(z), z)
    theirs = torch.outer(g[0], g[0])
    out["Fisher matrix of logits with p = (0.5, 0.3, 0.2), eigenvalues"] = torch.linalg.eigvalsh(fisher).tolist()
    out["pyDVL 0.10.0: outer product of its label-free gradient, eigenvalues"] = torch.linalg.eigvalsh(theirs).tolist()
    drawn = torch.eye(3, dtype=torch.float64) - p
    out["labels drawn, mean of outer products: largest difference from the Fisher matrix"] = float(
        ((drawn * p[:, None]).T @ drawn - fisher).abs().max()
    )
except Exception as problem:
    out["pyDVL 0.10.0"] = f"{type(problem).__name__}: {problem}"
json.dump(out, sys.stdout, indent=1)
print()
