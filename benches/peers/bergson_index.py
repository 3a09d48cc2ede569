"""One measured run of bergson's index build; prints one line of JSON.

    python bergson_index.py --model DIR --ids FILE.npy --n 1024 --precision fp32|bf16 --threads 1 --out DIR

Ids are `[n, T]` integers. bergson reads the Hugging Face folder as it is, taps every linear module but the output layer and
projects each to 16 x 16: the same rows' size as `ascribe features --projection 16x16`. Model loading, reading and writing
are inside the measured part, imports and one small build before it (first calls compile kernels) are not.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--ids", required=True)
parser.add_argument("--n", type=int, default=1024)
parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--out", required=True)
args = parser.parse_args()
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = str(args.threads)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np  # noqa: E402  (the thread limits must stand before the libraries load)
import torch  # noqa: E402
import datasets  # noqa: E402
from bergson.build import build  # noqa: E402
from bergson.config.config import DataConfig, IndexConfig, PreprocessConfig  # noqa: E402
from bergson.data import load_gradients  # noqa: E402

torch.set_num_threads(args.threads)
datasets.disable_progress_bars()


def cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def index(name: str, ids: np.ndarray) -> Path:
    folder = Path(args.out) / name
    shutil.rmtree(folder, ignore_errors=True)
    rows = ids.tolist()
    data = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows, "length": [ids.shape[1]] * len(rows)})
    data.save_to_disk(folder / "data")
    config = IndexConfig(
        run_path=str(folder / "index"), model=args.model, precision=args.precision, projection_dim=16,
        token_batch_size=sys.maxsize, max_batch_size=args.batch, data=DataConfig(dataset=str(folder / "data")),
        filter_modules="*lm_head*")
    started, wall = cpu_seconds(), time.perf_counter()
    build(config, PreprocessConfig())
    index.cpu, index.wall = cpu_seconds() - started, time.perf_counter() - wall
    return folder / "index"


if __name__ == "__main__":
    ids = np.load(args.ids).astype(np.int64)
    index("warm", ids[: 4 * args.batch])
    folder = index("measured", ids[: args.n])
    rows = np.asarray(load_gradients(folder), dtype=np.float32)
    assert rows.shape[0] == args.n and np.isfinite(rows).all(), rows.shape
    tokens = args.n * ids.shape[1]
    print(json.dumps({
        "who": "bergson", "precision": args.precision, "threads": args.threads, "sequences": args.n, "tokens": tokens,
        "dim": int(rows.shape[1]), "cpu_seconds": round(index.cpu, 3), "wall_seconds": round(index.wall, 3),
        "tokens_per_cpu_second": round(tokens / index.cpu, 1), "tokens_per_second": round(tokens / index.wall, 1),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}))
