"""Image classifiers beside PyTorch: training and per-example gradients on the same shapes, one thread, in turn.

    $TORCH_PYTHON image_compare.py DIR [ROUNDS]

DIR holds x_train.npy [n, 784] and y_train.npy [n] (bytes; MNIST). Run it with a Python that has torch, from the repository;
it builds and runs the example `image_rates` and then the same work in PyTorch, ROUNDS times (3), and prints each one's best
images per CPU-second and the ratio. Both train with SGD, momentum 0.9 and the same recipe; PyTorch's per-example gradients
are torch.func's vmap(grad), the usual way.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]


def block(i, o, pool=False):
    layers = [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class ResNet9(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = block(3, 64), block(64, 128, True)
        self.res1 = nn.Sequential(block(128, 128), block(128, 128))
        self.conv3, self.conv4 = block(128, 256, True), block(256, 512, True)
        self.res2 = nn.Sequential(block(512, 512), block(512, 512))
        self.classifier = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, 10))

    def forward(self, x):
        x = self.conv2(self.conv1(x))
        x = self.res1(x) + x
        x = self.conv4(self.conv3(x))
        return self.classifier(self.res2(x) + x)


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


def mlp():
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def timed(found, what, images, work):
    start = time.process_time()
    result = work()
    found[what] = images / (time.process_time() - start)
    return result


def train(found, name, model, x, y, epochs, lr, decay):
    opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    per = len(x) // 64
    total = per * epochs

    def work():
        step = 0
        for _ in range(epochs):
            order = torch.randperm(len(x))
            for b in range(per):
                at = order[b * 64:(b + 1) * 64]
                opt.param_groups[0]["lr"] = lr * (1 - step / total)
                loss = nn.functional.cross_entropy(model(x[at]), y[at])
                opt.zero_grad(set_to_none=True)
                loss.backward()
                opt.step()
                step += 1

    model.train()
    timed(found, f"train {name}", total * 64, work)
    model.eval()
    with torch.no_grad():
        loss = timed(found, f"losses {name}", len(x), lambda: nn.functional.cross_entropy(model(x), y))
    found[f"final loss {name}"] = loss.item()


def gradients(found, name, model, x, y, chunk):
    weights = {k: v.detach() for k, v in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(w, x, y):
        return nn.functional.cross_entropy(functional_call(model, (w, buffers), (x[None],)), y[None])

    rows = vmap(grad(loss), in_dims=(None, 0, 0))

    def work():
        for at in range(0, len(x), chunk):
            rows(weights, x[at:at + chunk], y[at:at + chunk])

    rows(weights, x[:chunk], y[:chunk])
    timed(found, f"gradients {name}", len(x), work)


def pytorch(folder):
    torch.manual_seed(0)
    found = {}
    x = torch.from_numpy((np.load(folder / "x_train.npy").astype(np.float32) / 255 - 0.1307) / 0.3081)
    y = torch.from_numpy(np.load(folder / "y_train.npy")).long()
    model = nn.Linear(784, 10)
    train(found, "lr", model, x, y, 16, 0.01, 1e-3)
    gradients(found, "lr", model, x, y, 500)
    model = mlp()
    train(found, "mlp", model, x, y, 12, 0.03, 5e-4)
    gradients(found, "mlp", model, x, y, 500)
    digits, photos = torch.randn(1024, 1, 28, 28), torch.randn(64, 3, 32, 32)
    model = lenet()
    train(found, "lenet", model, digits, torch.arange(1024) % 10, 1, 0.01, 0.0)
    gradients(found, "lenet", model, digits, torch.arange(1024) % 10, 128)
    model = ResNet9()
    train(found, "resnet9", model, photos, torch.arange(64) % 10, 1, 0.001, 0.0)
    gradients(found, "resnet9", model, photos[:32], torch.arange(32) % 10, 4)
    return found


def ours(folder):
    command = ["cargo", "run", "--release", "-q", "-p", "ascribe-models", "--example", "image_rates", "--", str(folder)]
    program = os.environ.get("IMAGE_RATES")
    lines = subprocess.run([program, str(folder)] if program else command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = {}
    for line in lines.stdout.splitlines():
        entry = json.loads(line)
        found[entry["what"]] = entry.get("images_per_cpu_second", entry.get("loss"))
    return found


def main():
    folder, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    sides = {"ascribe": ours, "torch": pytorch}
    best = {side: {} for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            for what, value in run(folder).items():
                known = best[side].get(what)
                best[side][what] = value if known is None or what.startswith("final") else max(known, value)
    print(f"{'images per CPU-second':24}{'ascribe':>12}{'PyTorch':>12}{'ratio':>8}")
    for what, mine in best["ascribe"].items():
        theirs = best["torch"].get(what)
        if theirs is None:
            print(f"{what:24}{mine:12,.0f}{'-':>12}")
        elif what.startswith("final"):
            print(f"{what:24}{mine:12.4f}{theirs:12.4f}")
        else:
            print(f"{what:24}{mine:12,.0f}{theirs:12,.0f}{mine / theirs:8.2f}")


if __name__ == "__main__":
    main()
