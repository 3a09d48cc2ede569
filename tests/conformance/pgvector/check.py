"""`ascribe search --mode ann --backend …` against numpy's brute force over the same rows. See README.md."""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from layout import write_store

passed = failed = 0


def check(ok, what):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print("FAILED", what)


def spec_of(dim):
    zero = "00" * 32
    return {
        "model": zero,
        "checkpoint": "final",
        "quantity": "gradient",
        "loss": "next_token_nll_sum",
        "normalizer": "none",
        "projector": {"kind": "identity"},
        "columns": [{"name": "all", "start": 0, "len": dim}],
        "dim": dim,
        "corpus": zero,
    }


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--ascribe", required=True)
    arguments.add_argument("--backend", required=True)
    arguments = arguments.parse_args()
    n, dim, n_queries, k = 6000, 64, 40, 10
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((30, dim))
    rows = (centres[rng.integers(30, size=n)] + 0.6 * rng.standard_normal((n, dim))).astype(np.float32)
    ids = ((np.arange(n) % 5).astype(np.uint64) << np.uint64(32)) | (np.arange(n) // 5).astype(np.uint64)
    queries = (rows[rng.integers(n, size=n_queries)] + 0.4 * rng.standard_normal((n_queries, dim))).astype(np.float32)
    with tempfile.TemporaryDirectory() as work:
        store, file = f"{work}/store", f"{work}/queries.npy"
        write_store(store, spec_of(dim), rows, ids, 2500)
        np.save(file, queries)

        def search(*more, code=0, env=None):
            command = [arguments.ascribe, "--quiet", "--format", "json", "search", "--store", store, "--queries", file, *more]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})
            check(done.returncode == code, f"{more}: exit {done.returncode}: {done.stderr}")
            return json.loads(done.stdout) if done.stdout.strip() else {}

        def judge(report, allowed, what):
            scores = queries.astype(np.float64) @ rows.astype(np.float64).T
            scores[:, ~allowed] = -np.inf
            best = np.argsort(-scores, axis=1)[:, :k]
            n_common = 0
            for q, found in enumerate(report["queries"]):
                places = np.array(found["rows"])
                n_common += len(set(places) & set(best[q]))
                check(len(places) == k and allowed[places].all(), f"{what}: query {q}: only what is allowed")
                check(np.array_equal(np.array(found["ids"], np.uint64), ids[places]), f"{what}: query {q}: ids")
                close = np.abs(np.array(found["scores"]) - scores[q, places]).max() < 1e-9 * np.abs(scores[q, places]).max()
                check(close, f"{what}: query {q}: scores are exact")
            check(n_common >= 0.97 * k * n_queries, f"{what}: {n_common} of {k * n_queries} found")

        everything = np.ones(n, bool)
        first = search("--mode", "ann", "--backend", arguments.backend)
        check(first["nominated_by"] == "pgvector" and first["mode"] == "ann" and not first["proven"], f"{first['mode']}")
        check(first["recall"] >= 0.99, f"recall {first['recall']} when it was built")
        judge(first, everything, "built")
        again = search("--mode", "ann", env={"ASCRIBE_SEARCH_BACKEND": arguments.backend})
        check(again["queries"] == first["queries"], "opened again, address from the environment")
        datasets = (ids >> np.uint64(32)).astype(int)
        judge(search("--mode", "ann", "--backend", arguments.backend, "--dataset", "1,3"), np.isin(datasets, [1, 3]), "filtered")
        # What the store deletes is not shown, though the server still has it.
        gone = int(first["queries"][0]["ids"][0])
        done = subprocess.run([arguments.ascribe, "store", "delete", store, "--example", f"{gone >> 32}:{gone & 0xFFFFFFFF}"])
        check(done.returncode == 0, "deleted")
        after = search("--mode", "ann", "--backend", arguments.backend)
        check(all(gone not in query["ids"] for query in after["queries"]), "a deleted row is not shown")
        certified = search("--mode", "certified")
        exact = search("--mode", "exact")
        check(exact["queries"][0]["ids"] == certified["queries"][0]["ids"], "exact and certified agree")
        refused = search("--mode", "ann", "--backend", "postgresql://me:hush@127.0.0.1:1/none", code=1)
        check("hush" not in json.dumps(refused), "a password is not shown")
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
