"""What the Trainer callback costs: CPU seconds of the same training with and without it, turn about, one thread.

    trainer.py --peers FOLDER [--steps 24] [--rounds 2]

The model and sequences are those of `collector.py`: 4.2 M parameters, batches of 8 sequences of 128 tokens, AdamW. One JSON line
per run, a last one with the medians. Rows must be complete and the weights equal, or it fails.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def train(arguments):
    import numpy as np
    import torch
    from ascribe.torch import AscribeCallback, model_digest
    from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = arguments.peers / "data" / "lm"
    model = GPT2LMHeadModel.from_pretrained(data / "model", dtype=torch.float32)
    tokens = torch.from_numpy(np.load(data / "train_ids.npy").astype(np.int64)[: 8 * arguments.steps])
    examples = [{"input_ids": t, "labels": t} for t in tokens]
    with tempfile.TemporaryDirectory() as work:
        settings = TrainingArguments(
            output_dir=work,
            per_device_train_batch_size=8,
            max_steps=arguments.steps,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            seed=1,
        )
        callback = AscribeCallback(f"{work}/trained") if arguments.run == "with" else None
        trainer = Trainer(model, settings, train_dataset=examples, callbacks=[callback] if callback else [])
        cpu = time.process_time()
        trainer.train()
        cpu = time.process_time() - cpu
        rows = len(callback.store) if callback else 0
    assert rows in (0, 8 * arguments.steps)
    report = {"run": arguments.run, "cpu_s": round(cpu, 2), "rows": rows, "weights": model_digest(model)[:16]}
    print(json.dumps({**report, "own_estimate": round(callback.overhead, 3) if callback else None}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--run", choices=["with", "without"])
    arguments = parser.parse_args()
    if arguments.run:
        train(arguments)
        return
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    os.environ.update(dict.fromkeys(threads, "1") | {"HF_HUB_OFFLINE": "1"})
    found = {"with": [], "without": []}
    for _ in range(arguments.rounds):
        for run, reports in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--run", run]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            reports.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(json.dumps(reports[-1]), flush=True)
    if len({report["weights"] for reports in found.values() for report in reports}) != 1:
        sys.exit("the weights differ: collecting changed the training")
    middle = {run: statistics.median(report["cpu_s"] for report in reports) for run, reports in found.items()}
    overhead = round(middle["with"] / middle["without"] - 1, 3)
    print(json.dumps({"median_cpu_s": middle, "overhead": overhead, "steps": arguments.steps}))


if __name__ == "__main__":
    main()
