"""One method of one peer on one setting, in a process of its own so that memory and CPU seconds are the method's.

Called by influence_compare.py: `influence_peers.py "LIBRARY METHOD" --setting S --folder F --queries Q --out SCORES.npy [--double]`,
where F has the weights, kept checkpoints, their learning rates, TRAK's projection and LoGra's that `influence_scores` wrote. Prints one line of
JSON. What a peer needs to explain the same model by the same formula (images, labels, losses) is made before the clock starts.
"""
import argparse
import json
import os
import resource
import tempfile
import warnings
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
warnings.simplefilter("ignore")
import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = 0.1307, 0.3081
# Damping of everything but EK-FAC, K-FAC included; both sides.
DAMPING = {"mnist-lr": 0.03, "mnist-lr-14": 0.03, "mnist-mlp": 0.003}
# Of LoGra's block Fisher matrices, times their mean diagonal: LogIX has no other that is relative. Rows and columns kept of a layer.
LOGRA_DAMPING, LOGRA_RANK = 0.1, 16
# Rows of TRAK, as its authors and dattri's benchmark have them; no ridge on either side.
TRAK_DIM = 512
# Krylov basis and kept eigenpairs (60 of 200 have converged, 100 have not and depend on the start); iterations of CG; steps, batch (all
# images, so that both take the same ones) and scale of LiSSA.
ARNOLDI, CG_ITERATIONS, LISSA = (200, 60), 30, (100, 5000, 50.0)
KNN = 5
# Logged gradients that LogIX takes at a time, its default.
LOGIX_BATCH = 16
PEERS = {}


def peer(name):
    def keep(work):
        PEERS[name] = work
        return work

    return keep


def idx(name, folder):
    """Numbers of an IDX file: the setting's own in `folder` (smaller images), or else MNIST."""
    path = next(path for path in (folder / name, ROOT / "benches/data/mnist" / name) if path.exists())
    return np.frombuffer(path.read_bytes(), np.uint8, offset=16 if name.endswith("idx3") else 8)


class Case:
    """The trained model and its images as every peer is given them."""

    def __init__(self, setting, folder, queries, double):
        self.folder, self.damping = Path(folder), DAMPING[setting]
        self.width = torch.float64 if double else torch.float32
        pixels = 196 if setting == "mnist-lr-14" else 784
        sizes = [784, 128, 64, 10] if setting == "mnist-mlp" else [pixels, 10]
        self.sizes, self.layers = sizes, ["fc1", "fc2", "fc3"] if setting == "mnist-mlp" else ["fc"]
        layers = self.layers

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                for name, (a, b) in zip(layers, zip(sizes, sizes[1:])):
                    setattr(self, name, torch.nn.Linear(a, b))

            def forward(self, x):
                x = x.reshape(-1, pixels)
                for name in layers[:-1]:
                    x = torch.relu(getattr(self, name)(x))
                return getattr(self, layers[-1])(x)

        self.model = Model()
        self.load(self.model, "weights.safetensors")
        self.model.eval()
        images = lambda name: ((torch.tensor(idx(name, self.folder).copy()).float().view(-1, pixels) / 255 - MEAN) / STD).to(self.width)
        labels = lambda name: torch.tensor(idx(name, self.folder).copy()).long()
        self.x, self.y = images("train-images.idx3"), labels("train-labels.idx1")
        self.q, self.qy = images("test-images.idx3")[:queries], labels("test-labels.idx1")[:queries]
        self.train, self.queries = TensorDataset(self.x, self.y), TensorDataset(self.q, self.qy)
        self.state = {k: v.detach() for k, v in self.model.named_parameters()}

    def load(self, model, name):
        model.load_state_dict({k: v.float() for k, v in load_file(self.folder / name).items()})
        model.to(self.width)

    def kept(self):
        """Kept checkpoints and the learning rates that lead to each."""
        rates = json.loads((self.folder / "rates.json").read_text())
        names = [f"kept-{i}.safetensors" for i in range(len(rates))]
        states = [{k: v.to(self.width) for k, v in load_file(self.folder / name).items()} for name in names]
        return names, states, rates

    def places(self):
        """TRAK's projection in the order of PyTorch's parameters: where each number goes and its sign."""
        flat, start, place, sign = np.load(self.folder / "projection.npy"), 0, [], []
        for name in self.layers:
            o, i = getattr(self.model, name).weight.shape
            part = flat[start : start + o * (i + 1)].reshape(o, i + 1, 2)
            for column in (part[:, :i], part[:, i:]):
                place.append(column[..., 0].ravel())
                sign.append(column[..., 1].ravel())
            start += o * (i + 1)
        tensor = lambda parts: torch.tensor(np.concatenate(parts))
        return tensor(place).long(), tensor(sign).to(self.width)

    def bases(self):
        """LoGra's matrices by the width that they take: `P_in` `[k, n_in + 1]`, the bias being the last input, and `P_out` `[k, n_out]`."""
        flat, start, found = np.load(self.folder / "bases.npy")[0], 0, {}
        for width in (w for a, b in zip(self.sizes, self.sizes[1:]) for w in (a + 1, b)):
            k = min(LOGRA_RANK, width)
            found[width] = torch.tensor(flat[start : start + k * width].reshape(k, width)).to(self.width)
            start += k * width
        assert start == len(flat)
        return found

    def one(self, p, d):
        """Loss of one image, as `vmap` wants it."""
        return cross_entropy(torch.func.functional_call(self.model, p, (d[0].unsqueeze(0),)), d[1].unsqueeze(0))

    def flat(self, p, d):
        """Mean loss of a batch, or of one image."""
        a, b = d
        if a.dim() == 1:
            a, b = a.unsqueeze(0), b.unsqueeze(0)
        return cross_entropy(torch.func.functional_call(self.model, p, (a.reshape(-1, self.sizes[0]),)), b.reshape(-1).long())


def loader(dataset, size):
    return DataLoader(dataset, batch_size=size, shuffle=False)


# dattri

def dattri_tracin(case, states, rates, normalised):
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    task = AttributionTask(loss_func=case.one, model=case.model, checkpoints=states)
    attributor = TracInAttributor(task, weight_list=torch.tensor(rates), normalized_grad=normalised)
    attributor.projector_kwargs = None  # the argument alone does not turn the projection off
    return lambda: attributor.attribute(loader(case.train, 1000), loader(case.queries, 500)).numpy().T


@peer("dattri grad_dot")
def _(case):
    return dattri_tracin(case, [case.state], [1.0], False)


@peer("dattri grad_cos")
def _(case):
    return dattri_tracin(case, [case.state], [1.0], True)


@peer("dattri tracin_cp")
def _(case):
    _, states, rates = case.kept()
    return dattri_tracin(case, states, rates, False)


def dattri_solver(case, kind, size=5000, query_batch=100, **options):
    from dattri.algorithm import influence_function
    from dattri.task import AttributionTask

    task = AttributionTask(loss_func=case.flat, model=case.model, checkpoints=case.state)
    attributor = getattr(influence_function, f"IFAttributor{kind}")(task, device="cpu", **options)

    def go():
        attributor.cache(loader(case.train, size))
        # One training batch: the transform of the queries is made anew for every one.
        return attributor.attribute(loader(case.train, 5000), loader(case.queries, query_batch)).detach().numpy().T

    return go


@peer("dattri explicit")
def _(case):
    return dattri_solver(case, "Explicit", query_batch=500, regularization=case.damping)


@peer("dattri cg")
def _(case):
    return dattri_solver(case, "CG", max_iter=CG_ITERATIONS, regularization=case.damping)


@peer("dattri lissa")
def _(case):
    depth, batch, scale = LISSA
    # Its step keeps 1 - damping of the last one and divides the product alone by the scale.
    return dattri_solver(case, "LiSSA", batch_size=batch, num_repeat=1, recursion_depth=depth, damping=case.damping / scale, scaling=scale)


@peer("dattri arnoldi")
def _(case):
    basis, top = ARNOLDI
    return dattri_solver(case, "Arnoldi", proj_dim=top, max_iter=basis + 1, regularization=case.damping, query_batch=500)


@peer("dattri datainf")
def _(case):
    # A tenth of the mean eigenvalue of the layer's Fisher matrix, which is ours too.
    delta = torch.softmax(case.model(case.x).detach(), -1) - torch.nn.functional.one_hot(case.y, 10)
    squares = (delta**2).sum(1) * ((case.x**2).sum(1) + 1)
    ridge = float(0.1 * squares.mean() / 7850)
    return dattri_solver(case, "DataInf", size=1, query_batch=20, regularization=ridge)


@peer("dattri knn_shapley")
def _(case):
    from dattri.algorithm.data_shapley import KNNShapleyAttributor

    def go():
        with torch.no_grad():
            hidden = lambda x: x if case.layers == ["fc"] else torch.relu(case.model.fc2(torch.relu(case.model.fc1(x))))
            train, queries = TensorDataset(hidden(case.x), case.y), TensorDataset(hidden(case.q), case.qy)
            return KNNShapleyAttributor(k_neighbors=KNN).attribute(loader(train, 5000), loader(queries, 500)).numpy()

    return go


def dattri_trak(case, own):
    from dattri.algorithm import trak
    from dattri.task import AttributionTask

    place, sign = case.places()
    if not own:
        trak.random_project = lambda *_, **__: lambda g, ensemble_id=0: torch.zeros(len(g), TRAK_DIM, dtype=g.dtype).index_add_(1, place, g * sign)

    def margin(p, d):
        log_p = -case.one(p, d)
        return log_p - torch.log(1 - torch.exp(log_p))

    task = AttributionTask(loss_func=margin, model=case.model, checkpoints=case.state)
    attributor = trak.TRAKAttributor(task, correct_probability_func=lambda p, d: torch.exp(-case.one(p, d)), device="cpu")

    def go():
        with torch.no_grad():
            attributor.cache(loader(case.train, 500))
            return attributor.attribute(loader(case.queries, 500)).numpy().T

    return go


@peer("dattri trak")
def _(case):
    return dattri_trak(case, own=False)


@peer("dattri trak_own")
def _(case):
    return dattri_trak(case, own=True)


def dattri_logra(case, compiled):
    # Its projection is under torch.compile, which takes longer here than all of the rest; without it a user has to know this switch.
    torch._dynamo.config.disable = not compiled
    from dattri.algorithm.block_projected_if.core import compressor
    from dattri.algorithm.logra import LoGraAttributor
    from dattri.task import AttributionTask

    bases = {width: rows.T.contiguous() for width, rows in case.bases().items()}

    def ours(rows, *_, proj_type, **__):
        return (lambda v, ensemble_id=0: v) if proj_type == "identity" else lambda v, ensemble_id=0: v @ bases[rows.shape[-1]]

    compressor.random_project = ours
    os.chdir(tempfile.mkdtemp())  # where it leaves a file behind
    task = AttributionTask(loss_func=lambda model, d, device: cross_entropy(model(d[0]), d[1]), model=case.model, checkpoints=case.state)
    attributor = LoGraAttributor(task, layer_names=case.layers, damping=LOGRA_DAMPING, proj_dim=LOGRA_RANK**2)

    def go():
        attributor.cache(loader(case.train, 500))
        return attributor.attribute(loader(case.train, 500), loader(case.queries, 500)).detach().numpy().T

    return go


@peer("dattri logra")
def _(case):
    return dattri_logra(case, compiled=True)


@peer("dattri logra_eager")
def _(case):
    return dattri_logra(case, compiled=False)


# LogIX

@peer("logix logra")
def _(case):
    import logix
    from logix.lora import lora

    bases, nn = case.bases(), torch.nn

    class Ours(lora.LoraLinear):
        """Its three matrices with ours as the outer two."""

        def __init__(self, rank, linear, shared_module=None):
            super().__init__(rank, linear, shared_module)
            p_in, p_out = bases[linear.in_features], bases[linear.out_features]
            for name, matrix in {"A": p_in, "B": torch.zeros(len(p_out), len(p_in), dtype=case.width), "C": p_out.T.contiguous()}.items():
                made = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
                made.weight = nn.Parameter(matrix)
                setattr(self, f"logix_lora_{name}", made)

    class Folded(nn.Module):
        """The same model with the bias as weight of a last input that is 1: it projects weights alone."""

        def __init__(self):
            super().__init__()
            for name in case.layers:
                weight = torch.cat([case.state[f"{name}.weight"], case.state[f"{name}.bias"][:, None]], 1)
                made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                made.weight = nn.Parameter(weight)
                setattr(self, name, made)

        def forward(self, x):
            for name in case.layers:
                x = getattr(self, name)(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1))
                x = x if name == case.layers[-1] else torch.relu(x)
            return x

    lora.LoraLinear = Ours
    os.chdir(tempfile.mkdtemp())
    model, run = Folded(), logix.LogIX("scores")
    run.watch(model)

    def passes(dataset, size, first=0):
        for x, y in loader(dataset, size):
            with run(data_id=[str(i) for i in range(first, first + len(x))]):
                model.zero_grad()
                cross_entropy(model(x), y, reduction="sum").backward()
            first += len(x)

    def go():
        for _ in logix.LogIXScheduler(run, lora="random", hessian="raw", save="grad"):
            passes(case.train, 500)
            run.finalize()
        run.eval()
        run.setup({"grad": ["log"]})
        passes(case.queries, len(case.q))
        found = run.compute_influence_all(run.get_log(), run.build_log_dataloader(batch_size=LOGIX_BATCH), damping=None)
        order = np.argsort([int(i) for i in found["tgt_ids"]])
        return found["influence"].numpy()[:, order]

    return go


# traker

@peer("traker trak")
def _(case):
    import logging

    from trak import TRAKer
    from trak.projectors import AbstractProjector

    place, sign = case.places()

    class Ours(AbstractProjector):
        def project(self, grads, model_id):
            if isinstance(grads, dict):
                grads = torch.cat([g.flatten(1) for g in grads.values()], 1)
            return torch.zeros(len(grads), TRAK_DIM, dtype=grads.dtype).index_add_(1, place, grads * sign)

        def __init__(self):
            super().__init__(len(place), TRAK_DIM, 0, "rademacher", "cpu")

        def free_memory(self):
            pass

    folder = tempfile.mkdtemp()
    traker = TRAKer(case.model, "image_classification", len(case.x), save_dir=folder, device="cpu", projector=Ours(), proj_dim=TRAK_DIM, use_half_precision=False, logging_level=logging.ERROR)

    def go():
        traker.load_checkpoint(case.model.state_dict(), model_id=0)
        for batch in loader(case.train, 500):
            traker.featurize(batch=batch, num_samples=len(batch[0]))
        traker.finalize_features()
        traker.start_scoring_checkpoint("s", case.model.state_dict(), model_id=0, num_targets=len(case.q))
        for batch in loader(case.queries, 500):
            traker.score(batch=batch, num_samples=len(batch[0]))
        return np.array(traker.finalize_scores(exp_name="s")).T

    return go


# kronfluence

def kronfluence(case, strategy):
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

    wrapped, width = prepare_model(case.model, Classification()), case.width
    analyzer = Analyzer("m", wrapped, Classification(), cpu=True, output_dir=tempfile.mkdtemp(), disable_tqdm=True)

    def go():
        factor = FactorArguments(strategy=strategy, use_empirical_fisher=True, activation_covariance_dtype=width, gradient_covariance_dtype=width, lambda_dtype=width)
        score = ScoreArguments(damping_factor=case.damping, score_dtype=width, per_sample_gradient_dtype=width, precondition_dtype=width)
        analyzer.fit_all_factors("f", case.train, per_device_batch_size=500, factor_args=factor, overwrite_output_dir=True)
        analyzer.compute_pairwise_scores("s", "f", case.queries, case.train, per_device_query_batch_size=500, per_device_train_batch_size=500, score_args=score, overwrite_output_dir=True)
        return analyzer.load_pairwise_scores("s")["all_modules"].numpy()

    return go


@peer("kronfluence ekfac")
def _(case):
    return kronfluence(case, "ekfac")


@peer("kronfluence kfac")
def _(case):
    return kronfluence(case, "kfac")


# captum

def captum_checkpoint(case, name):
    path = case.folder / f"{name}.pt"
    torch.save({k: v.to(case.width) for k, v in load_file(case.folder / f"{name}.safetensors").items()}, path)
    return str(path)


@peer("captum tracin_cp")
def _(case):
    from captum.influence import TracInCP

    names, _, rates = case.kept()
    paths = [captum_checkpoint(case, name.removesuffix(".safetensors")) for name in names]
    rate = dict(zip(paths, rates))

    def load(model, path):
        model.load_state_dict(torch.load(path))
        return rate[path]

    tracin = TracInCP(case.model, case.train, paths, load, loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"), batch_size=1000, sample_wise_grads_per_batch=True)
    return lambda: tracin.influence((case.q, case.qy)).numpy()


@peer("captum arnoldi")
def _(case):
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    basis, top = ARNOLDI

    def load(model, path):
        model.load_state_dict(torch.load(path))
        return 1.0

    path, loss = captum_checkpoint(case, "weights"), torch.nn.CrossEntropyLoss(reduction="sum")

    def go():
        # Its curvature is a sum over the images: so is what it adds.
        influence = ArnoldiInfluenceFunction(
            case.model, case.train, path, load, loss_fn=loss, batch_size=1000, sample_wise_grads_per_batch=True, projection_dim=top,
            arnoldi_dim=basis, arnoldi_tol=1e-6, hessian_reg=case.damping * len(case.x), hessian_inverse_tol=1e-6,
        )
        return influence.influence((case.q, case.qy)).numpy()

    return go


# pyDVL

def pydvl(case, kind, **options):
    from pydvl.influence import InfluenceMode
    from pydvl.influence.torch import influence_function_model as models

    if kind == "EkfacInfluence":
        model = models.EkfacInfluence(case.model, update_diagonal=True, hessian_regularization=case.damping)
    else:
        model = getattr(models, kind)(case.model, cross_entropy, regularization=case.damping, **options)

    def go():
        fitted = model.fit(loader(case.train, options.pop("batch", 1000)))
        return fitted.influences(case.q, case.qy, case.x, case.y, mode=InfluenceMode.Up).detach().numpy()

    return go


@peer("pydvl explicit")
def _(case):
    return pydvl(case, "DirectInfluence")


@peer("pydvl cg")
def _(case):
    return pydvl(case, "CgInfluence", maxiter=CG_ITERATIONS, rtol=1e-7, solve_simultaneously=True, warn_on_max_iteration=False)


@peer("pydvl arnoldi")
def _(case):
    basis, top = ARNOLDI
    return pydvl(case, "ArnoldiInfluence", rank=top, krylov_dimension=basis)


@peer("pydvl ekfac")
def _(case):
    return pydvl(case, "EkfacInfluence")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("--setting", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--queries", type=int, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--double", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.double:
        torch.set_default_dtype(torch.float64)
    work = PEERS[arguments.peer](Case(arguments.setting, arguments.folder, arguments.queries, arguments.double))
    clock = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    before, start = clock(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scores = work()
    seconds = clock() - before
    np.save(arguments.out, np.asarray(scores, np.float64))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_seconds": seconds, "cpu_seconds_whole": clock(), "mib": peak, "mib_before": start}))


main()
