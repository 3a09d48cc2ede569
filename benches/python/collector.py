"""Tokens per CPU-second and memory of the PyTorch collector, beside bergson on the same model and sequences, in one run.

    collector.py --peers FOLDER [--n-train 512] [--rounds 2] [--precision fp32|bf16]

FOLDER holds the comparison's `data/lm` and `scripts/lm_bergson.py`. One thread each, one process per measurement, turn about: the
clock is CPU time, since the machine may be shared. Ours is timed from the model to the sealed store, bergson as its script times its
build. Prints one JSON line per measurement and a last one with the medians.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def ours(arguments):
    import numpy as np
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(1)
    from ascribe.torch import collect

    dtype = torch.float32 if arguments.precision == "fp32" else torch.bfloat16
    data = arguments.peers / "data" / "lm"
    model = GPT2LMHeadModel.from_pretrained(data / "model", dtype=dtype, attn_implementation=arguments.attention).eval()
    tokens = np.load(data / "train_ids.npy").astype(np.int64)[: arguments.n_train]
    collect(model, tokens[:8], Path(arguments.work) / "warm", batch_size=arguments.bs, k=16)  # as the peer's script warms up
    cpu, wall = time.process_time(), time.perf_counter()
    store = collect(model, tokens, Path(arguments.work) / "store", batch_size=arguments.bs, k=16)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = {"tool": "ascribe.torch", "tokens_per_cpu_s": round(tokens.size / cpu, 1), "cpu_s": round(cpu, 2)}
    print(json.dumps({**report, "wall_s": round(wall, 2), "rss_peak_mib": round(peak), "dims": store.dim, "rows": len(store)}))


def bergson(arguments, work):
    settings = [
        "--n-train",
        str(arguments.n_train),
        "--n-query",
        "8",
        "--bs",
        str(arguments.bs),
        "--precision",
        arguments.precision,
    ]
    environment = {**os.environ, "BENCH_RESULTS": f"{work}/results", "BENCH_DATA": str(arguments.peers / "data")}
    script = arguments.peers / "scripts" / "lm_bergson.py"
    command = [sys.executable, str(script), *settings, "--work", f"{work}/bergson"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bergson failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    phase = found["phases"]["build_train"]
    report = {"tool": "bergson", "tokens_per_cpu_s": found["index_tok_per_cpu_s"], "cpu_s": round(phase["cpu_s"], 2)}
    return {**report, "wall_s": round(phase["wall_s"], 2), "rss_peak_mib": found["rss_peak_mib"], "dims": found["dims"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--n-train", type=int, default=512)
    parser.add_argument("--bs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--attention", default="eager", help="as transformers names it; what bergson's run uses is its own default"
    )
    parser.add_argument("--work")
    arguments = parser.parse_args()
    if arguments.work:
        ours(arguments)
        return
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "THREADS")
    os.environ.update(dict.fromkeys(threads, "1") | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    found = {"ascribe.torch": [], "bergson": []}
    for _ in range(arguments.rounds):
        work = tempfile.mkdtemp()
        try:
            mine = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--work", work], capture_output=True, text=True, check=False
            )
            if mine.returncode:
                sys.exit(f"the collector failed:\n{mine.stderr[-3000:]}")
            for report in (json.loads(mine.stdout.strip().splitlines()[-1]), bergson(arguments, work)):
                print(json.dumps(report), flush=True)
                found[report["tool"]].append(report)
        finally:
            shutil.rmtree(work)
    keys = ("tokens_per_cpu_s", "rss_peak_mib")
    middle = {tool: {key: statistics.median(r[key] for r in reports) for key in keys} for tool, reports in found.items()}
    ratio = middle["ascribe.torch"]["tokens_per_cpu_s"] / middle["bergson"]["tokens_per_cpu_s"]
    print(
        json.dumps(
            {"median": middle, "times_bergson": round(ratio, 2), "n_train": arguments.n_train, "precision": arguments.precision}
        )
    )


if __name__ == "__main__":
    main()
