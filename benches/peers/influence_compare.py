"""Scores, CPU seconds and memory of Ascribe and of its peers, same model and data: see influence_compare.sh."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
import numpy as np
from scipy.stats import rankdata

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).with_name("influence_peers.py")
DAMPING = {"mnist-lr": 0.03, "mnist-lr-14": 0.03, "mnist-mlp": 0.003}
# MNIST at half the width and height, for a peer that takes minutes for the curvature of 7,850 parameters.
SMALL = "mnist-lr-14"
# Peers that take minutes for all queries explain this many. What ours does with the others is not counted for it, but against it.
FEW = {"dattri datainf": 20, "dattri knn_shapley": 20, "captum arnoldi": 100, "pydvl cg": 20}
# Run once beforehand, so that what it has compiled is there.
WARMED = {"dattri logra"}


def specs(setting, queries):
    """Ours by name, with the peers that implement the same formula; `queries` says how many the iterative ones explain."""
    damping, lr = DAMPING[setting], setting == "mnist-lr"
    explicit = {"method": "explicit", "damping": damping, "queries": 500}
    if setting == SMALL:
        return {"explicit": (explicit, ["dattri", "pydvl"])}
    kron = lambda kind: {"method": "kron", "kind": kind, "inverse": "damped", "damping": {"absolute": damping}, "models": 1, "normalise": "none", "empirical": True}
    logra = {"method": "projected", "basis": "random", "k": 16, "damping_rel": 0.1}
    trak = {"method": "trak", "models": 1, "dim": 512, "ridge": 0.0}
    out = {
        "grad_dot": ({"method": "gradient", "normalise": "none"}, ["dattri"]),
        "grad_cos": ({"method": "gradient", "normalise": "cosine"}, ["dattri"]),
        "tracin_cp": ({"method": "trac_in", "normalise": "none"}, ["dattri", "captum"]),
        # pyDVL's EK-FAC is another formula: see closed_form.py.
        "ekfac": (kron("ekfac"), ["kronfluence", "pydvl"]),
        "kfac": (kron("kfac"), ["kronfluence"]),
        # Our projection on both sides; then the peer's own dense one, which another Spearman belongs to.
        "trak": (trak, ["dattri", "traker"]),
        "trak_own": (trak, ["dattri"]),
        # Our projection on both sides; dattri as it is, which compiles, and with that switched off.
        "logra": (logra, ["dattri", "logix"]),
        "logra_eager": (logra, ["dattri"]),
        "knn_shapley": ({"method": "knn_shapley", "k": 5}, ["dattri"]),
    }
    if lr:
        out |= {
            "explicit": (explicit, ["dattri"]),
            "cg": ({"method": "cg", "damping": damping, "iterations": 30, "queries": queries}, ["dattri", "pydvl"]),
            "lissa": ({"method": "lissa", "damping": damping, "depth": 100, "batch": 0, "scale": 50.0, "queries": min(queries, 5)}, ["dattri"]),
            "arnoldi": ({"method": "arnoldi", "damping": damping, "basis": 200, "top": 60, "block": 1}, ["dattri", "captum", "pydvl"]),
            "datainf": ({"method": "data_inf", "ridge": 0.1, "queries": 20}, ["dattri"]),
        }
    return out


def spearman(a, b):
    """Per query; equal scores share their rank. NaN where a score is not finite (ranks would hide it) and where all are the same."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.full(len(b), np.nan)
    ra, rb = rankdata(a, axis=1), rankdata(b, axis=1)
    ra -= ra.mean(1, keepdims=True)
    rb -= rb.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (ra * rb).sum(1) / np.sqrt((ra**2).sum(1) * (rb**2).sum(1))


# A process's peak counts what its parent held when it was started, so a small one stands between.
LAUNCHER = """
import json, os, subprocess, sys
p = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(p.pid, 0)
json.dump([status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024], open(sys.argv[1], "w"))
"""


def measured(command, **options):
    """Runs it; its output, CPU seconds and peak MiB of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        usage = str(Path(folder) / "usage.json")
        done = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, usage, *command], cwd=ROOT, capture_output=True, text=True, **options)
        status, seconds, mib = json.loads(Path(usage).read_text())
    if status:
        said = done.stderr.strip().splitlines()
        return {"error": said[-1][:300] if said else f"status {status}"}
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"cpu_seconds_whole": seconds, "mib": mib}


def ours(binary, setting, spec, path):
    found = measured([binary, setting, json.dumps(spec), path], env={**os.environ, "RAYON_NUM_THREADS": "1"})
    if "error" in found:
        sys.exit(f"ours failed on {spec}: {found['error']}")
    return found | {"cpu_seconds": found["cpu_fit"] + found["cpu_score"]}


def peer(name, setting, folder, queries, path, double=False):
    command = [sys.executable, str(PEERS), name, "--setting", setting, "--folder", str(folder), "--queries", str(queries), "--out", path]
    return measured(command + ["--double"] * double)


def small(folder):
    """The setting of logistic regression on images whose pixels are the means of 2 x 2, in files of its own; the path of the setting."""
    data = ROOT / "benches/data/mnist"
    for part in ("train", "test"):
        raw = (data / f"{part}-images.idx3").read_bytes()
        images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 14, 2, 14, 2).mean((2, 4))
        head = raw[:8] + (14).to_bytes(4, "big") * 2
        (folder / f"{part}-images.idx3").write_bytes(head + np.rint(images).astype(np.uint8).tobytes())
        shutil.copy(data / f"{part}-labels.idx1", folder)
    text = (ROOT / "benches/settings/mnist-lr/setting.toml").read_text().replace("../../data/mnist", str(folder))
    (folder / "setting.toml").write_text(text)
    return str(folder / "setting.toml")


def prepare(binary, setting, folder):
    """The model, its kept checkpoints and the projections of TRAK and LoGra, for the peers."""
    run = lambda *words: subprocess.run([binary, *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    rates = json.loads(run("weights", setting, str(folder / "weights.safetensors")))["learning_rate_sums"]
    (folder / "rates.json").write_text(json.dumps(rates))
    for i in range(len(rates)):
        run("weights", setting, str(folder / f"kept-{i}.safetensors"), f"kept:{i}")
    run("projection", setting, "512", str(folder / "projection.npy"))
    run("bases", setting, "16", str(folder / "bases.npy"))


def compared(row, mine, other, a, b):
    rho = spearman(a, b)
    return row | {
        "spearman": float(rho.mean()), "spearman_least": float(rho.min()), "queries": len(b), "peer_finite": bool(np.isfinite(b).all()),
        "largest_difference": float(np.abs(a / np.abs(a).max() - b / np.abs(b).max()).max()),
        "cpu_ratio": mine["cpu_seconds"] / other["cpu_seconds"],
        "cpu_ratio_whole_process": mine["cpu_seconds_whole"] / other["cpu_seconds_whole"],
        "memory_ratio": mine["mib"] / other["mib"],
    }


def told(row):
    line = f"{row['setting']:10} {row['method']:11} {row['peer']:12}"
    mine, other = row["ours"], row["theirs"]
    if "error" in other:
        return f"{line} peer failed: {other['error']}"
    wide = f"no f64: {row['f64_error']}" if "f64_error" in row else "not asked for"
    if "spearman_f64" in row:
        wide = f"{row['spearman_f64']:.4f} (least {row['spearman_f64_least']:.4f}; the peer with itself {row['peer_f32_f64']:.4f})"
    if not row["peer_finite"]:
        line += " (not all of the peer's scores in f32 are finite)"
    return (
        f"{line} Spearman {row['spearman']:.4f} (least {row['spearman_least']:.4f} of {row['queries']}); peer in f64 {wide}"
        f"  CPU s {mine['cpu_seconds']:.2f} : {other['cpu_seconds']:.2f} = {row['cpu_ratio']:.2f} x, whole processes {mine['cpu_seconds_whole']:.2f} :"
        f" {other['cpu_seconds_whole']:.2f} = {row['cpu_ratio_whole_process']:.2f} x  MiB {mine['mib']:.0f} : {other['mib']:.0f} = {row['memory_ratio']:.2f} x"
        f" ({other['mib_before']:.0f} of it imports and data)"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ascribe", required=True)
    parser.add_argument("--settings", default=f"mnist-lr,mnist-mlp,{SMALL}")
    parser.add_argument("--queries", type=int, default=100, help="of the iterative methods")
    parser.add_argument("--methods", default="", help="only these, by our names")
    parser.add_argument("--peers", default="", help="only these libraries")
    parser.add_argument("--no-f64", action="store_true", help="leave the peers' second run, in f64, out")
    arguments = parser.parse_args()
    only = lambda text, word: not text or word in text.split(",")
    report = []
    for setting in arguments.settings.split(","):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            a, b = str(folder / "ours.npy"), str(folder / "peer.npy")
            named = small(folder) if setting == SMALL else setting
            prepare(arguments.ascribe, named, folder)
            for method, (spec, libraries) in specs(setting, arguments.queries).items():
                libraries = [library for library in libraries if only(arguments.peers, library)]
                if not libraries or not only(arguments.methods, method):
                    continue
                mine = ours(arguments.ascribe, named, spec, a)
                scores = np.load(a).astype(np.float64)
                for library in libraries:
                    name = f"{library} {method}"
                    queries = min(FEW.get(name, 500), spec.get("queries", 500))
                    own = scores[:queries]
                    if name in WARMED:
                        peer(name, setting, folder, queries, b)
                    other = peer(name, setting, folder, queries, b)
                    row = {"setting": setting, "method": method, "peer": library, "ours": mine, "theirs": other}
                    if "error" not in other:
                        theirs = np.load(b)
                        row = compared(row, mine, other, own, theirs)
                        if not arguments.no_f64:
                            exact = peer(name, setting, folder, queries, b, double=True)
                            if "error" in exact:
                                row["f64_error"] = exact["error"]
                            else:
                                wide = np.load(b)
                                rho = spearman(own, wide)
                                row["spearman_f64"], row["spearman_f64_least"] = float(rho.mean()), float(rho.min())
                                row["peer_f32_f64"] = float(spearman(theirs, wide).mean())
                    report.append(row)
                    print(told(row), flush=True)
    print(json.dumps({"load": os.getloadavg()[0], "rows": report, "date": time.strftime("%Y-%m-%d")}))


main()
