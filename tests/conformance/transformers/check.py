"""Does PyTorch's `transformers` see the same model that Ascribe sees?

For each model folder (Hugging Face layout) and one text of each registered dataset: the tokenizer gives the same ids, the
weights load without a missing or unexpected tensor, and logits and losses agree. Both sides compute in f32; sums of a few
hundred products differ in the last bits, hence the tolerances. With `--families` the same is asked about random models of
every family (families.py). The last line is `N passed, M failed`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import families

LOGITS_RTOL = 1e-4  # of the largest logit
MEAN_NLL_ATOL = 1e-5  # nats per token
TOKEN_NLL_ATOL = 1e-4  # nats
# From the model whose retrain banks are quick (finch) to the largest that fits the repository.
PARAMETERS = (300_000, 3_000_000)
MODEL_BYTES_MAX = 14_000_000


class Tally:
    def __init__(self) -> None:
        self.passed = self.failed = 0

    def check(self, name: str, ok: bool, detail: str) -> None:
        self.passed, self.failed = self.passed + ok, self.failed + (not ok)
        print(f"{'ok    ' if ok else 'FAILED'} {name}: {detail}", flush=True)


def texts(datasets: Path, tokenizer: Tokenizer, n_tokens_max: int) -> dict[str, str]:
    """The middle record of each dataset, cut at a character so that it fits the context."""
    found = {}
    for path in sorted(datasets.glob("*/records.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        text = json.loads(lines[len(lines) // 2])["text"]
        while len(encode(tokenizer, text)) > n_tokens_max:
            text = text[: max(1, int(len(text) * 0.9))]
        found[path.parent.name] = text
    return found


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def reference(model: torch.nn.Module, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Last logits `[V]` and the loss of each token but the first `[T-1]`, in nats."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(ids[1:]), reduction="none")
    return logits[-1].numpy(), losses.numpy()


def ours(logits: str, ascribe: str, model: Path, text: str) -> tuple[dict, float]:
    """What our decoder makes of the text: ids, losses, logits; and the mean loss that the command prints."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", suffix=".txt") as file:
        file.write(text)
        file.flush()
        facts = run(logits, str(model), file.name)
        return facts, run(ascribe, "nll", "--model", str(model), "--text", file.name, "--format", "json")["nll"]


def run(*command: str) -> dict:
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(tally: Tally, name: str, facts: dict, mean_nll: float, ids: list[int], model: torch.nn.Module) -> None:
    tally.check(f"{name}, ids", facts["tokens"] == ids, f"{len(ids)} tokens, ours {len(facts['tokens'])}")
    if facts["tokens"] != ids:
        return
    logits, losses = reference(model, ids)
    gap, scale = float(np.abs(np.array(facts["last_logits"]) - logits).max()), float(np.abs(logits).max())
    tally.check(f"{name}, logits", gap <= LOGITS_RTOL * scale, f"largest gap {gap:.2e} of {scale:.1f}")
    gap = float(np.abs(np.array(facts["token_nll"]) - losses).max())
    tally.check(f"{name}, token losses", gap <= TOKEN_NLL_ATOL, f"largest gap {gap:.2e} nats")
    gap = abs(mean_nll - float(losses.mean()))
    tally.check(f"{name}, ascribe nll", gap <= MEAN_NLL_ATOL, f"{losses.mean():.6f} nats, gap {gap:.2e}")


def check_model(tally: Tally, folder: Path, arguments: argparse.Namespace) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model.eval()
    odd = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
    # A tied head is the embedding itself: no tensor of its own is right.
    if model.config.tie_word_embeddings and odd.get("missing_keys") == ["lm_head.weight"]:
        del odd["missing_keys"]
    tally.check(f"{folder.name}, tensors", not odd, "all of them" if not odd else str(odd))
    if not arguments.any_size:
        n_parameters = sum(p.numel() for p in model.parameters())
        tally.check(f"{folder.name}, size", PARAMETERS[0] <= n_parameters <= PARAMETERS[1], f"{n_parameters} parameters")
        # Folders with a dot hold the state of unfinished trainings; they do not ship.
        files = [path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
        n_bytes = sum(path.stat().st_size for path in files if path.is_file())
        tally.check(f"{folder.name}, bytes", n_bytes <= MODEL_BYTES_MAX, f"{n_bytes} bytes")

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(folder)
    for name, text in texts(arguments.datasets, tokenizer, model.config.max_position_embeddings).items():
        ids = encode(tokenizer, text)
        same = auto.encode(text, add_special_tokens=False) == ids
        tally.check(f"{folder.name} on {name}, AutoTokenizer", same, "the ids of tokenizer.json")
        try:
            facts, mean_nll = ours(arguments.logits, arguments.ascribe, folder, text)
        except (subprocess.CalledProcessError, json.JSONDecodeError) as error:
            tally.check(f"{folder.name} on {name}", False, f"{error} {getattr(error, 'stderr', '')}".strip())
            continue
        compare(tally, f"{folder.name} on {name}", facts, mean_nll, ids, model)


def check_families(tally: Tally, arguments: argparse.Namespace) -> None:
    file = arguments.families / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    # Short texts of two datasets: long enough for every window, short enough for a quick answer.
    chosen = dict(list(texts(arguments.datasets, tokenizer, 90).items())[:2])
    families.check(tally, compare, run, lambda text: encode(tokenizer, text), chosen, (arguments.logits, arguments.ascribe),
                   file, tokenizer.get_vocab_size())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ascribe", required=True, help="the built command")
    parser.add_argument("--logits", required=True, help="the built example `logits` of ascribe-tests")
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--any-size", action="store_true", help="do not hold the folders to the shipped model's limits")
    parser.add_argument("--families", type=Path, help="a folder whose tokenizer random models of every family get")
    parser.add_argument("models", type=Path, nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    tally = Tally()
    for folder in arguments.models:
        check_model(tally, folder, arguments)
    if arguments.families:
        check_families(tally, arguments)
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
