"""Runs `ascribe features` and bergson's index build in turn on the same model and sequences, and prints their ratios.

CPU-seconds are those of the system (user and system time): of the whole `ascribe` process, start and reading and writing
included; of bergson's build call alone, its imports and first warm calls left out (bergson_index.py). Each figure is the
best of the rounds. run.sh installs what this needs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def random_model(folder: Path) -> tuple[Path, Path]:
    """The comparison shape with random weights, and random tokens."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=4096, n_positions=128, n_embd=256, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    ids = np.random.default_rng(0).integers(0, 4096, (2000, 128)).astype(np.uint16)
    np.save(folder / "ids.npy", ids)
    return folder / "model", folder / "ids.npy"


def ascribe(args, data: Path, out: Path, n_tokens: int, precision: str, threads: int) -> dict:
    shutil.rmtree(out, ignore_errors=True)
    command = [args.ascribe, "features", "--model", args.model, "--data", data, "--out", out, "--format", "json",
               "--projection", "16x16", "--precision", {"fp32": "f32"}.get(precision, precision), "--threads", str(threads), "-q"]
    wall = time.perf_counter()
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    report = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - wall
    if status != 0:
        sys.exit(f"ascribe features failed with status {status}")
    own = json.loads(report)
    assert own["tokens"] == n_tokens, (own, n_tokens)
    cpu = usage.ru_utime + usage.ru_stime
    return {"who": "ascribe", "precision": precision, "threads": threads, "tokens": n_tokens, "cpu_seconds": cpu,
            "wall_seconds": wall, "tokens_per_cpu_second": n_tokens / cpu, "tokens_per_second": n_tokens / wall,
            "peak_rss_mib": usage.ru_maxrss / 1024, "own_tokens_per_cpu_second": own["tokens_per_cpu_second"]}


def bergson(args, out: Path, precision: str, threads: int) -> dict:
    command = [sys.executable, HERE / "bergson_index.py", "--model", args.model, "--ids", args.ids, "--n", str(args.n),
               "--precision", precision, "--threads", str(threads), "--out", out]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-4000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ascribe", required=True)
    parser.add_argument("--model")
    parser.add_argument("--ids")
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if not args.model:
            args.model, args.ids = random_model(scratch)
        ids = np.load(args.ids)[: args.n].astype(int)
        data = scratch / "data.jsonl"
        data.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids.tolist()))
        best: dict[tuple, dict] = {}
        for _ in range(args.rounds):
            for precision in ("fp32", "bf16"):
                for threads in args.threads:
                    for run in (ascribe(args, data, scratch / "store", ids.size, precision, threads),
                                bergson(args, scratch / "bergson", precision, threads)):
                        key = (run["who"], precision, threads)
                        kept = best.setdefault(key, dict(run))
                        for name in ("tokens_per_cpu_second", "tokens_per_second"):
                            kept[name] = max(kept[name], run[name])
    print(f"{'':10}{'':6}threads   tokens/CPU-s    tokens/s   peak MiB")
    for (who, precision, threads), run in sorted(best.items(), key=lambda item: (item[0][1:], item[0][0])):
        print(f"{who:10}{precision:6}{threads:7}{run['tokens_per_cpu_second']:15,.0f}{run['tokens_per_second']:12,.0f}"
              f"{run['peak_rss_mib']:11,.0f}")
    ratios = {}
    for precision in ("fp32", "bf16"):
        for threads in args.threads:
            ours, theirs = best["ascribe", precision, threads], best["bergson", precision, threads]
            ratios[f"{precision}_{threads}"] = {name: round(ours[name] / theirs[name], 3)
                                                for name in ("tokens_per_cpu_second", "tokens_per_second")}
        if {1, 2} <= set(args.threads):
            for who in ("ascribe", "bergson"):
                two, one = best[who, precision, 2], best[who, precision, 1]
                ratios[f"{who}_{precision}_speedup"] = round(two["tokens_per_second"] / one["tokens_per_second"], 3)
    print(json.dumps({"runs": list(best.values()), "ratios": ratios, "load": os.getloadavg()[0]}))


main()
