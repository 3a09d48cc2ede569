"""Do llama.cpp's package and PEFT mean the same by their files as Ascribe does? The last line is `N passed, M failed`.

The scripts beside the fixtures make the files, here with other seeds and sizes.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

RTOL = 1e-5  # of the largest number
SEED, WIDTH = 1000, 48
tally = {True: 0, False: 0}


def check(name: str, ok: bool, detail: str) -> None:
    tally[bool(ok)] += 1
    print(f"{'ok    ' if ok else 'FAILED'} {name}: {detail}", flush=True)


def agree(name: str, ours: list[float], theirs: torch.Tensor) -> None:
    theirs = theirs.double().flatten()
    gap, scale = float((torch.tensor(ours).double() - theirs).abs().max()), float(theirs.abs().max())
    check(name, gap <= RTOL * scale, f"largest gap {gap:.1e} of {scale:.1f}")


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def ours(formats: str, *arguments: str | Path) -> dict:
    done = subprocess.run([formats, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def compare(name: str, facts: dict, reference: dict[str, torch.Tensor]) -> None:
    agree(f"{name}, logits", facts["logits"], reference["logits"])
    if "loss" in reference:
        agree(f"{name}, loss", [facts["loss"]], reference["loss"])
        gradients = {key: value for key, value in reference.items() if key.startswith("grad.")}
        names = {f"grad.base_model.model.{key}": value for key, value in facts["gradient"].items()}
        check(f"{name}, adapted modules", names.keys() == gradients.keys(), f"{len(gradients)} tensors")
        for key in sorted(names.keys() & gradients.keys()):
            agree(f"{name}, {key}", names[key], gradients[key])


def read_by_us(formats: str, name: str, folder: Path, *command: str | Path) -> None:
    reference, metadata = tensors(folder)
    ids = ",".join(map(str, json.loads(metadata["tokens"])))
    try:
        compare(name, ours(formats, *command, ids), reference)
    except RuntimeError as error:
        check(name, False, str(error))


def trained_by_us(formats: str, name: str, base: Path, targets: str, lora: ModuleType) -> None:
    """Our adapter on their model, opened by PEFT; its gradients there and here."""
    with tempfile.TemporaryDirectory() as out:
        config = AutoConfig.from_pretrained(base)
        tokens = torch.arange(24)[None] * 5 % config.vocab_size
        ids = ",".join(map(str, tokens[0].tolist()))
        facts = ours(formats, "train", base, out, targets, ids)
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(load_file(base / "model.safetensors"), strict=False)
        before = lora.facts(model.double().eval(), tokens)["loss"]
        model = PeftModel.from_pretrained(model, out, is_trainable=True).eval().double()
        compare(name, facts, lora.facts(model, tokens))
        check(f"{name}, five steps", facts["loss"] < before.item(), f"loss {before.item():.2f} to {facts['loss']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--formats", required=True)
    parser.add_argument("--fixtures", type=Path, required=True)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    made = script(arguments.fixtures / "gguf" / "make_fixtures.py")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for seed, (name, case) in enumerate(made.models(WIDTH).items()):
            made.make(folder, SEED + seed, name, *case)
            read_by_us(arguments.formats, f"gguf {name}", folder / f"{name}.safetensors", "gguf", folder / f"{name}.gguf")
        lora = script(arguments.fixtures / "lora" / "make_fixtures.py")
        for seed, (name, case) in enumerate(lora.cases(WIDTH).items()):
            lora.make(folder / name, SEED + seed, *case)
            read_by_us(arguments.formats, f"peft {name}", folder / name / "reference.safetensors", "adapter", folder / name,
                       folder / name)
        for base, targets in [("llama", "all-linear"), ("llama", ".*(q|down)_proj"), ("gpt2", "all-linear")]:
            trained_by_us(arguments.formats, f"ours {base} {targets}", folder / base, targets, lora)
    print(f"{tally[True]} passed, {tally[False]} failed")
    sys.exit(tally[False] > 0 or tally[True] == 0)


main()
