"""The collector: rows are projected gradients, whatever the layers, the wrappers and the interruptions."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import ascribe  # noqa: E402
from ascribe import _ascribe  # noqa: E402
from ascribe.torch import AscribeCallback, Collector, causal_lm_loss, collect, gradients, weights_digest  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(1)


def gpt2(**settings):
    torch.manual_seed(0)
    config = {
        "vocab_size": 100,
        "n_positions": 32,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    } | settings
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config)


def ids(n=10, length=12):
    return torch.randint(100, (n, length), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding="same", padding_mode="reflect")
        self.conv2 = nn.Conv2d(5, 7, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.fc = nn.Linear(7 * 5 * 4, 6)
        self.words = nn.Embedding(9, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x, w):
        x = self.conv2(self.conv1(x).relu_()).relu_()
        x = self.fc(x.flatten(1)) + self.words(w).mean(1)
        return self.out(x.tanh())


def net_loss(net, batch):
    return nn.functional.cross_entropy(net(batch[0], batch[1]), batch[2], reduction="none")


def net_batch(n=6):
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, 8, 8, generator=g), torch.randint(9, (n, 5), generator=g), torch.randint(4, (n,), generator=g)


def by_autograd(model, loss, batches, columns, k, seed, weights, scales=None):
    """Rows from autograd's own weight gradients, example by example."""
    rows = []
    for batch in batches:
        model.zero_grad()
        loss(model, batch).sum().backward()
        row = []
        for column in columns:
            g = weights(column.name).detach().numpy()
            if scales is not None:
                g = g * scales[column.name].numpy()
            if g.shape[1] == 1 and column.len == len(g):  # a vector is kept as it is
                row.append(g.ravel())
                continue
            p_in, p_out = _ascribe.two_sided(seed, column.name, g.shape[1], g.shape[0], k, k)
            row.append((p_out.T.astype(np.float64) @ g @ p_in).ravel())
        rows.append(np.concatenate(row))
    return np.stack(rows)


def of_linear(model):
    """Gradient of a module's matrix as [O, I], whatever way it is kept."""

    def weights(name):
        module = model.get_submodule(name)
        g = module.weight.grad
        return g.T if type(module).__name__ == "Conv1D" else g.flatten(1)

    return weights


def close(a, b, tolerance=2e-5):
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_rows_of_language_models(make):
    model, tokens = make().eval(), ids()
    collector = Collector(model, k=5, seed=9)
    batches = [{"input_ids": t[None]} for t in tokens]
    expected = by_autograd(model, causal_lm_loss, batches, collector.columns, 5, 9, of_linear(model))
    close(collector.rows({"input_ids": tokens}), expected)
    assert all(p.requires_grad for p in model.parameters())


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.both = nn.LayerNorm((4, 36))
        self.rms = nn.RMSNorm(36)
        self.out = nn.Linear(36, 4)
        for p in self.parameters():
            nn.init.normal_(p)
        nn.init.zeros_(self.rms.weight)  # what it multiplies must not be read off its output

    def forward(self, x, w):
        x = self.both(self.conv(x).flatten(2))
        return self.out(torch.tanh(x + self.rms(x)).mean(1))


def of_any(model):
    """Gradient of a named parameter as [O, I]; of a vector as [O, 1]."""
    matrices = of_linear(model)

    def weights(name):
        if name.endswith(".bias"):
            return model.get_parameter(name).grad.reshape(-1, 1)
        norm = "Norm" in type(model.get_submodule(name)).__name__
        return model.get_submodule(name).weight.grad.reshape(-1, 1) if norm else matrices(name)

    return weights


@pytest.mark.parametrize("make", [gpt2, llama])
def test_norms_and_biases(make):
    model = make().eval()
    collector = Collector(model, k=5, norms=True, biases=True)
    plain = Collector(model, k=5)
    assert collector.columns[: len(plain.columns)] == plain.columns
    more = [c.name for c in collector.columns[len(plain.columns) :]]
    assert len(set(more)) == len(more)
    wanted = {n for n, p in model.named_parameters() if p.ndim == 1}
    assert {n if n.endswith(".bias") else f"{n}.weight" for n in more} == wanted
    expected = by_autograd(model, causal_lm_loss, [{"input_ids": t[None]} for t in ids()], collector.columns, 5, 7, of_any(model))
    close(collector.rows({"input_ids": ids()}), expected)


def test_norms_and_biases_of_any_network():
    torch.manual_seed(1)
    model, batch = Norms().eval(), net_batch()
    names = ["conv", "out", "both", "rms", "conv.bias", "both.bias", "out.bias"]
    collector = Collector(model, loss=net_loss, k=6, norms=True, biases=True)
    assert sorted(c.name for c in collector.columns) == sorted(names)
    singles = [tuple(x[i : i + 1] for x in batch) for i in range(len(batch[0]))]
    close(collector.rows(batch), by_autograd(model, net_loss, singles, collector.columns, 6, 7, of_any(model)))
    moments = {n: torch.rand_like(p).square() for n, p in model.named_parameters()}
    scaled = Collector(model, loss=net_loss, k=6, norms=True, biases=True, moments=moments)
    scales = {}
    for c in scaled.columns:
        v = moments[c.name if c.name.endswith(".bias") else f"{c.name}.weight"]
        flat = v.flatten(1) if c.name in ("conv", "out") else v.reshape(-1, 1)
        scales[c.name] = 1 / (flat.sqrt() + 1e-8)
    close(scaled.rows(batch), by_autograd(model, net_loss, singles, scaled.columns, 6, 7, of_any(model), scales))
    some = Collector(model, loss=net_loss, biases=True, norms=True, modules=["out"], exclude=["*.bias", "rms"])
    assert [c.name for c in some.columns] == ["out", "both"]


def test_projections_keep_products_on_average():
    model, batch = Net().eval(), net_batch()
    full = Collector(model, loss=net_loss, projection="full").rows(batch).astype(np.float64)
    exact = full @ full.T
    for words in ("sparse:64", "sparse:64:3", "masked:6x4:64", "masked:5:40:2"):
        found = np.zeros_like(exact)
        for seed in range(60):
            rows = Collector(model, loss=net_loss, projection=words, seed=seed).rows(batch).astype(np.float64)
            found += rows @ rows.T / 60
        assert np.abs(found - exact).max() < 0.35 * np.abs(exact).max(), words
    moments = {n: torch.rand_like(p).square() + 0.1 for n, p in model.named_parameters()}
    scaled = Collector(model, loss=net_loss, projection="masked:6x4:64", moments=moments)
    whole = Collector(model, loss=net_loss, projection="full", moments=moments).rows(batch)
    for tap, column in zip(scaled.taps, scaled.columns, strict=True):
        at = next(c for c in Collector(model, loss=net_loss, projection="full").columns if c.name == column.name)
        g = whole[:, at.start : at.start + at.len].reshape(len(whole), tap.fan_out, tap.fan_in)
        kept = np.ascontiguousarray(g[:, tap.p_out.numpy()][:, :, tap.p_in.numpy()]).reshape(len(g), -1)
        sums = np.zeros((len(g), 64))
        for places, signs in zip(tap.sums.places.numpy(), tap.sums.signs.numpy(), strict=True):
            for j, (place, sign) in enumerate(zip(places, signs, strict=True)):
                sums[:, place] += kept[:, j] * sign
        close(scaled.rows(batch)[:, tap.place], sums)
    for words in ("", "none", "full:3", "sparse", "sparse:0", "sparse:a", "masked:3:", "masked:1x2x3:4", "masked:2:3:4:5"):
        with pytest.raises(ValueError, match="projection"):
            Collector(model, loss=net_loss, projection=words)
    with pytest.raises(ValueError, match="embeddings"):
        Collector(model, loss=net_loss, projection="full", embedding=True)


def test_rows_of_any_network():
    model = Net().eval()
    batch = net_batch()
    collector = Collector(model, loss=net_loss, k=4, embedding=True)
    assert [c.name for c in collector.columns] == ["conv1", "conv2", "fc", "out", "words"]
    singles = [tuple(x[i : i + 1] for x in batch) for i in range(6)]
    expected = by_autograd(model, net_loss, singles, collector.columns, 4, 7, of_linear(model))
    close(collector.rows(batch), expected)


def test_tied_embedding_takes_the_output_layer_in():
    model, tokens = gpt2().eval(), ids(4)
    collector = Collector(model, k=4, modules=["*.mlp.c_fc", "lm_head"], embedding=True, exclude=["*.wpe"])
    names = [c.name for c in collector.columns]
    assert names == ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc", "transformer.wte"]
    batches = [{"input_ids": t[None]} for t in tokens]
    for one in (collector, Collector(model, k=4, embedding=True, exclude=["*.wpe"])):
        expected = by_autograd(model, causal_lm_loss, batches, one.columns, 4, 7, of_linear(model))
        close(one.rows({"input_ids": tokens}), expected)


def test_adam_moments_divide_before_the_projection():
    model, tokens = gpt2().eval(), ids(3)
    moments = {f"{n}.weight": torch.rand_like(m.weight) for n, m in model.named_modules() if hasattr(m, "weight")}
    collector = Collector(model, k=4, moments=moments)
    scales = {}
    for c in collector.columns:
        v = moments[f"{c.name}.weight"]
        scales[c.name] = 1 / (v.T.sqrt() + 1e-8)
    batches = [{"input_ids": t[None]} for t in tokens]
    expected = by_autograd(model, causal_lm_loss, batches, collector.columns, 4, 7, of_linear(model), scales)
    close(collector.rows({"input_ids": tokens}), expected)
    assert collector.spec("0" * 64, "0" * 64).normalizer.startswith("adam_v:")
    with pytest.raises(ValueError, match="moments"):
        Collector(model, moments={})


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_gradient_checkpointing_changes_nothing(make, reentrant):
    model = make()
    plain = Collector(model, k=4).rows({"input_ids": ids()})
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5  # must stay off
    model.train()
    close(Collector(model, k=4).rows({"input_ids": ids()}), plain, 1e-5)
    assert model.training


def test_bf16_autocast_is_near_and_another_spec():
    model = llama().eval()
    exact = Collector(model, k=4)
    rough = Collector(model, k=4, autocast=torch.bfloat16)
    a, b = exact.rows({"input_ids": ids()}), rough.rows({"input_ids": ids()})
    assert 0 < np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)
    assert rough.spec("0" * 64, "0" * 64).quantity == "gradient_bf16" and b.dtype == np.float32


def test_bf16_weights():
    model = llama().eval().bfloat16()
    rows = Collector(model, k=4).rows({"input_ids": ids()})
    reference = Collector(copy.deepcopy(model).float(), k=4).rows({"input_ids": ids()})
    assert np.linalg.norm(rows - reference) < 0.05 * np.linalg.norm(reference)


def test_queries_of_other_settings_are_refused(tmp_path):
    model = gpt2().eval()
    store = collect(model, ids(6), tmp_path / "s", k=4)
    assert gradients(model, ids(2).tolist(), k=4, store=store).shape == (2, store.dim)
    for settings, words in (
        ({"k": 4, "seed": 8}, "projector"),
        ({"k": 4, "autocast": torch.bfloat16}, "quantity"),
        ({"k": 4, "exclude": ["*.mlp.*"]}, "dim"),
        ({"k": 4, "loss": causal_lm_loss, "loss_name": "another"}, "loss"),
    ):
        with pytest.raises(ascribe.SpecMismatchError, match=words):
            gradients(model, {"input_ids": ids(2)}, store=store, **settings)


def test_company_and_padding_do_not_matter():
    model = gpt2().eval()
    data = [list(range(5)), list(range(20, 31)), [7, 8]]
    together = gradients(model, data, k=4)
    alone = np.concatenate([gradients(model, [d], k=4) for d in data])
    close(together, alone, 1e-5)
    labelled = [{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}]
    other = gradients(model, [[1, 2, 3, 4]], k=4)
    assert not np.allclose(gradients(model, labelled, k=4), other)


def test_collect_resumes_and_equals_one_go(tmp_path):
    model, tokens = gpt2().eval(), ids(30)
    whole = collect(model, tokens, tmp_path / "whole", k=4, datasets=[i % 2 for i in range(30)])
    calls = 0

    def breaks(m, batch):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("the power went")
        return causal_lm_loss(m, batch)

    settings = {"k": 4, "datasets": [i % 2 for i in range(30)]}
    collector = Collector(model, k=4)
    # Shards of 8 rows, so that something is committed before the stop.
    spec = whole.spec
    with ascribe.StoreWriter(tmp_path / "part", spec, 30, rows_per_shard=1024) as writer, pytest.raises(RuntimeError):
        for start in range(0, 30, 8):
            batch = {"input_ids": tokens[start : start + 8]}
            writer.push(whole.ids[start : start + 8], collector.rows(batch))
            breaks(model, batch)
    again = collect(model, tokens, tmp_path / "part", **settings)
    close(again.rows(), whole.rows(), 1e-6)
    assert again.spec_sha256 == whole.spec_sha256 and (again.ids == whole.ids).all()
    assert whole.n_datasets == 2 and len(collect(model, tokens, tmp_path / "whole", **settings)) == 30


def test_batches_of_anything(tmp_path):
    model = Net()
    data = torch.utils.data.TensorDataset(*net_batch(20))
    loader = torch.utils.data.DataLoader(data, batch_size=6)
    store = collect(model, loader, tmp_path / "a", loss=net_loss, k=4)
    unknown = collect(model, (b for b in loader), tmp_path / "b", loss=net_loss, k=4)
    assert (store.rows() == unknown.rows()).all() and store.spec.loss == "net_loss"
    with ascribe.StoreWriter(tmp_path / "c", store.spec, 20, rows_per_shard=1024):
        pass
    resumed = collect(model, loader, tmp_path / "a", loss=net_loss, k=4)
    assert len(resumed) == 20


def test_rust_makes_the_same_rows(tmp_path):
    """A model of the repository, loaded by transformers; `ascribe features` is asked for the same sequences."""
    command = os.environ.get("ASCRIBE")
    folder = Path(os.environ.get("ASCRIBE_ROOT", "")) / "models" / "finch"
    if not command or not folder.is_dir():
        pytest.skip("ASCRIBE and ASCRIBE_ROOT name the command and the repository")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sequences = torch.randint(1000, (12, 40), generator=torch.Generator().manual_seed(5)).tolist()
    lines = "".join(f'{{"input_ids": {s}}}\n' for s in sequences)
    (tmp_path / "data.jsonl").write_text(lines)
    arguments = ["features", "--model", str(folder), "--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "rust")]
    subprocess.run([command, *arguments, "--threads", "1", "--format", "json"], check=True, capture_output=True)
    rust = ascribe.Store(tmp_path / "rust")
    mine = collect(model, sequences, tmp_path / "torch", model_sha256=weights_digest(model, folder))
    assert mine.spec_sha256 == rust.spec_sha256 and (mine.ids == rust.ids).all()
    close(mine.rows(), rust.rows(), 1e-4)
    hits = subprocess.run(
        [
            command,
            "search",
            "--store",
            str(mine.path),
            "--queries",
            str(save(tmp_path, mine.rows(0, 4))),
            "--k",
            "3",
            "--format",
            "json",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    import json

    found = json.loads(hits.stdout)
    own = mine.search(mine.rows(0, 4), 3)
    assert [row for query in found["queries"] for row in query["rows"]] == own["row"].tolist()
    np.testing.assert_allclose([x for query in found["queries"] for x in query["scores"]], own["score"], rtol=1e-12)
    with pytest.raises(ValueError, match="weights"):
        weights_digest(llama(), folder)


SETTINGS = [
    ({"projection": "full", "modules": ["*.o_proj"]}, ["--projection", "full", "--taps", "*.o_proj"]),
    ({"projection": "sparse:200:3"}, ["--projection", "sparse:200:3"]),
    ({"projection": "masked:9x5:64:2"}, ["--projection", "masked:9x5:64:2"]),
    ({"k": (4, 8), "norms": True, "biases": True}, ["--projection", "4x8", "--norms", "--biases"]),
    ({"k": 4, "norms": True, "embedding": True}, ["--projection", "4", "--norms", "--embedding"]),
    ({"projection": "factored:16x8:2", "norms": True}, ["--projection", "factored:16x8:2", "--norms"]),
    ({"projection": "factored:8:1", "embedding": True}, ["--projection", "factored:8x8:1", "--embedding"]),
]


@pytest.mark.parametrize("settings, arguments", SETTINGS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_rust_makes_the_same_rows_with(tmp_path, settings, arguments):
    command = os.environ.get("ASCRIBE")
    folder = Path(os.environ.get("ASCRIBE_ROOT", "")) / "models" / "finch"
    if not command or not folder.is_dir():
        pytest.skip("ASCRIBE and ASCRIBE_ROOT name the command and the repository")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sequences = torch.randint(1000, (5, 20), generator=torch.Generator().manual_seed(6)).tolist()
    (tmp_path / "data.jsonl").write_text("".join(f'{{"input_ids": {s}}}\n' for s in sequences))
    words = ["features", "--model", str(folder), "--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "rust")]
    done = subprocess.run([command, *words, *arguments, "--threads", "1", "--format", "json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rust = ascribe.Store(tmp_path / "rust")
    mine = collect(model, sequences, tmp_path / "torch", model_sha256=weights_digest(model, folder), **settings)
    assert mine.spec == rust.spec
    if "factored" in settings.get("projection", ""):
        close(mine.expand(mine.rows()), mine.expand(rust.rows()), 1e-4)
        close(rust.expand(rust.rows()), mine.expand(rust.rows()), 0)  # the command's spec is layout enough here
    else:
        close(mine.rows(), rust.rows(), 1e-4)


def save(folder, rows):
    np.save(folder / "queries.npy", rows)
    return folder / "queries.npy"


class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, i):
        return {"input_ids": ids(20)[i], "labels": ids(20)[i], "example_id": i, "dataset_id": i % 2}


def trainer(folder, callback, **settings):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        remove_unused_columns=False,
        learning_rate=1e-3,
        **settings,
    )
    return transformers.Trainer(gpt2(), arguments, train_dataset=Examples(), callbacks=[callback] if callback else [])


def test_trainer_callback(tmp_path):
    pytest.importorskip("accelerate")
    callback = AscribeCallback(tmp_path / "trained", k=4, norms=True, biases=True)
    run = trainer(tmp_path / "run", callback, num_train_epochs=2, gradient_accumulation_steps=2, save_strategy="no")
    run.train()
    store = ascribe.Store(tmp_path / "trained")
    notes = np.load(tmp_path / "trained" / "examples.npz")
    assert len(store) == 40 and sorted(notes["example_id"].tolist()) == sorted(list(range(20)) * 2)
    assert set(notes["step"].tolist()) == set(range(1, run.state.global_step + 1)) and store.n_datasets == 2
    assert (notes["dataset_id"] == notes["example_id"] % 2).all()
    assert np.isfinite(callback.overhead)
    from safetensors.torch import load_file

    moments = load_file(tmp_path / "trained" / "second_moments.safetensors")
    scaled = Collector(run.model, k=4, norms=True, biases=True, moments=moments).rows({"input_ids": ids(2)})
    assert np.isfinite(scaled).all()
    silent = trainer(tmp_path / "silent", None, num_train_epochs=2, gradient_accumulation_steps=2, save_strategy="no")
    for a, b in zip(run.model.parameters(), plain_training(silent).parameters(), strict=True):
        assert torch.equal(a, b), "collecting changed the training"


def plain_training(run):
    """The same training without the callback: the two fields are taken off by a collator."""

    def collate(items):
        return {k: torch.stack([torch.as_tensor(i[k]) for i in items]) for k in ("input_ids", "labels")}

    run.data_collator = collate
    run.train()
    return run.model


def test_trainer_resumes(tmp_path):
    pytest.importorskip("accelerate")
    settings = {"num_train_epochs": 2, "save_steps": 5, "save_strategy": "steps"}

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 7:
                raise RuntimeError("the power went")

    first = AscribeCallback(tmp_path / "trained", k=4)
    run = trainer(tmp_path / "run", first, **settings)
    run.add_callback(Stop())
    with pytest.raises(RuntimeError, match="power"):
        run.train()
    again = AscribeCallback(tmp_path / "trained", k=4)
    trainer(tmp_path / "run", again, **settings).train(resume_from_checkpoint=True)
    notes = np.load(tmp_path / "trained" / "examples.npz")
    assert notes["step"].tolist() == [s for s in range(1, 11) for _ in range(4)]
    assert len(again.store) == 40


def test_peft_rows_are_those_of_the_adapter():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(gpt2(), peft.LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.eval()
    collector = Collector(model, k=2)
    assert [c.name for c in collector.columns] == [f"transformer.h.{i}.attn.c_attn.lora_{ab}" for i in range(2) for ab in "AB"]

    def weights(name):
        return model.get_submodule(f"base_model.model.{name}.default").weight.grad

    batches = [{"input_ids": t[None]} for t in ids(4)]
    close(collector.rows({"input_ids": ids(4)}), by_autograd(model, causal_lm_loss, batches, collector.columns, 2, 7, weights))


def test_what_is_refused(tmp_path):
    model = gpt2()
    with pytest.raises(ValueError, match="pattern"):
        Collector(model, modules=["nothing"])
    with pytest.raises(ValueError, match="at least one"):
        Collector(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="one number per example"):
        Collector(Net(), loss=lambda n, b: net_loss(n, b).mean()).rows(net_batch())
    with pytest.raises(ValueError, match="token ids"):
        collect(model, [[0.5, 1.0]], tmp_path / "s")
    with pytest.raises(ValueError, match="datasets"):
        collect(model, ids(4), tmp_path / "s", datasets=[0])
    data = torch.utils.data.TensorDataset(*net_batch(6))
    with pytest.raises(ValueError, match="fixed order"):
        collect(Net(), torch.utils.data.DataLoader(data, batch_size=2, shuffle=True), tmp_path / "s", loss=net_loss)
    assert not (tmp_path / "s").exists()

    class Unused(Net):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(3, 3)

    with pytest.raises(RuntimeError, match="extra"):
        Collector(Unused(), loss=net_loss).rows(net_batch())
    broken = gpt2()
    with torch.no_grad():
        broken.transformer.h[0].mlp.c_fc.weight.fill_(float("nan"))
    with pytest.raises(ascribe.NotFiniteError, match="row 0"):
        collect(broken, ids(4), tmp_path / "nan")
    with pytest.raises(ascribe.UnfinishedError):
        ascribe.Store(tmp_path / "nan")
