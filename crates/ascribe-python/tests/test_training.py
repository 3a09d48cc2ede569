"""What the Trainer callback keeps are the gradients that training used: mixed precision, checkpointing, adapters, accumulation,
loss scaling, resuming."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import ascribe  # noqa: E402
from ascribe.torch import AscribeCallback, Collector, causal_lm_loss  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_torch import Examples, close, gpt2, ids  # noqa: E402
from torch import nn  # noqa: E402


def still(**settings):
    """A model without dropout: a gradient can be computed again."""
    return gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **settings)


def adapted():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(still(), peft.LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def training(folder, model, callbacks, trainer=transformers.Trainer, **settings):
    arguments = {"per_device_train_batch_size": 4, "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 1}
    arguments |= {"remove_unused_columns": False, "learning_rate": 1e-3, "save_strategy": "no", **settings}
    arguments = transformers.TrainingArguments(output_dir=str(folder), **arguments)
    return trainer(model, arguments, train_dataset=Examples(), callbacks=callbacks)


def notes_of(folder):
    with np.load(Path(folder) / "examples.npz") as found:
        return dict(found)


@pytest.mark.parametrize(
    ("make", "settings", "tolerance"),
    [
        (still, {}, 1e-4),
        (still, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}, 1e-4),
        (still, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}, 1e-4),
        (still, {"gradient_accumulation_steps": 2}, 1e-4),
        (still, {"bf16": True}, 0.04),
        (still, {"bf16": True, "gradient_checkpointing": True}, 0.04),
        (adapted, {}, 1e-4),
        (adapted, {"bf16": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 2}, 0.04),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else getattr(x, "__name__", ""),
)
def test_rows_are_the_gradients_of_the_step(tmp_path, make, settings, tolerance):
    model, before = make(), make()
    callback = AscribeCallback(tmp_path / "trained", k=4)
    training(tmp_path / "run", model, [callback], max_steps=2, **settings).train()
    notes, rows = notes_of(tmp_path / "trained"), ascribe.Store(tmp_path / "trained").rows()
    n = 4 * settings.get("gradient_accumulation_steps", 1)
    assert notes["step"].tolist() == [1] * n + [2] * n
    # The trainer divides a step's loss by its labels: twelve an example, the first of which nothing predicts.
    expected = Collector(before, k=4).rows({"input_ids": ids(20)[notes["example_id"][:n]]}) / (n * 12)
    close(rows[:n], expected, tolerance)


def test_second_moments_are_adams(tmp_path):
    """After one step Adam's second moment, without its bias, is the squared gradient; autograd says what that is."""
    callback = AscribeCallback(tmp_path / "trained", k=4)
    training(tmp_path / "run", still(), [callback], max_steps=1, max_grad_norm=0.0).train()
    moments, model = load_file(tmp_path / "trained" / "second_moments.safetensors"), still()
    tokens = ids(20)[notes_of(tmp_path / "trained")["example_id"]]
    (causal_lm_loss(model, {"input_ids": tokens}).sum() / (4 * 12)).backward()
    named = dict(model.named_parameters())
    assert set(moments) == {name for name, p in named.items() if p.requires_grad}
    for name, found in moments.items():
        close(found.numpy(), named[name].grad.square().numpy(), 1e-4)


class Stop(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 7:
            raise RuntimeError("the power went")


def test_a_training_that_resumes_has_the_rows_of_one_that_went_through(tmp_path):
    settings = {"num_train_epochs": 2, "save_steps": 5, "save_strategy": "steps"}
    training(tmp_path / "whole", still(), [AscribeCallback(tmp_path / "rows", k=4)], **settings).train()
    with pytest.raises(RuntimeError, match="power"):
        training(tmp_path / "run", still(), [AscribeCallback(tmp_path / "again", k=4), Stop()], **settings).train()
    with pytest.raises(ascribe.StoreError):
        ascribe.Store(tmp_path / "again")
    resumed = training(tmp_path / "run", still(), [AscribeCallback(tmp_path / "again", k=4)], **settings)
    resumed.train(resume_from_checkpoint=True)
    whole, again = notes_of(tmp_path / "rows"), notes_of(tmp_path / "again")
    assert all((whole[key] == again[key]).all() for key in whole)
    close(ascribe.Store(tmp_path / "again").rows(), ascribe.Store(tmp_path / "rows").rows(), 1e-5)
    left, right = (load_file(tmp_path / name / "second_moments.safetensors") for name in ("again", "rows"))
    for name, value in left.items():
        close(value.numpy(), right[name].numpy(), 1e-5)


class Half(transformers.Trainer):
    """fp16 on a processor, where accelerate leaves the loss scale and the autocast out and trains in float32 without a word. With
    both put in, all else is what runs on a GPU."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)


class Watch(transformers.TrainerCallback):
    """Steps that changed the weights, and the number type that a layer computed in."""

    def __init__(self):
        self.changed, self.kinds = [], set()

    def on_step_begin(self, args, state, control, model=None, **_):
        self.before = model.transformer.h[0].mlp.c_fc.weight.detach().clone()

    def on_step_end(self, args, state, control, model=None, **_):
        if not torch.equal(self.before, model.transformer.h[0].mlp.c_fc.weight):
            self.changed.append(state.global_step)

    def on_train_begin(self, args, state, control, model=None, **_):
        model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda m, i, output: self.kinds.add(output.dtype))


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_fp16_under_a_trainer(tmp_path, optim, accumulate):
    """The scale begins so high that steps overflow, until it has fallen. A fused optimizer leaves such steps out by itself."""
    callback, watch = AscribeCallback(tmp_path / "trained", k=4), Watch()
    settings = {"fp16": True, "optim": optim, "max_steps": 14, "gradient_accumulation_steps": accumulate}
    run = training(tmp_path / "run", still(), [callback, watch], trainer=Half, **settings)
    run.train()
    assert watch.kinds == {torch.float16}
    notes, rows = notes_of(tmp_path / "trained"), ascribe.Store(tmp_path / "trained").rows()
    assert watch.changed[0] > 3 and len(watch.changed) > 2, "some steps overflow, some do not"
    steps, counts = np.unique(notes["step"], return_counts=True)
    assert steps.tolist() == watch.changed
    n = counts[0]
    # Until the first step that counted the weights were those of the beginning.
    expected = Collector(still(), k=4).rows({"input_ids": ids(20)[notes["example_id"][:n]]}) / (n * 12)
    close(rows[:n], expected, 0.01)
    moments = load_file(tmp_path / "trained" / "second_moments.safetensors")
    assert all(torch.isfinite(value).all() for value in moments.values())


def test_scaled_losses(tmp_path):
    """fp16 trains on losses times a scale. Rows are those of the losses; a step that overflowed was left out and has none."""
    import accelerate

    accelerate.Accelerator(cpu=True)
    model, reference = still(), still()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    plain = torch.optim.AdamW(model.parameters())
    optimizer = accelerate.optimizer.AcceleratedOptimizer(plain, scaler=scaler)
    callback, state = AscribeCallback(tmp_path / "trained", k=4), SimpleNamespace(global_step=0)
    callback.on_train_begin(None, state, None, model=model)
    batches = [ids(20)[start : start + 4] for start in range(0, 16, 4)]
    weights = [1.0, float("inf"), 1.0, 1.0]
    expected = []
    for step, (tokens, weight) in enumerate(zip(batches, weights, strict=True)):
        reference.load_state_dict(model.state_dict())
        if weight == 1.0:
            expected.append(Collector(reference, k=4).rows({"input_ids": tokens}))
        parts = [tokens] if step else tokens.split(2)  # the first step accumulates
        for i, part in enumerate(parts):
            names = torch.arange(len(part)) + 4 * step + 2 * i
            logits = model(input_ids=part, example_id=names).logits
            loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), part[:, 1:], reduction="sum")
            scaler.scale(loss * weight).backward()
            last = i + 1 == len(parts)
            (callback.on_pre_optimizer_step if last else callback.on_substep_end)(None, state, None, optimizer=optimizer)
        optimizer.step()
        assert optimizer.step_was_skipped == (weight != 1.0)
        callback.on_optimizer_step(None, state, None, optimizer=optimizer)
        optimizer.zero_grad()
        state.global_step += 1
    callback.on_train_end(None, state, None, optimizer=optimizer)
    notes = notes_of(tmp_path / "trained")
    assert notes["step"].tolist() == [1] * 4 + [3] * 4 + [4] * 4
    assert notes["example_id"].tolist() == [0, 1, 2, 3, *range(8, 16)]
    close(ascribe.Store(tmp_path / "trained").rows(), np.concatenate(expected), 1e-4)
    assert scaler.get_scale() == 2.0**11
