"""numpy arrays go in and come out without copies: what a call adds to the peak of a process's memory, against the array's size.

Each call runs in a process of its own, with an array of 256 MB (128 MB for results); its peak (`VmHWM`) is read before and after.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ascribe
import numpy as np
import pytest

PRELUDE = """
import json, os, sys, tempfile
import numpy as np, ascribe
from ascribe import FeatureSpec, Store, StoreWriter, _ascribe, metrics, migrate, pack_ids
folder = tempfile.mkdtemp(dir=sys.argv[1])

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024

def filled(kind, *shape):
    # Made where it lies, so that the peak is what is resident.
    array = np.empty(shape, kind)
    array.reshape(-1)[:] = np.float32(0.5)
    array.reshape(-1)[::4097] = np.float32(1.5)
    return array
"""

MEASURE = """
call()  # with a small array, if at all: threads and libraries are there then
before = peak()
assert before - resident() < 8 << 20, (before, resident())
call = big()
before = peak()
assert before - resident() < 8 << 20, (before, resident())
kept = call()
print(json.dumps({"grown": peak() - before, "array": array.nbytes}))
"""

GROWTH = {
    # What is measured, how it is set up, the call, and the part of the array that the peak may grow by.
    "the control, a copy": ("array = filled(np.float32, 128, 1 << 19)", "array.copy()", (0.99, 1.05)),
    "write_scores": (
        "array, ids = filled(np.float32, 128, 1 << 19), pack_ids(0, np.arange(1 << 19))\n"
        "    sums, spec = filled(np.float64, 128, 2), FeatureSpec.plain(1).to_json()",
        "_ascribe.write_scores(folder + '/scores', spec, 'm', ids, array, 10, sums)",
        (0, 0.06),
    ),
    "write_scores of datasets": (
        "array, ids = filled(np.float64, 16, 1 << 21), pack_ids(0, np.arange(4))\n"
        "    values, spec = filled(np.float32, 16, 4), FeatureSpec.plain(1).to_json()",
        "_ascribe.write_scores(folder + '/scores', spec, 'm', ids, values, 1, array[:1])",
        (0, 0.25),
    ),
    "StoreWriter.push": (
        "array, ids = filled(np.float32, 1 << 17, 512), pack_ids(0, np.arange(1 << 17))\n"
        "    writer = StoreWriter(folder + '/s', FeatureSpec.plain(512), 1 << 17)",
        "writer.push(ids, array)",
        (0, 0.3),  # buffers of a few shards
    ),
    "Store.search, queries": (
        "array, store = filled(np.float32, 1 << 17, 512), Store.write(folder + '/s', filled(np.float32, 4, 512))",
        "store.search(array, 1)",
        (0, 0.3),
    ),
    "score, result": (
        "store = Store.write(folder + '/s', filled(np.float32, 1 << 16, 8))\n"
        "    queries, array = filled(np.float32, 512, 8), np.lib.stride_tricks.as_strided(np.float32(0), (512, 1 << 16), (0, 0))",
        "_ascribe.score(store._raw, queries)",
        (0.99, 1.3),
    ),
    "loo": ("array = filled(np.float64, 512, 1 << 16)", "metrics.loo(array, array)", (0, 0.05)),
    "removal_effect": ("array = filled(np.float64, 512, 1 << 16)", "metrics.removal_effect(array, array)", (0, 0.05)),
    "pearson": ("array = filled(np.float64, 1 << 25)", "metrics.pearson(array, array)", (0, 0.05)),
    "share_error": ("array = filled(np.float64, 1 << 25)", "metrics.share_error(array, array)", (0, 0.05)),
    "label_top1": (
        "array, labels = filled(np.float64, 16, 1 << 21), np.zeros(1 << 21, np.uint32)",
        "metrics.label_top1(array, np.zeros(16, np.uint32), labels)",
        (0, 0.05),
    ),
    "lds": (
        "array, included = filled(np.float64, 16, 1 << 21), np.ones((4, 1 << 21), bool)",
        "metrics.lds(array, included, filled(np.float64, 16, 4))",
        (0, 0.05),
    ),
}


@pytest.mark.parametrize("name", GROWTH)
def test_growth_of_the_peak(tmp_path, name):
    setup, call, (low, high) = GROWTH[name]
    names = "array, ids, sums, spec, values, writer, store, queries, labels, included"
    code = f"{PRELUDE}\ncall = lambda: None\ndef big():\n    global {names}\n    {setup}\n    return lambda: {call}\n{MEASURE}"
    # Freed blocks go back at once: what glibc keeps of them for later, up to the size of the array, is no copy.
    kept = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **kept})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    part = found["grown"] / found["array"]
    assert low <= part <= high, f"{name}: the peak grew by {part:.3f} of an array of {found['array']} bytes"


def test_columns_and_arrow_lie_in_the_table(store, rows):
    pa = pytest.importorskip("pyarrow")
    hits = store.search(rows[:5], 7)
    for name in hits.names:
        first, again = hits[name], hits[name]
        assert first.ctypes.data == again.ctypes.data and not first.flags.owndata and not first.flags.writeable
        for table in (hits.to_arrow(), pa.RecordBatchReader.from_stream(hits).read_all()):
            assert table[name].chunk(0).buffers()[1].address == first.ctypes.data
    assert pa.table(hits).equals(pa.RecordBatchReader.from_stream(hits).read_all())


def test_streams_that_nobody_or_half_reads(store, rows):
    pa = pytest.importorskip("pyarrow")
    hits = store.search(rows[:5], 7)
    for _ in range(1000):
        hits.__arrow_c_stream__()
        pa.RecordBatchReader.from_stream(hits).schema  # noqa: B018
    reader = pa.RecordBatchReader.from_stream(hits)
    batch = reader.read_next_batch()
    with pytest.raises(StopIteration):
        reader.read_next_batch()
    expected = hits["row"].tolist()
    del reader, hits
    assert batch["row"].to_pylist() == expected
    empty = store.search(rows[:0], 1)
    assert pa.RecordBatchReader.from_stream(empty).read_all().num_rows == 0


def test_arrays_that_are_handed_over_are_the_callers(store, rows):
    for array in (store.rows(), store.ids, ascribe.score(store, rows[:2]).values, store.dataset_sums()[0]):
        assert array.flags.writeable
        array[...] = 0
    assert np.any(store.rows())
