"""The collector on several ranks: their stores together are what one process would have written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
import ascribe  # noqa: E402
from ascribe.torch import Collector, causal_lm_loss, collect  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_torch import Net, close, gpt2, ids, net_batch, net_loss  # noqa: E402

RANKS = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[2])
import test_torch as t
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meet", rank=int(sys.argv[3]), world_size=2)
model = torch.nn.parallel.DistributedDataParallel(t.gpt2())
t.collect(model, t.ids(21), sys.argv[1] + "/store", k=4, batch_size=4)
dist.destroy_process_group()
"""


def test_two_ranks_write_what_one_would(tmp_path):
    whole = collect(gpt2(), ids(21), tmp_path / "whole", k=4)
    here = str(Path(__file__).parent)
    workers = [subprocess.Popen([sys.executable, "-c", RANKS, str(tmp_path), here, str(r)]) for r in range(2)]
    assert [w.wait(timeout=900) for w in workers] == [0, 0]
    store = ascribe.Store(tmp_path / "store")
    assert store.spec_sha256 == whole.spec_sha256 and (store.ids == whole.ids).all()
    close(store.rows(), whole.rows(), 1e-6)
    assert not list(tmp_path.glob("store.rank-*"))


BATCHES = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[2])
import test_torch as t
rank = int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
data = t.net_batch(20)
mine = range(0, 12) if rank == 0 else range(12, 20)
batches = [tuple(x[i : i + 4] for x in data) for i in mine[::4]]
model = torch.nn.parallel.DistributedDataParallel(t.Net())
t.collect(model, batches, sys.argv[1] + "/store", loss=t.net_loss, k=4, datasets=[i % 2 for i in mine])
dist.destroy_process_group()
"""


def test_two_ranks_with_batches_of_their_own(tmp_path):
    torch.manual_seed(0)
    datasets = [i % 2 for i in range(20)]
    whole = collect(Net(), [net_batch(20)], tmp_path / "whole", loss=net_loss, k=4, datasets=datasets)
    workers = [
        subprocess.Popen([sys.executable, "-c", BATCHES, str(tmp_path), str(Path(__file__).parent), str(r)]) for r in range(2)
    ]
    assert [w.wait(timeout=900) for w in workers] == [0, 0]
    store = ascribe.Store(tmp_path / "store")
    assert sorted(store.ids.tolist()) == sorted(whole.ids.tolist()) and store.n_datasets == 2
    close(store.rows()[np.argsort(store.ids)], whole.rows()[np.argsort(whole.ids)], 1e-5)


SHARDED = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[2])
import test_torch as t
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meet", rank=int(sys.argv[3]), world_size=2)
model, mesh = t.gpt2(), dist.device_mesh.init_device_mesh("cpu", (2,))
for block in model.transformer.h:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
t.collect(model, t.ids(21), sys.argv[1] + "/store", k=4, batch_size=5)  # two passes and three
dist.destroy_process_group()
"""


def test_sharded_parameters(tmp_path):
    """FSDP2: ranks that share parameters make equally many passes, or they would wait for each other for ever."""
    whole = collect(gpt2(), ids(21), tmp_path / "whole", k=4)
    here = str(Path(__file__).parent)
    workers = [subprocess.Popen([sys.executable, "-c", SHARDED, str(tmp_path), here, str(r)]) for r in range(2)]
    assert [w.wait(timeout=900) for w in workers] == [0, 0]
    store = ascribe.Store(tmp_path / "store")
    assert store.spec_sha256 == whole.spec_sha256 and (store.ids == whole.ids).all()
    close(store.rows(), whole.rows(), 1e-5)


def test_flattened_parameters_are_refused():
    """FSDP1 keeps parameters end to end, without names and shapes that a row could stand for."""

    class FullyShardedDataParallel(torch.nn.Module):  # the real one asks for ranks
        def __init__(self):
            super().__init__()
            self.module = Net()

    with pytest.raises(ValueError, match="FSDP2"):
        Collector(FullyShardedDataParallel(), loss=net_loss)


TRAINER_RANKS = """
import sys, torch
sys.path.insert(0, sys.argv[2])
import test_torch as t
callback = t.AscribeCallback(sys.argv[1] + "/trained", k=4)
run = t.trainer(sys.argv[1] + "/run", callback, max_steps=2, save_strategy="no", ddp_backend="gloo")
run.train()
torch.distributed.destroy_process_group()
"""


def run_ranks(script, folder):
    """A script on two ranks, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)]
    ranks = [{**os.environ, **place, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2)]
    workers = [subprocess.Popen(command, env=environment) for environment in ranks]
    assert [w.wait(timeout=900) for w in workers] == [0, 0]


def test_trainer_on_two_ranks(tmp_path):
    """DDP: each rank keeps the rows of its own examples; their stores join."""
    pytest.importorskip("accelerate")
    run_ranks(TRAINER_RANKS, tmp_path)
    parts = sorted(tmp_path.glob("trained.rank-*"))
    seen = [np.load(part / "examples.npz") for part in parts]
    examples = np.concatenate([notes["example_id"] for notes in seen])
    assert len(parts) == 2 and len(examples) == 16 == len(set(examples.tolist()))  # 2 steps of 4 on 2 ranks
    whole = ascribe.Store.merge(parts, tmp_path / "whole")
    assert len(whole) == 16 and len(set(whole.ids.tolist())) == 16 and np.isfinite(whole.rows()).all()
    # A rank's rows of the first step are the gradients of its own examples at the weights that training began with.
    for part, notes in zip(parts, seen, strict=True):
        rows, first = ascribe.Store(part).rows(), notes["step"] == 1
        model = gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        own = Collector(model, k=4).rows({"input_ids": ids(20)[notes["example_id"][first]]})
        cosine = (rows[first] * own).sum(1) / np.linalg.norm(rows[first], axis=1) / np.linalg.norm(own, axis=1)
        assert (cosine > 0.5).all(), cosine  # dropout stands between them


SHARDED_TRAINER = """
import sys, torch
sys.path.insert(0, sys.argv[2])
import test_training as t
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
made = AcceleratorState.__init__
def with_fsdp(self, *arguments, fsdp_plugin=None, **settings):
    made(self, *arguments, fsdp_plugin=fsdp_plugin, **settings)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
AcceleratorState.__init__ = with_fsdp
layers = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": ["GPT2Block"]}
callback = t.AscribeCallback(sys.argv[1] + "/trained", k=4)
settings = {"fsdp": True, "fsdp_config": layers, "ddp_backend": "gloo", "max_grad_norm": 0.0, "max_steps": 1}
run = t.training(sys.argv[1] + "/run", t.still(), [callback], **settings)
run.train()
assert run.accelerator.is_fsdp2 and all(type(p).__name__ == "DTensor" for p in run.model.parameters())
torch.distributed.destroy_process_group()
"""


def still():
    """The model of test_training's `still`, which needs accelerate to be imported."""
    return gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def test_trainer_with_sharded_parameters(tmp_path):
    """FSDP2 as accelerate makes it. On processors it makes DDP of it without a word; the script above tells it otherwise."""
    pytest.importorskip("accelerate")
    run_ranks(SHARDED_TRAINER, tmp_path)
    parts = sorted(tmp_path.glob("trained.rank-*"))
    seen = [np.load(part / "examples.npz")["example_id"] for part in parts]
    assert [len(set(examples.tolist())) for examples in seen] == [4, 4] and not set(seen[0]) & set(seen[1])
    for part, examples in zip(parts, seen, strict=True):
        # A step's loss is divided by its labels on all ranks and multiplied by the ranks, whose mean is taken.
        expected = Collector(still(), k=4).rows({"input_ids": ids(20)[examples]}) / (4 * 12)
        close(ascribe.Store(part).rows(), expected, 1e-4)
    model, tokens = still(), ids(20)[np.concatenate(seen)]
    (causal_lm_loss(model, {"input_ids": tokens}).sum() / (8 * 12)).backward()
    for part in parts:
        moments = load_file(part / "second_moments.safetensors")
        assert set(moments) == {name for name, _ in model.named_parameters()}
        for name, parameter in model.named_parameters():
            close(moments[name].numpy(), parameter.grad.square().numpy(), 1e-4)
