"""LDS of a score file against a setting's bank of random halves, with the queries in two halves: what chooses a setting, and what judges it.

    cargo run --release -p ascribe-engine --example influence_scores -- mnist-lr '{"method":"trak",...}' scores.npy
    python benches/settings/lds.py mnist-lr scores.npy...

Prints the mean over queries with a 95 % interval (2,000 bootstrap draws of queries, seed 0), the same for the first half of the
queries and for the second, and against the bank's first seed alone. Needs numpy, scipy and safetensors. `ascribe bench run` computes
the same figure for methods of its catalogue; this is for settings that have no name there.
"""
import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from scipy.stats import rankdata

HERE = Path(__file__).resolve().parent


def bank(setting):
    """Which examples each training kept, `[M, N]`, and margins `[seeds, M, Q]`."""
    folder = HERE / setting / "banks/halves"
    n = json.loads((folder / "bank.json").read_text())["players"]["examples"]
    lines = (folder / "subsets.txt").read_text().split()
    kept = np.array([np.unpackbits(np.frombuffer(bytes.fromhex(line), np.uint8))[:n] for line in lines], np.float64)
    seeds = sorted(folder.glob("seed-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))
    return kept, np.array([safe_open(str(path), "np").get_tensor("outcomes") for path in seeds], np.float64)


def lds(scores, kept, outcomes):
    """Spearman per query between sums over the kept examples and outcomes."""
    a, b = rankdata(kept @ scores.T, axis=0), rankdata(outcomes[:, : len(scores)], axis=0)
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def told(values):
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{values.mean():.4f} [{low:.4f}, {high:.4f}]"


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: lds.py SETTING SCORES.npy...")
    kept, outcomes = bank(sys.argv[1])
    for path in sys.argv[2:]:
        scores = np.load(path).astype(np.float64)
        if scores.shape[1] != kept.shape[1] or len(scores) > outcomes.shape[2] or not np.isfinite(scores).all():
            sys.exit(f"{path}: expected finite scores of at most {outcomes.shape[2]} queries x {kept.shape[1]} examples, found {scores.shape}")
        mean, middle = lds(scores, kept, outcomes.mean(0)), len(scores) // 2
        first = lds(scores, kept, outcomes[0])
        print(f"{path}: {told(mean)}  first half {told(mean[:middle])}  second half {told(mean[middle:])}  first seed {first.mean():.4f}")


main()
