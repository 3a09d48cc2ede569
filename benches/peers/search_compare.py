"""Search beside faiss, hnswlib, usearch and numpy: same rows, same queries, one table. Started by search_compare.sh.

Rows are unit vectors around 200 centres, so inner product, cosine and Euclidean distance rank alike and every library is
asked the same question. Graphs: M = 16, efConstruction = 200 for the peers (ours: its default), one thread, queries per
CPU-second at the least effort whose recall@10 is 0.99; they are kept in the folder and built once. Scans: all cores, best of
five. numpy: `x @ q` in f32, then `argpartition`.

`same ids`: of 64 queries, those whose ten rows are numpy's, in its order. Sums in f32 differ in their last bits, so two rows
whose precise scores (f64) lie within that rounding may stand in either order, or one in the place of the other: `+n` counts
queries that differ by such rows alone, `!n` those that differ otherwise.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np

K, TARGET = 10, 0.99
# Queries that are also asked one by one, a process each.
ALONE = 16
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


def certified(binary, path, queries):
    """Rows of `ascribe search --mode certified`, the way any user asks: all queries together, and each alone."""

    def ask(file):
        command = [binary, "search", "--store", f"{path}/store", "--queries", file, "--k", str(K), "--mode", "certified"]
        out = subprocess.run([*command, "--format", "json", "--quiet"], check=True, capture_output=True, text=True).stdout
        return [query["rows"] for query in json.loads(out)["queries"]]

    together, alone = f"{path}/together.npy", f"{path}/alone.npy"
    np.save(together, queries)
    singly = []
    for query in queries[:ALONE]:
        np.save(alone, query[None])
        singly += ask(alone)
    return ask(together), singly


def same(x, queries, truth, found):
    """How many lists are equal, and how many differ by rows within the rounding of f32 alone, or otherwise."""
    equal = rounding = other = 0
    for query, wanted, got in zip(queries, truth, found):
        wanted, got = [int(i) for i in wanted], [int(i) for i in got]
        if wanted == got:
            equal += 1
            continue
        places = [(a, b) for a, b in zip(wanted, got) if a != b]
        precise = lambda i: float(x[i].astype(np.float64) @ query.astype(np.float64))
        slack = 4 * x.shape[1] ** 0.5 * 2**-24 * float(np.linalg.norm(query)) * max(float(np.linalg.norm(x[i])) for i in wanted)
        is_near = len(set(got)) == K and all(abs(precise(a) - precise(b)) <= slack for a, b in places)
        rounding, other = rounding + is_near, other + (not is_near)
    return f"{equal}" + (f" +{rounding}" if rounding else "") + (f" !{other}" if other else "")


def numpy_top(x, queries):
    scores = x @ queries.T
    found = []
    for line in np.ascontiguousarray(scores.T):
        best = np.argpartition(-line, K)[: K + 1]
        found.append(best[np.lexsort((best, -line[best]))][:K])
    return found


def product_peak():
    """Gop/s of numpy's own product (OpenBLAS), all cores: square matrices of 4,096 numbers, f32."""
    a, b = (np.random.default_rng(i).standard_normal((4096, 4096), dtype=np.float32) for i in range(2))
    return 2 * 4096**3 / 1e9 / timed(lambda: a @ b, 3)[0]


def number(x, form):
    return "" if x is None else format(x, form)


def table(lines):
    head = ("rows", "what", "1 query, ms", "of faiss", "64, ms", "of faiss", "same ids", "ef", "recall@10", "queries/CPU-s", "build CPU-s")
    rows = [head] + [tuple(str(cell) for cell in line) for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip())


def main():
    import faiss

    binary, out, shapes = sys.argv[1], sys.argv[2], " ".join(sys.argv[3:]).split()
    lines, notes, peak = [], [], product_peak()
    notes.append(f"product of numpy, f32, 4,096 x 4,096: {peak:.0f} Gop/s")
    for shape in shapes:
        size, flat = shape.split(":")[0], shape.endswith(":flat")
        n, dim = (int(part) for part in size.split("x"))
        path = f"{out}/{size}"
        os.makedirs(path, exist_ok=True)
        rows, queries = made(path, n, dim)
        q = np.load(queries)
        block = q[:64]
        mine = ours(binary, path, rows, queries, not flat)
        together, singly = certified(binary, path, block)
        x = np.ascontiguousarray(np.load(rows))
        numpy_one, numpy_many = timed(lambda: numpy_top(x, block[:1]))[0], timed(lambda: numpy_top(x, block), 2)[0]
        truth = numpy_top(x, block)
        exact = faiss.IndexFlatIP(dim)
        exact.add(x)
        faiss.omp_set_num_threads(os.cpu_count())
        one, many = timed(lambda: exact.search(block[:1], K))[0], timed(lambda: exact.search(block, K), 2)[0]

        def scan(name, first, second, ids=""):
            lines.append((size, name, f"{first:.2f}", f"{one * 1e3 / first:.2f}x", f"{second:.1f}", f"{many * 1e3 / second:.2f}x", ids, "", "", "", ""))

        scan("faiss Flat f32", one * 1e3, many * 1e3, same(x, block, truth, exact.search(block, K)[1]))
        scan("numpy f32, argpartition", numpy_one * 1e3, numpy_many * 1e3, "the others'")
        scan("ascribe exact f32", *mine["exact_ms"])
        scan("ascribe certified, int8", mine["certified_int8_ms"], mine["certified_ms"][1], same(x, block, truth, together))
        scan(f"ascribe certified, {mine['certified_scanned']} first", *mine["certified_ms"], same(x, block[:ALONE], truth, singly) + f" of {ALONE}")
        for figure in mine["scans"]:
            of_peak, of_memory = figure["gop_s"] / figure["peak_gop_s"], figure["gb_s"] / mine["read_gb_s"]
            of_numpy = f", {figure['gop_s'] / peak:.2f} of numpy's product" if figure["queries"] > 1 else ""
            notes.append(
                f"{size}: scan of {figure['row_type']:5}{figure['queries']:3} queries {figure['gb_s']:7.2f} GB/s"
                f" ({of_memory:.0%} of memory){figure['gop_s']:8.0f} Gop/s ({of_peak:.0%} of the same kernel in the cache{of_numpy})"
            )
        notes.append(
            f"{size}: memory {mine['read_gb_s']:.1f} GB/s, scan of int8 rows {mine['scan_gb_s']:.1f}, whole certified search of them {mine['certified_gb_s']:.1f};"
            f" equal to our brute force: {mine['certified_equals_exact']}; rows scored again per query"
            f" {mine['rows_rescored_mean']:.0f} (alone, {mine['certified_scanned']} first: {mine['certified_rescored']});"
            f" resident {mine['peak_rss_mib']:.0f} MiB; load {os.getloadavg()[0]:.1f}"
        )
        if flat:
            continue
        found = graphs(path, x, q, exact.search(q, K)[1])
        best = ([h for h in mine["hnsw"] if h["recall"] >= TARGET] or mine["hnsw"][-1:])[0]
        found.append(("ascribe", mine["hnsw_build_cpu_s"], best["ef"], best["recall"], best["qps"], best["qps_per_cpu"]))
        for name, build, ef, reached, _, per_cpu in found:
            lines.append((size, f"{name} graph", "", "", "", "", "", ef, f"{reached:.4f}", f"{per_cpu:.0f}", number(build, ".1f")))
    table(lines)
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
