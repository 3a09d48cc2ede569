"""Tokens per CPU-second of one training step after another, in Ascribe and in PyTorch, in turn.

Both read the model folder MODEL and the first records of DATA (JSON lines with `text`, or `input_ids`), tokenised with the
folder's tokenizer and cut to the model's context; both train all weights in f32 on one thread with AdamW, batches in file
order for PyTorch and in Ascribe's own order here, gradients clipped at 1. CPU time is that of the steps alone: forward,
backward, clipping, update. Loading and tokenising are not in it.

Each side runs in a process of its own; the sides take turns so that a machine's moods hit both.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

STEPS_TO_WARM_UP = 2


def sequences(model, data, wanted, context):
    """Token ids of the first `wanted` records that fill a whole context, so that both sides do the same work."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(model, "tokenizer.json"))
    found = []
    with open(data, encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            ids = record.get("input_ids") or tokenizer.encode(record["text"]).ids
            if len(ids) >= context:
                found.append(ids[:context])
            if len(found) == wanted:
                return found
    sys.exit(f"{data}: expected {wanted} records of at least {context} tokens, found {len(found)}")


def pytorch(arguments):
    """One run in PyTorch, printed as JSON."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    with open(arguments.ids, encoding="utf-8") as lines:
        ids = torch.tensor([json.loads(line)["input_ids"] for line in lines])
    tokens, seconds, losses = 0, 0.0, []
    for step in range(arguments.steps + STEPS_TO_WARM_UP):
        batch = ids[torch.arange(step * arguments.batch, (step + 1) * arguments.batch) % len(ids)]
        started = time.process_time()
        loss = model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= STEPS_TO_WARM_UP:
            tokens, seconds = tokens + batch.numel(), seconds + time.process_time() - started
        losses.append(loss.item())
    print(json.dumps({"tokens_per_cpu_second": tokens / seconds, "first_loss": losses[0], "last_loss": losses[-1]}))


def ascribe(arguments, ids, out):
    """One run of `ascribe finetune`."""
    command = [arguments.ascribe, "finetune", "--model", arguments.model, "--data", ids, "--out", out]
    command += ["--steps", str(arguments.steps), "--batch", str(arguments.batch), "--micro-batch", str(arguments.batch)]
    command += ["--lr", "1e-4", "--schedule", "constant", "--warmup", "0", "--threads", "1", "--format", "json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--ascribe")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ids", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ids:
        return pytorch(arguments)
    with open(os.path.join(arguments.model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    context = config.get("n_positions") or config["max_position_embeddings"]
    rates = {"ascribe": [], "pytorch": []}
    with tempfile.TemporaryDirectory() as folder:
        ids = os.path.join(folder, "ids.jsonl")
        with open(ids, "w", encoding="utf-8") as file:
            for sequence in sequences(arguments.model, arguments.data, arguments.steps * arguments.batch, context):
                file.write(json.dumps({"input_ids": sequence}) + "\n")
        for turn in range(arguments.rounds):
            ours = ascribe(arguments, ids, os.path.join(folder, f"run-{turn}"))
            command = [sys.executable, __file__, arguments.model, "--ids", ids, "--steps", str(arguments.steps)]
            command += ["--batch", str(arguments.batch)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            theirs = json.loads(run.stdout.splitlines()[-1])
            rates["ascribe"].append(ours["tokens_per_cpu_second"])
            rates["pytorch"].append(theirs["tokens_per_cpu_second"])
            print(f"round {turn + 1}: ascribe {rates['ascribe'][-1]:.0f}, pytorch {rates['pytorch'][-1]:.0f} tokens per CPU-second")
    best = {name: max(found) for name, found in rates.items()}
    print(f"best of {arguments.rounds}: ascribe {best['ascribe']:.0f}, pytorch {best['pytorch']:.0f}, ratio {best['ascribe'] / best['pytorch']:.2f}")


if __name__ == "__main__":
    main()
