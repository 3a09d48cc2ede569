"""Scores, CPU seconds and memory of Ascribe and of a peer, same model and data: see influence_compare.sh."""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = 0.1307, 0.3081
# name: (peer, our settings, peer's function). `queries` says how many queries both explain.
DAMPING = {"mnist-lr": 0.03, "mnist-mlp": 0.003}


def specs(setting, queries):
    damping = DAMPING[setting]
    kron = lambda kind: {"method": "kron", "kind": kind, "inverse": "damped", "damping": {"absolute": damping}, "models": 1, "normalise": "none", "empirical": True}
    out = {
        ("grad_dot", "dattri"): ({"method": "gradient", "normalise": "none"}, "graddot"),
        ("grad_cos", "dattri"): ({"method": "gradient", "normalise": "cosine"}, "gradcos"),
        ("ekfac", "kronfluence"): (kron("ekfac"), "ekfac"),
        ("kfac", "kronfluence"): (kron("kfac"), "kfac"),
    }
    if setting == "mnist-lr":
        out[("cg", "dattri")] = ({"method": "cg", "damping": damping, "iterations": 30, "queries": queries}, "cg")
        out[("lissa", "dattri")] = ({"method": "lissa", "damping": damping, "depth": 2000, "batch": 64, "queries": queries}, "lissa")
    return out


def idx(name):
    raw = (ROOT / "benches/data/mnist" / name).read_bytes()
    head = 16 if name.endswith("idx3") else 8
    return np.frombuffer(raw, np.uint8, offset=head)


def spearman(a, b):
    rank = lambda x: np.argsort(np.argsort(x, axis=1, kind="stable"), axis=1, kind="stable").astype(float)
    ra, rb = rank(a), rank(b)
    ra -= ra.mean(1, keepdims=True)
    rb -= rb.mean(1, keepdims=True)
    return (ra * rb).sum(1) / np.sqrt((ra**2).sum(1) * (rb**2).sum(1))


def ours(binary, setting, spec, path):
    """Whole process: CPU seconds, peak MiB."""
    process = subprocess.Popen([binary, setting, json.dumps(spec), path], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "RAYON_NUM_THREADS": "1"})
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"ours failed on {spec}")
    found = json.loads(text)
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024, "cpu_fit": found["cpu_fit"], "cpu_score": found["cpu_score"]}


def peer(function, setting, weights, queries, path, double=False):
    """In a process of its own, so that memory is the method's."""
    command = [sys.executable, __file__, "--peer", function, "--settings", setting, "--weights", weights, "--queries", str(queries), "--out", path]
    done = subprocess.run(command + ["--double"] * double, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "no message"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_peer(arguments):
    import torch
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    torch.manual_seed(0)
    lr = arguments.settings == "mnist-lr"
    layers = {"fc": torch.nn.Linear(784, 10)} if lr else {"fc1": torch.nn.Linear(784, 128), "fc2": torch.nn.Linear(128, 64), "fc3": torch.nn.Linear(64, 10)}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x):
            x = x.reshape(-1, 784)
            names = list(layers)
            for name in names[:-1]:
                x = torch.relu(getattr(self, name)(x))
            return getattr(self, names[-1])(x)

    model = Model()
    model.load_state_dict({k: v.float() for k, v in load_file(arguments.weights).items()})
    model.eval()
    width = torch.float64 if arguments.double else torch.float32
    model.to(width)
    images = lambda name: ((torch.tensor(idx(name).copy()).float().view(-1, 784) / 255 - MEAN) / STD).to(width)
    x, y = images("train-images.idx3"), torch.tensor(idx("train-labels.idx1").copy()).long()
    q, qy = images("test-images.idx3")[: arguments.queries], torch.tensor(idx("test-labels.idx1").copy()).long()[: arguments.queries]
    loader = lambda a, b, size: DataLoader(TensorDataset(a, b), batch_size=size, shuffle=False)
    cross_entropy = torch.nn.functional.cross_entropy

    def one(p, d):
        return cross_entropy(torch.func.functional_call(model, p, (d[0].unsqueeze(0),)), d[1].unsqueeze(0))

    def flat(p, d):
        a, b = d
        if a.dim() == 1:
            a, b = a.unsqueeze(0), b.unsqueeze(0)
        return cross_entropy(torch.func.functional_call(model, p, (a.reshape(-1, 784),)), b.reshape(-1).long())

    state = {k: v.detach() for k, v in model.named_parameters()}
    clock = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    damping = DAMPING[arguments.settings]

    def tracin(normalised):
        from dattri.algorithm.tracin import TracInAttributor
        from dattri.task import AttributionTask

        task = AttributionTask(loss_func=one, model=model, checkpoints=[state])
        attributor = TracInAttributor(task, weight_list=torch.tensor([1.0]), normalized_grad=normalised)
        attributor.projector_kwargs = None  # the argument alone does not turn the projection off
        return lambda: attributor.attribute(loader(x, y, 1000), loader(q, qy, 500)).numpy().T

    def solver(name):
        from dattri.algorithm.influence_function import IFAttributorCG, IFAttributorLiSSA
        from dattri.task import AttributionTask

        task = AttributionTask(loss_func=flat, model=model, checkpoints=state)
        if name == "cg":
            attributor = IFAttributorCG(task, device="cpu", max_iter=30, regularization=damping)
        else:
            attributor = IFAttributorLiSSA(task, device="cpu", batch_size=64, num_repeat=1, recursion_depth=2000, damping=damping, scaling=50.0)

        def go():
            attributor.cache(loader(x, y, 5000))
            return attributor.attribute(loader(x, y, 5000), loader(q, qy, 100)).detach().numpy().T

        return go

    def kronfluence(strategy):
        import tempfile as temporary

        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task

        class Classification(Task):
            def compute_train_loss(self, batch, model, sample=False):
                logits = model(batch[0])
                labels = torch.multinomial(torch.softmax(logits.detach(), -1), 1).flatten() if sample else batch[1]
                return cross_entropy(logits, labels, reduction="sum")

            def compute_measurement(self, batch, model):
                return self.compute_train_loss(batch, model)

        folder = temporary.mkdtemp()
        wrapped = prepare_model(model, Classification())
        analyzer = Analyzer("m", wrapped, Classification(), cpu=True, output_dir=folder, disable_tqdm=True)

        def go():
            factor = FactorArguments(strategy=strategy, use_empirical_fisher=True, activation_covariance_dtype=width, gradient_covariance_dtype=width, lambda_dtype=width)
            score = ScoreArguments(damping_factor=damping, score_dtype=width, per_sample_gradient_dtype=width, precondition_dtype=width)
            analyzer.fit_all_factors("f", TensorDataset(x, y), per_device_batch_size=500, factor_args=factor, overwrite_output_dir=True)
            analyzer.compute_pairwise_scores("s", "f", TensorDataset(q, qy), TensorDataset(x, y), per_device_query_batch_size=500, per_device_train_batch_size=500, score_args=score, overwrite_output_dir=True)
            return analyzer.load_pairwise_scores("s")["all_modules"].numpy()

        return go

    name = arguments.peer
    work = tracin(name == "gradcos") if name.startswith("grad") else solver(name) if name in ("cg", "lissa") else kronfluence(name)
    before, start = clock(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scores = work()
    seconds = clock() - before
    np.save(arguments.out, scores.astype(np.float32))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_seconds": seconds, "mib": peak, "mib_before": start}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ascribe")
    parser.add_argument("--settings", default="mnist-lr,mnist-mlp")
    parser.add_argument("--queries", type=int, default=100, help="of the iterative methods")
    parser.add_argument("--methods", default="", help="only these, by our names")
    parser.add_argument("--double", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return run_peer(arguments)
    report = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for setting in arguments.settings.split(","):
            weights = str(folder / f"{setting}.safetensors")
            subprocess.run([arguments.ascribe, "weights", setting, weights], cwd=ROOT, check=True)
            for (name, library), (spec, function) in specs(setting, arguments.queries).items():
                if arguments.methods and name not in arguments.methods.split(","):
                    continue
                a, b = str(folder / "ours.npy"), str(folder / "peer.npy")
                mine = ours(arguments.ascribe, setting, spec, a)
                # Iterative methods explain a few queries, the others all of them, on both sides.
                queries = spec.get("queries", 500)
                other = peer(function, setting, weights, queries, b)
                row = {"setting": setting, "method": name, "peer": library, "ours": mine, "theirs": other}
                if "error" not in other:
                    x, y = np.load(a), np.load(b)
                    rho = spearman(x, y)
                    # Fit and score alone on both sides; and our whole process, with start and the training of the model.
                    phases = mine["cpu_fit"] + mine["cpu_score"]
                    row |= {
                        "spearman": float(rho.mean()), "spearman_least": float(rho.min()), "queries": int(y.shape[0]),
                        "cpu_ratio": phases / other["cpu_seconds"], "cpu_ratio_whole_process": mine["cpu_seconds"] / other["cpu_seconds"],
                        "memory_ratio": mine["mib"] / other["mib"],
                    }
                    exact = peer(function, setting, weights, queries, b, double=True)
                    if "error" not in exact:
                        z = np.load(b)
                        row["spearman_f64"], row["spearman_f64_least"] = (float(f(spearman(x, z))) for f in (np.mean, np.min))
                        row["peer_f32_f64"] = float(spearman(y, z).mean())
                    else:
                        row["f64_error"] = exact["error"]
                report.append(row)
                line = f"{setting:10} {name:9} {library:12}"
                if "error" in other:
                    print(line, "peer failed:", other["error"])
                else:
                    wide = f"{row['spearman_f64']:.4f} (least {row['spearman_f64_least']:.4f}; itself in f32 {row['peer_f32_f64']:.4f})" if "spearman_f64" in row else row["f64_error"]
                    print(line, f"Spearman {row['spearman']:.4f} (least {row['spearman_least']:.4f}), with the peer in f64 {wide}  CPU s {phases:.2f} against {other['cpu_seconds']:.2f} ({row['cpu_ratio']:.2f}; whole process {row['cpu_ratio_whole_process']:.2f})  MiB {mine['mib']:.0f} against {other['mib']:.0f}, {other['mib'] - other['mib_before']:.0f} above its imports ({row['memory_ratio']:.2f})", flush=True)
    print(json.dumps({"load": os.getloadavg()[0], "rows": report, "date": time.strftime("%Y-%m-%d")}))


main()
