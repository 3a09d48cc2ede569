"""Every long call lets go of the interpreter's lock: while it runs, another Python thread goes on.

A thread notes the time every half millisecond. If the call kept the lock, the thread would be silent for as long as the call
takes; so the longest silence must stay below half of it. A machine that does other work can silence a thread too, but not five
times in a row, as a lock does.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import ascribe
import numpy as np
import pytest
from ascribe import FeatureSpec, Index, Store, StoreWriter, _ascribe, metrics, migrate, pack_ids, pure
from ascribe.spec import Column, factored

SHORTEST_S = 0.02
"""A call that takes less says nothing of the lock; the inputs below are for several times as much."""
TRIES = 5
COMMAND = os.environ.get("ASCRIBE", "")
GOLDEN = Path(os.environ.get("ASCRIBE_ROOT", "/nonexistent")) / "crates/ascribe-ledger/tests/formats/journal/v1"


def silence(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds that ``call`` took, and the longest part of them in which another thread did nothing."""
    times, stop, ready = [], threading.Event(), threading.Event()

    def tick() -> None:
        while not stop.is_set():
            times.append(time.perf_counter())
            ready.set()
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    ready.wait()
    try:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    inside = [start, *(t for t in times if start < t < end), end]
    return end - start, max(np.diff(inside))


def keeps_the_lock(make: Callable[[], Callable[[], object]]) -> str | None:
    """What was seen, if every try looked as if the lock was kept."""
    seen = []
    for _ in range(TRIES):
        spent, longest = silence(make())
        if spent >= SHORTEST_S and longest < 0.5 * spent:
            return None
        seen.append(f"{longest:.3f} of {spent:.3f} s")
    return ", ".join(seen)


def test_the_measure_sees_a_call_that_keeps_the_lock():
    numbers = range(6_000_000)
    seen = keeps_the_lock(lambda: lambda: sum(numbers))  # one call into C, which never lets go
    assert seen is not None
    assert keeps_the_lock(lambda: lambda: time.sleep(0.1)) is None


CASES: dict[str, Callable[[SimpleNamespace], Callable[[], Callable[[], object]]]] = {}


def case(make: Callable[[SimpleNamespace], Callable[[], object]]) -> None:
    """A call whose inputs are made anew for every try."""
    CASES[make.__name__] = lambda have: lambda: make(have)


N, DIM = 60_000, 512


@pytest.fixture(scope="module")
def have(tmp_path_factory):
    """Inputs that several cases share, each made when the first asks."""
    folder, n = tmp_path_factory.mktemp("gil"), iter(range(10**6))
    random = np.random.default_rng(0)
    rows = random.normal(size=(N, DIM)).astype(np.float32)
    ids = pack_ids(np.arange(N) % 4, np.arange(N) // 4)
    found = SimpleNamespace(rows=rows, ids=ids, random=random, folder=folder)
    found.new = lambda: folder / f"new-{next(n)}"
    found.store = Store.write(folder / "store", rows, ids)
    found.parts = [Store.write(folder / f"part{i}", rows[i::2].copy(), ids[i::2].copy()).path for i in range(2)]
    found.queries = random.normal(size=(512, DIM)).astype(np.float32)
    found.many = random.normal(size=(12_000, DIM)).astype(np.float32)
    found.fisher = ascribe.fit(found.store)
    found.small = Store.write(folder / "small", random.normal(size=(4000, 64)).astype(np.float32))
    found.index = Index.build(found.small, n_graphs=2)
    found.points = random.normal(size=(8000, 64)).astype(np.float32)
    # Sixteen modules of 512 columns: curvature of 34 MB.
    columns = tuple(Column(f"m{i}", 512 * i, 512) for i in range(16))
    plain = FeatureSpec.plain(8192)
    spec = FeatureSpec(**{**vars(plain), "columns": columns})
    found.wide = Store.write(folder / "wide", random.normal(size=(1200, 8192)).astype(np.float32), spec=spec)
    found.curvature = ascribe.fit(found.wide)
    found.curvature.save(folder / "curvature.safetensors")
    # Factors of rank 1 of 16 x 16: 32 numbers stand for 256.
    columns = tuple(Column(f"m{i}", 32 * i, 32) for i in range(32))
    spec = FeatureSpec(**{**vars(FeatureSpec.plain(1024)), "columns": columns, "projector": factored(1, 16, 16, 1)})
    found.factors = random.normal(size=(8000, 1024)).astype(np.float32)
    found.factored = Store.write(folder / "factored", found.factors, pack_ids(np.arange(8000) % 4, np.arange(8000)), spec=spec)
    found.scores = ascribe.Scores(ids, random.normal(size=(16, N)).astype(np.float32), random.normal(size=(16, 4)))
    found.scores.write(folder / "scores.parquet", found.store, "m")
    values = random.random(size=(80_000, 40))
    found.values = values / values.sum(axis=1, keepdims=True)
    found.intervals = np.stack([found.values * 0.9, np.minimum(found.values * 1.1, 1)], axis=2)
    found.owners = [(f"urn:uuid:{i}", f"set{i}", f"owner{i % 7}") for i in range(40)]
    found.book = ascribe.shares(found.values, found.owners, intervals=found.intervals)
    found.short = ascribe.shares(found.values[:3000], found.owners, intervals=found.intervals[:3000])
    found.short.write(folder / "shares.json")
    return found


# Stores.


@case
def writer_push(have):
    writer = StoreWriter(have.new(), FeatureSpec.plain(DIM), N)
    return lambda: (writer.push(have.ids, have.rows), writer.close())


@case
def writer_append(have):
    store = Store.write(have.new(), have.rows[:10])
    writer = StoreWriter.append(store.path, store.spec, N)
    return lambda: (writer.push(have.ids + np.uint64(9 << 32), have.rows), writer.close())


@case
def store_write(have):
    return lambda: Store.write(have.new(), have.rows, have.ids)


@case
def store_rows(have):
    return lambda: have.store.rows()


@case
def store_search(have):
    return lambda: have.store.search(have.queries, 10)


@case
def store_search_for_all(have):
    """As many hits as there are rows: the table of them is made without the lock too."""
    return lambda: have.store.search(have.queries[:20], N)


@case
def store_verify(have):
    return lambda: have.store.verify()


@case
def store_merge(have):
    return lambda: Store.merge(have.parts, have.new())


@case
def store_convert(have):
    return lambda: have.store.convert(have.new(), "bf16")


@case
def store_make_companion(have):
    store = Store.write(have.new(), have.rows)
    return lambda: store.make_companion("int8")


@case
def store_expand(have):
    return lambda: have.factored.expand(have.factors)


@case
def pure_writer(have):
    writer = pure.Writer(have.new(), FeatureSpec.plain(DIM), 6000)
    return lambda: (writer.push(have.ids[:6000], have.rows[:6000]), writer.finish())


# The approximate index.


@case
def index_build(have):
    return lambda: Index.build(have.small, n_graphs=2)


@case
def index_search(have):
    return lambda: have.index.search(have.points, 10, effort=64)


@case
def index_measure(have):
    return lambda: have.index.measure(have.points[:400])


# Methods.


@case
def fit(have):
    return lambda: ascribe.fit(have.store)


@case
def score(have):
    return lambda: ascribe.score(have.store, have.queries)


@case
def score_in_a_metric(have):
    return lambda: ascribe.score(have.store, have.queries, have.fisher)


@case
def score_of_factors(have):
    return lambda: ascribe.score(have.factored, have.factors[:64])


@case
def dataset_scores(have):
    return lambda: ascribe.dataset_scores(have.store, have.many, have.fisher)


@case
def dataset_scores_of_factors(have):
    return lambda: ascribe.dataset_scores(have.factored, have.factors[:2])


@case
def precondition(have):
    return lambda: have.fisher.precondition(have.many)


@case
def self_influence(have):
    return lambda: have.fisher.self_influence(have.store)


@case
def fisher_save(have):
    return lambda: have.curvature.save(have.new())


@case
def fisher_load(have):
    return lambda: ascribe.Fisher.load(have.folder / "curvature.safetensors", have.wide)


@case
def write_scores(have):
    return lambda: have.scores.write(have.new(), have.store, "m")


@case
def read_scores(have):
    return lambda: ascribe.read_scores(have.folder / "scores.parquet")


# Shares and books.


@case
def shares(have):
    return lambda: ascribe.shares(have.values, have.owners, intervals=have.intervals)


@case
def read_shares(have):
    return lambda: ascribe.read_shares(have.folder / "shares.json")


@case
def shares_json(have):
    return lambda: have.short.write(have.new())


@case
def shares_of_datasets(have):
    return lambda: have.book.datasets()


@case
def shares_of_owners(have):
    return lambda: have.book.owners()


# Measures.


def numbers(have, *shape):
    return have.random.random(size=shape)


@case
def lds(have):
    scores, included, losses = numbers(have, 200, 1000), numbers(have, 800, 1000) < 0.5, numbers(have, 200, 800)
    return lambda: metrics.lds(scores, included, losses)


@case
def lds_removed(have):
    scores, included, losses = numbers(have, 200, 1000), numbers(have, 800, 1000) < 0.5, numbers(have, 200, 800)
    return lambda: metrics.lds_removed(scores, included, losses)


@case
def loo(have):
    a = numbers(have, 1000, 16_000)
    return lambda: metrics.loo(a, a)


def labelled(measure):
    def make(have):
        scores, positive = numbers(have, 1_500_000), numbers(have, 1_500_000) < 0.1
        return lambda: measure(scores, positive)

    return lambda have: lambda: make(have)


for _measure in (metrics.roc_auc, metrics.auprc, metrics.found_area):
    CASES[_measure.__name__] = labelled(_measure)


@case
def label_top1(have):
    scores, labels = numbers(have, 1500, 16_000), np.zeros(16_000, np.uint32)
    return lambda: metrics.label_top1(scores, np.zeros(1500, np.uint32), labels)


def paired(measure, n):
    def make(have):
        a = numbers(have, n)
        return lambda: measure(a, a)

    return lambda have: lambda: make(have)


for _measure, _n in ((metrics.spearman, 1_000_000), (metrics.pearson, 30_000_000), (metrics.share_error, 50_000_000)):
    CASES[_measure.__name__] = paired(_measure, _n)


@case
def removal_effect(have):
    a = numbers(have, 1000, 50_000)
    return lambda: metrics.removal_effect(a, a)


@case
def brittleness(have):
    a = numbers(have, 1000, 50_000)
    return lambda: metrics.brittleness(a[:, 0].copy(), a)


@case
def tail_patch(have):
    a = numbers(have, 1000, 50_000)
    return lambda: metrics.tail_patch(a[:, 0].copy(), a)


@case
def bootstrap_mean(have):
    values = numbers(have, 20_000)
    return lambda: metrics.bootstrap_mean(values)


@case
def paired_difference(have):
    values = numbers(have, 20_000)
    return lambda: metrics.paired_difference(values, values)


@case
def evaluate(have):
    scores = numbers(have, 10_000, 20)
    return lambda: metrics.evaluate(scores, scores, np.zeros(10_000, np.uint32))


# Projections.


@case
def two_sided(have):
    return lambda: _ascribe.two_sided(1, "m", 50_000, 50_000, 512, 512)


@case
def stream_words(have):
    return lambda: _ascribe.stream_words(1, "m", 0, 60_000_000)


# Files of other tools.


@case
def bergson_gradients(have):
    folder = have.new()
    folder.mkdir()
    info = {"num_grads": N, "grad_sizes": {"h.0": 300, "h.1": DIM - 300}, "base_dtype": "float16"}
    (folder / "info.json").write_text(json.dumps(info))
    have.rows.astype(np.float16).tofile(folder / "gradients.bin")
    return lambda: migrate.bergson_gradients(folder, have.new())


@case
def bergson_scores(have):
    folder, n = have.new(), 400_000
    folder.mkdir()
    fields = [name for i in range(24) for name in (f"score_{i}", f"written_{i}")]
    formats, offsets = ["<f4", "?"] * 24, [8 * (i // 2) + 4 * (i % 2) for i in range(48)]
    kind = {"names": fields, "formats": formats, "offsets": offsets, "itemsize": 8 * 24}
    table = np.zeros(n, np.dtype(kind))
    for i in range(24):
        table[f"written_{i}"] = True
    table.tofile(folder / "scores.bin")
    (folder / "info.json").write_text(json.dumps({"num_rows": n, "num_scores": 24, "dtype": kind}))
    return lambda: migrate.bergson_scores(folder)


@case
def logix_gradients(have):
    folder, per_chunk = have.new(), 1000
    folder.mkdir()
    for chunk in range(10):
        have.rows[chunk * per_chunk : (chunk + 1) * per_chunk].tofile(folder / f"log_0_{chunk}.mmap")
        entry = {"path": [["h.0", "grad"]], "shape": [[DIM]], "block_size": DIM, "dtype": "float32"}
        entries = [{"data_id": f"{chunk}.{i}", "offset": 4 * DIM * i, **entry} for i in range(per_chunk)]
        (folder / f"log_0_{chunk}_metadata.json").write_text(json.dumps(entries))
    return lambda: migrate.logix_gradients(folder, have.new())


@case
def trak_gradients(have):
    folder = have.new()
    (folder / "0").mkdir(parents=True)
    with (folder / "0" / "features.mmap").open("wb") as file:
        np.save(file, have.rows.astype(np.float16))
    return lambda: migrate.trak_gradients(folder, have.new())


@case
def trak_scores(have):
    folder = have.new()
    (folder / "scores").mkdir(parents=True)
    with (folder / "scores" / "a.mmap").open("wb") as file:
        np.save(file, numbers(have, 400_000, 24).astype(np.float32))
    return lambda: migrate.trak_scores(folder, "a")


@case
def kronfluence_scores(have):
    file, data = have.new(), numbers(have, 24, 400_000).astype(np.float32)
    head = json.dumps({"all_modules": {"dtype": "F32", "shape": data.shape, "data_offsets": [0, data.nbytes]}}).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + data.tobytes())
    return lambda: migrate.kronfluence_scores(file)


@case
def dattri_scores(have):
    file = have.new().with_suffix(".npy")
    np.save(file, numbers(have, 400_000, 24).astype(np.float32))
    return lambda: migrate.dattri_scores(file)


@case
def dattri_gradients(have):
    file = have.new().with_suffix(".npy")
    np.save(file, have.rows)
    return lambda: migrate.dattri_gradients(file, have.new())


@pytest.mark.parametrize("name", CASES)
def test_another_thread_goes_on(have, name):
    seen = keeps_the_lock(CASES[name](have))
    assert seen is None, f"another thread was silent for {seen} of {name}"


def asked(*arguments: object) -> None:
    subprocess.run([COMMAND, *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with one licensed data set of 64 MB."""
    folder = tmp_path_factory.mktemp("registry")
    (folder / "texts").mkdir()
    with (folder / "texts" / "records.jsonl").open("w") as file:
        for i in range(16_000):
            file.write(json.dumps({"id": f"r{i}", "text": f"{i} " + "word " * 800}) + "\n")
    (folder / "phrase").write_text("a phrase for a test\n")
    key = ["--passphrase-file", folder / "phrase"]
    asked("registry", "init", folder / "registry", "--name", "A test", "--chain-id", 1)
    asked("licence", "new-key", "--out", folder / "key.json", *key)
    payee = "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    place = ["--dir", folder / "registry"]
    asked("registry", "add", folder / "texts", "--licence", "CC-BY-4.0", "--payee", payee, "--owner", "ann", *place)
    asked("licence", "sign", "texts", "--keystore", folder / "key.json", *key, *place)
    return folder / "registry"


@pytest.mark.skipif(not COMMAND, reason="ASCRIBE names no command")
def test_another_thread_goes_on_while_records_are_registered(tmp_path, registry):
    fresh = iter(range(TRIES))

    def make():
        folder = tmp_path / f"r{next(fresh)}"
        ascribe.Registry.init(folder)
        texts, payee = registry.parent / "texts", "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
        return lambda: ascribe.Registry.add(folder, texts, licence="CC-BY-4.0", payees=payee)

    seen = keeps_the_lock(make)
    assert seen is None, seen


@pytest.mark.skipif(not COMMAND, reason="ASCRIBE names no command")
def test_another_thread_goes_on_while_a_registry_is_verified(registry):
    found = ascribe.Registry(registry)
    assert len(found) == 1
    seen = keeps_the_lock(lambda: lambda: found.verify())
    assert seen is None, seen


def grown(journal: str, n: int) -> str:
    """The books with as many more deposits into the pool."""
    deposit = '{{"id":"{:032x}","debit":{{"kind":"cash"}},"credit":{{"kind":"pool"}},"amount":"1",'
    deposit += '"phase":{{"kind":"posted"}},"memo":{{"kind":"fund"}}}},'
    head, transfers, rest = journal.partition('"transfers":[\n')
    journal = head + transfers + "".join(deposit.format(i) + "\n" for i in range(n)) + rest
    head, _, rest = journal.partition('"balances":[\n')
    lines = rest.split("\n")
    for i, side in ((0, "debits_posted"), (1, "credits_posted")):
        assert lines[i].count(f'"{side}":"1000000000"') == 1
        lines[i] = lines[i].replace(f'"{side}":"1000000000"', f'"{side}":"{10**9 + n}"')
    body = (head + '"balances":[\n' + "\n".join(lines)).rpartition(',\n"sha256":')[0]
    return f'{body},\n"sha256":"{hashlib.sha256(body.encode()).hexdigest()}"}}\n'


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="ASCRIBE_ROOT names no repository")
def test_another_thread_goes_on_while_books_are_read(tmp_path):
    (tmp_path / "journal.json").write_text(grown((GOLDEN / "journal.json").read_text(), 40_000))
    assert len(ascribe.read_journal(tmp_path / "journal.json").transfers) > 40_000
    seen = keeps_the_lock(lambda: lambda: ascribe.read_journal(tmp_path / "journal.json"))
    assert seen is None, seen
