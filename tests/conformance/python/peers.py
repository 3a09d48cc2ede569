"""Has bergson, LogIX, TRAK, kronfluence and dattri write their files, and says what each holds by the tool's own readers.

    peers.py TOOL FOLDER

Small models and fixed seeds. FOLDER gets the tool's files and `expected.npz`: `gradients` [train, columns] and `scores` [query, train]
where the tool has them. `peers.sh` runs it for every tool and compares `ascribe.migrate` with what is expected; the files that the
package's tests read (`crates/ascribe-python/tests/peers`) came from here.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

N_TRAIN, N_QUERY = 12, 3


def classifier():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


def examples():
    g = torch.Generator().manual_seed(1)
    n = N_TRAIN + N_QUERY
    return torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)


def train_and_query():
    from torch.utils.data import TensorDataset

    x, y = examples()
    return TensorDataset(x[:N_TRAIN], y[:N_TRAIN]), TensorDataset(x[N_TRAIN:], y[N_TRAIN:])


def losses(model, x, y):
    return torch.nn.functional.cross_entropy(model(x), y, reduction="none")


def bergson(folder):
    import datasets
    from bergson.build import build
    from bergson.config.config import DataConfig, IndexConfig, PreprocessConfig
    from bergson.data import load_gradients
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    work = folder / "work"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(work / "model")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0").save_pretrained(work / "model")
    ids = torch.randint(64, (N_TRAIN + N_QUERY, 10), generator=torch.Generator().manual_seed(2)).tolist()
    for name, part in (("index", ids[:N_TRAIN]), ("query", ids[N_TRAIN:])):
        rows = {"input_ids": part, "labels": part, "length": [10] * len(part)}
        datasets.Dataset.from_dict(rows).save_to_disk(work / f"data_{name}")
        run = IndexConfig(
            run_path=str(work / name),
            model=str(work / "model"),
            precision="fp32",
            projection_dim=3,
            token_batch_size=np.iinfo(np.int64).max,
            max_batch_size=4,
            data=DataConfig(dataset=str(work / f"data_{name}")),
            filter_modules="*lm_head*",
        )
        build(run, PreprocessConfig())
    keep(work / "index", folder / "index", "info.json", "gradients.bin")
    gradients = np.asarray(load_gradients(work / "index"), dtype=np.float32)
    queries = np.asarray(load_gradients(work / "query"), dtype=np.float32)
    scores = bergson_scores(work, folder)
    expected = {"gradients": gradients, "scores": scores, "dots": queries @ gradients.T}
    shutil.rmtree(work)
    return expected


def bergson_scores(work, folder):
    """`bergson score`, by its library; what it wrote, as its own reader reads it."""
    import bergson.score.score as module
    from bergson.config.config import DataConfig, IndexConfig, PreprocessConfig, ScoreConfig
    from bergson.data import load_scores

    index = IndexConfig(
        run_path=str(work / "scores"),
        model=str(work / "model"),
        precision="fp32",
        projection_dim=3,
        token_batch_size=np.iinfo(np.int64).max,
        max_batch_size=4,
        data=DataConfig(dataset=str(work / "data_index")),
        filter_modules="*lm_head*",
    )
    module.score_dataset(index, ScoreConfig(query_path=str(work / "query")), PreprocessConfig())
    keep(work / "scores", folder / "scores", "info.json", "scores.bin")
    return np.asarray(load_scores(work / "scores")[:], dtype=np.float32).T


def logix(folder):
    import logix as tool
    from logix.config import LoggingConfig, LoRAConfig

    model, (train, _) = classifier(), train_and_query()
    here = Path.cwd()
    (folder / "work").mkdir(parents=True)
    os.chdir(folder / "work")
    run = tool.init("log", config=None)
    run.set_logging_config(LoggingConfig(flush_threshold=200, num_workers=0))
    run.set_lora_config(LoRAConfig(init="random", rank=2))
    run.watch(model)
    for _ in tool.LogIXScheduler(run, lora="random", hessian="none", save="grad"):
        for start in range(0, N_TRAIN, 5):
            x, y = train[start : min(start + 5, N_TRAIN)]
            with run(data_id=[f"x{start + i}" for i in range(len(x))]):
                model.zero_grad()
                losses(model, x, y).sum().backward()
        run.finalize()
    run.eval()
    run.setup({"grad": ["log"]})
    found = {}
    for ids, log in run.build_log_dataloader(batch_size=4, num_workers=0):
        blocks = [log[name]["grad"].flatten(1) for name in log]
        found |= dict(zip(ids, torch.cat(blocks, 1).numpy(), strict=True))
    os.chdir(here)
    written = next(path.parent for path in (folder / "work").rglob("log_*_metadata.json"))
    keep(written, folder / "log", *[path.name for path in written.glob("log_*")])
    shutil.rmtree(folder / "work")
    return {"gradients": np.stack([found[f"x{i}"] for i in range(N_TRAIN)])}


def trak(folder):
    from trak import TRAKer
    from trak.projectors import BasicProjector

    model, (train, query) = classifier().eval(), train_and_query()
    size = sum(p.numel() for p in model.parameters())
    projector = BasicProjector(grad_dim=size, proj_dim=16, seed=0, proj_type="rademacher", device="cpu", block_size=8)
    tool = TRAKer(
        model=model,
        task="image_classification",
        train_set_size=N_TRAIN,
        save_dir=str(folder / "run"),
        device="cpu",
        projector=projector,
        proj_dim=16,
        use_half_precision=False,
        logging_level=30,
        lambda_reg=1e-2,
    )
    tool.load_checkpoint(model.state_dict(), model_id=0)
    for start in range(0, N_TRAIN, 4):
        tool.featurize(batch=train[start : start + 4], num_samples=4)
    tool.finalize_features()
    tool.start_scoring_checkpoint("test", model.state_dict(), 0, num_targets=N_QUERY)
    tool.score(batch=query[:N_QUERY], num_samples=N_QUERY)
    scores = np.array(tool.finalize_scores("test"))
    gradients = np.array(tool.saver.current_store["features"])
    return {"gradients": gradients, "scores": scores.T}


def kronfluence(folder):
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0])
            y = torch.multinomial(torch.softmax(logits.detach(), -1), 1).flatten() if sample else batch[1]
            return torch.nn.functional.cross_entropy(logits, y, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    train, query = train_and_query()
    model = prepare_model(classifier(), Classification())
    work = folder / "work"
    tool = Analyzer("small", model, Classification(), cpu=True, output_dir=str(work), disable_tqdm=True)
    tool.fit_all_factors("f", train, per_device_batch_size=4, factor_args=FactorArguments(strategy="ekfac"))
    settings = {"per_device_query_batch_size": 3, "per_device_train_batch_size": 4, "score_args": ScoreArguments()}
    tool.compute_pairwise_scores("s", "f", query, train, **settings)
    by_module = {**settings, "score_args": ScoreArguments(compute_per_module_scores=True)}
    tool.compute_pairwise_scores("m", "f", query, train, **by_module)
    scores = tool.load_pairwise_scores("s")["all_modules"].float().numpy()
    for name in "sm":
        keep(work / "small" / f"scores_{name}", folder / f"scores_{name}", "pairwise_scores.safetensors")
    shutil.rmtree(work)
    return {"scores": scores}


def dattri(folder):
    from dattri.algorithm.influence_function import IFAttributorExplicit
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader

    model, (train, query) = classifier(), train_and_query()

    def loss(parameters, batch):
        x, y = batch
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    tool = IFAttributorExplicit(task=task, regularization=1e-2)
    loaders = [DataLoader(part, batch_size=4, shuffle=False) for part in (train, query)]
    tool.cache(loaders[0])
    score = tool.attribute(*loaders).detach()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(score, folder / "score.pt")
    return {"scores": score.numpy().T}


def keep(source, target, *names):
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)


def main():
    tool, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    expected = {"bergson": bergson, "logix": logix, "trak": trak, "kronfluence": kronfluence, "dattri": dattri}[tool](folder)
    # TRAK's list of experiments holds absolute paths of the machine that wrote it, and nothing here reads it.
    (folder / "run" / "experiments.json").unlink(missing_ok=True)
    np.savez(folder / "expected.npz", **expected)
    from importlib.metadata import version

    names = {"logix": "logix-ai", "trak": "traker"}
    (folder / "made_by.json").write_text(json.dumps({"tool": tool, "version": version(names.get(tool, tool))}) + "\n")
    print(tool, {name: value.shape for name, value in expected.items()})


if __name__ == "__main__":
    main()
