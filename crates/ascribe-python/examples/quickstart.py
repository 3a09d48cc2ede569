"""The README's five lines on two models that this file makes itself: a GPT-2 with random weights, and a CNN written by hand.

Needs the wheel, torch and transformers, nothing else: no download, no file. Run: python quickstart.py [FOLDER]
"""

import os
import sys
import tempfile
from pathlib import Path

import ascribe
import torch
from ascribe.torch import collect, gradients
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
Path(folder).mkdir(parents=True, exist_ok=True)
os.chdir(folder)
torch.manual_seed(0)

# A language model. Sequence 3 of the queries is training sequence 17.
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=512, n_positions=64, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
)
train_ids = torch.randint(512, (200, 32))
query_ids = torch.cat([torch.randint(512, (3, 32)), train_ids[17:18]]).tolist()
dataset_of_each = [i % 4 for i in range(200)]

# These are the five lines.
store = collect(model, train_ids, "out/store", datasets=dataset_of_each, progress=True)
influence = ascribe.score(store, gradients(model, query_ids), ascribe.fit(store))
print(influence.datasets)

assert influence.datasets.shape == (4, 4)
assert influence.top(1)[3][0][:2] == (17 % 4, 17 // 4), "a sequence is its own best proponent"
best = store.search(gradients(model, query_ids), k=3).of_query(3)  # the plain inner product, proven
assert (best["dataset"][0], best["position"][0]) == (17 % 4, 17 // 4)


# A network for images, and a loss per example.
class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(32 * 8 * 8, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(x).relu_()).relu_()
        return self.fc2(self.fc1(x.flatten(1)).relu_())


def loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")


net, images, labels = Net(), torch.randn(96, 3, 16, 16), torch.randint(10, (96,))
batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=16)

store = collect(net, batches, "out/cnn", loss=loss, progress=True)
rows = gradients(net, (images[:5], labels[:5]), loss=loss)
hits = store.search(rows, k=1)
assert hits["row"].tolist() == [0, 1, 2, 3, 4], "an image is its own best proponent"
print(store, "\nwritten to", folder)
