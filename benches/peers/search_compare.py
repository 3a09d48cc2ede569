"""Search beside faiss, hnswlib, usearch and numpy: same rows, same queries, one table. Started by search_compare.sh.

Rows are unit vectors around 200 centres, so inner product, cosine and Euclidean distance rank alike and every library is
asked the same question. Graphs: M = 16, efConstruction = 200 for the peers (ours: its default), one thread, queries per
CPU-second at the least effort whose recall@10 is 0.99; they are kept in the folder and built once. Scans: all cores, best of
five.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np

K, TARGET = 10, 0.99
EFS = [10, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 128, 192, 256, 384]


def made(path, n, dim):
    rows, queries = f"{path}/rows.npy", f"{path}/queries.npy"
    if not os.path.exists(queries):
        random = np.random.default_rng(n + dim)
        centres = random.standard_normal((200, dim), dtype=np.float32)

        def draw(count):
            x = centres[random.integers(0, 200, count)] + 0.9 * random.standard_normal((count, dim), dtype=np.float32)
            return x / np.linalg.norm(x, axis=1, keepdims=True)

        x = np.lib.format.open_memmap(rows, mode="w+", dtype=np.float32, shape=(n, dim))
        for start in range(0, n, 65536):
            x[start : start + 65536] = draw(min(65536, n - start))
        x.flush()
        np.save(queries, draw(1000))
    return rows, queries


def timed(work, repeats=5):
    """Least seconds of the clock, and CPU-seconds of that run."""
    best = (float("inf"), 0.0)
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
    return best


def recall(truth, found):
    return float(np.mean([len(set(t) & set(f)) / K for t, f in zip(truth, found)]))


def curve(name, build_cpu, search, truth, n_queries):
    """The first effort that reaches the target."""
    for ef in EFS:
        found = search(ef)
        reached = recall(truth, found)
        if reached >= TARGET or ef == EFS[-1]:
            wall, cpu = timed(lambda: search(ef), 3)
            return (name, build_cpu, ef, reached, n_queries / wall, n_queries / max(cpu, 1e-9))


def ours(binary, path, rows, queries, graphs):
    command = [binary, "bench", "search", "--data", rows, "--queries", queries, "--dir", f"{path}/store", "--quiet"]
    command += ["--format", "json"] + ([] if graphs else ["--no-hnsw"])
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def kept_graphs(path, x):
    """The peers' graphs, built on one thread or read from `path`; each with the CPU-seconds of its build."""
    import faiss
    import hnswlib
    from usearch.index import Index

    faiss.omp_set_num_threads(1)
    files = {name: f"{path}/{name}.graph" for name in ("hnswlib", "faiss", "usearch")}
    spent_file = f"{path}/graphs.json"
    spent = json.load(open(spent_file)) if os.path.exists(spent_file) else {}

    def kept(name, build, save, load):
        if name not in spent:
            cpu = time.process_time()
            graph = build()
            spent[name] = time.process_time() - cpu
            save(graph)
            with open(spent_file, "w") as file:
                json.dump(spent, file)
        return load()

    def build_hnswlib():
        index = hnswlib.Index(space="ip", dim=x.shape[1])
        index.init_index(max_elements=len(x), M=16, ef_construction=200, random_seed=1)
        index.add_items(x, num_threads=1)
        return index

    def load_hnswlib():
        index = hnswlib.Index(space="ip", dim=x.shape[1])
        index.load_index(files["hnswlib"])
        index.set_num_threads(1)
        return index

    def build_faiss():
        graph = faiss.IndexHNSWFlat(x.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 200
        graph.add(x)
        return graph

    def build_usearch():
        index = Index(ndim=x.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=200)
        index.add(np.arange(len(x)), x, threads=1)
        return index

    graphs = {
        "hnswlib": kept("hnswlib", build_hnswlib, lambda g: g.save_index(files["hnswlib"]), load_hnswlib),
        "faiss": kept(
            "faiss",
            build_faiss,
            lambda g: faiss.write_index(g, files["faiss"]),
            lambda: faiss.read_index(files["faiss"]),
        ),
        "usearch": kept(
            "usearch", build_usearch, lambda g: g.save(files["usearch"]), lambda: Index.restore(files["usearch"])
        ),
    }
    return graphs, spent


def graphs(path, x, q, truth):
    kept, spent = kept_graphs(path, x)

    def ask_hnswlib(ef):
        kept["hnswlib"].set_ef(ef)
        return kept["hnswlib"].knn_query(q, k=K, num_threads=1)[0]

    def ask_faiss(ef):
        kept["faiss"].hnsw.efSearch = ef
        return kept["faiss"].search(q, K)[1]

    def ask_usearch(ef):
        kept["usearch"].expansion_search = ef
        return kept["usearch"].search(q, K, threads=1).keys

    asks = [("hnswlib", ask_hnswlib), ("faiss", ask_faiss), ("usearch", ask_usearch)]
    return [curve(name, spent[name], ask, truth, len(q)) for name, ask in asks]


def main():
    import faiss

    binary, out, shapes = sys.argv[1], sys.argv[2], " ".join(sys.argv[3:]).split()
    for shape in shapes:
        size, flat = shape.split(":")[0], shape.endswith(":flat")
        n, dim = (int(part) for part in size.split("x"))
        path = f"{out}/{size}"
        os.makedirs(path, exist_ok=True)
        rows, queries = made(path, n, dim)
        q = np.load(queries)
        block = q[:64]
        mine = ours(binary, path, rows, queries, not flat)
        x = np.ascontiguousarray(np.load(rows))
        exact = faiss.IndexFlatIP(dim)
        exact.add(x)
        faiss.omp_set_num_threads(os.cpu_count())
        one, many = timed(lambda: exact.search(block[:1], K))[0], timed(lambda: exact.search(block, K))[0]
        print(f"\n{size}: memory {mine['read_gb_s']:.1f} GB/s, load {os.getloadavg()[0]:.1f}")
        print(f"{'':28}{'1 query, ms':>14}{'64 queries, ms':>16}{'of faiss':>10}{'of faiss':>10}")
        both = [("faiss Flat f32", one * 1e3, many * 1e3)]
        both.append(("ascribe exact f32", *mine["exact_ms"]))
        both.append(("ascribe certified int8", mine["certified_int8_ms"], mine["certified_ms"][1]))
        both.append((f"ascribe certified ({mine['certified_scanned']} first)", *mine["certified_ms"]))
        for name, first, second in both:
            print(f"{name:28}{first:14.2f}{second:16.2f}{one * 1e3 / first:9.2f}x{many * 1e3 / second:9.2f}x")
        kernels = {(s["row_type"], s["queries"]): s for s in mine["scans"]}
        for (kind, count), scan in kernels.items():
            of_peak = scan["gop_s"] / scan["peak_gop_s"]
            print(
                f"  scan of {kind:5}{count:3} queries {scan['gb_s']:7.2f} GB/s ({scan['gb_s'] / mine['read_gb_s']:.0%} of memory)"
                f"{scan['gop_s']:9.0f} Gop/s ({of_peak:.0%} of the product in cache)"
            )
        print(
            f"  certified equals exact: {mine['certified_equals_exact']}; rows scored again per query:"
            f" {mine['rows_rescored_mean']:.0f} (alone, {mine['certified_scanned']} first: {mine['certified_rescored']});"
            f" resident {mine['peak_rss_mib']:.0f} MiB"
        )
        if flat:
            continue
        truth = exact.search(q, K)[1]
        lines = graphs(path, x, q, truth)
        reached = [h for h in mine["hnsw"] if h["recall"] >= TARGET] or mine["hnsw"][-1:]
        best = reached[0]
        build = mine["hnsw_build_cpu_s"] or float("nan")
        lines.append(("ascribe", build, best["ef"], best["recall"], best["qps"], best["qps_per_cpu"]))
        print(f"{'graph':28}{'build CPU-s':>12}{'ef':>6}{'recall@10':>11}{'queries/s':>11}{'queries/CPU-s':>15}")
        for name, build, ef, reached, qps, per_cpu in lines:
            print(f"{name:28}{build:12.1f}{ef:6}{reached:11.4f}{qps:11.0f}{per_cpu:15.0f}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
