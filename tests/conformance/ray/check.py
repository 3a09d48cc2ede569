"""`python -m ascribe.ray build` on a cluster of two nodes. See README.md."""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import boto3
import ray
from ray.cluster_utils import Cluster

passed = failed = 0
#: Files of a store that depend on more than its rows: none but the lock.
NOT_COMPARED = {"writer.lock"}
PARTS = 6


def check(ok, what):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    print("ok    " if ok else "FAILED", what, flush=True)


def files(folder):
    folder = pathlib.Path(folder)
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_COMPARED)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def ports(n):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def node_arguments():
    """One core, one GPU as Ray counts them. Ports are given: a loaded machine is too slow for Ray's own search."""
    metrics, environment, listen = ports(3)
    return {
        "num_cpus": 1,
        "num_gpus": 1,
        "object_store_memory": 100_000_000,
        "include_dashboard": False,
        "metrics_agent_port": metrics,
        "runtime_env_agent_port": environment,
        "dashboard_agent_listen_port": listen,
    }


class Bench:
    def __init__(self, ascribe, root, work):
        self.ascribe, self.root, self.work = ascribe, pathlib.Path(root), pathlib.Path(work)
        self.model = self.root / "models" / "wren"
        self.data = self.work / "records.jsonl"
        lines = []
        for n, path in enumerate(sorted((self.root / "datasets").glob("*/*.jsonl"))):
            for line in path.read_text().splitlines()[:80]:
                record = json.loads(line)
                lines.append(json.dumps({"id": f"{n}-{record['id']}", "text": record["text"], "dataset": path.parent.name}))
        self.data.write_text("\n".join(lines) + "\n")
        self.n_records = len(lines)
        self.arguments = ["--skip-empty", "--max-len", "128"]

    def local(self):
        """What one machine makes of all rows, in the order of a merge."""
        one, whole = self.work / "one", self.work / "whole"
        features = ["features", "--model", self.model, "--data", self.data, "--out", one, "--threads", "2", *self.arguments]
        for command in (features, ["store", "merge", one, "--out", whole]):
            subprocess.run([self.ascribe, "--quiet", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
        return files(whole)

    def command(self, out, *more, data=None, parts=PARTS):
        head = [sys.executable, "-m", "ascribe.ray", "build", "--address", self.address, "--model", self.model, "--ascribe", self.ascribe]
        return [*map(str, head), "--data", str(data or self.data), "--out", str(out), "--parts", str(parts), *map(str, more)]

    def start(self, out, *more, **options):
        command = [*self.command(out, *more, **options), "--", *self.arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, seconds=300):
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += "\n(did not end)"
    return process.returncode, json.loads(out) if out.strip() else {}, err


def parts_at_work(under):
    """Processes of `ascribe features --shard` below a folder, with their parents: Ray's workers."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"--shard" in words and any(word.startswith(str(under).encode()) for word in words):
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    found.append((int(entry.name), parent))
    return found


def wait_until(what, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    return None


def both_nodes(bench, whole):
    code, report, err = finish(bench.start(bench.work / "both", "--num-gpus", "1"))
    check(code == 0 and report.get("parts_made") == PARTS, f"a build with a GPU a task: {code} {report} {err[-800:] if code else ''}")
    check(len(report.get("nodes", {})) == 2, "both nodes took part")
    check(files(bench.work / "both") == whole, "the bytes of one machine")
    check(not (bench.work / "both.parts").exists(), "the parts are cleared away")


def a_worker_dies(bench, whole):
    out = bench.work / "worker"
    process = bench.start(out)
    at_work = wait_until(lambda: parts_at_work(f"{out}.parts"))
    check(at_work, "a worker makes a part")
    if not at_work:
        return finish(process)
    (child, worker), *_ = at_work
    os.kill(worker, signal.SIGKILL)
    check(wait_until(lambda: not pathlib.Path(f"/proc/{child}").exists(), 20), "its process dies with it")
    code, report, err = finish(process)
    check(code == 0 and report.get("retried", 0) >= 1, f"the part is begun again: {code} {report} {err[-800:] if code else ''}")
    check(files(out) == whole, "the same bytes after a killed worker")
    return None


def the_driver_dies(bench, whole):
    out = bench.work / "driver"
    process = bench.start(out)
    progress = pathlib.Path(f"{out}.parts/progress.json")

    def some_parts():
        with contextlib.suppress(OSError, ValueError):
            return json.loads(progress.read_text())["parts"]
        return None

    made = wait_until(some_parts)
    process.kill()
    process.communicate()
    check(made, "a part is finished when the driver dies")
    check(wait_until(lambda: not parts_at_work(f"{out}.parts"), 30), "what it had begun ends")
    code, report, err = finish(bench.start(out, parts=PARTS + 1))
    check(code == 1 and "another one" in report.get("error", ""), f"another build does not take its parts: {report}")
    code, report, err = finish(bench.start(out))
    check(code == 0 and report.get("parts_made", PARTS) < PARTS, f"the same command goes on: {code} {report} {err[-800:] if code else ''}")
    check(files(out) == whole, "the same bytes after a killed driver")


def a_bad_record(bench):
    data = bench.work / "bad.jsonl"
    data.write_text(bench.data.read_text() + '{"id": "x", "text": 5}\n')
    began = time.monotonic()
    code, report, _ = finish(bench.start(bench.work / "bad", data=data))
    said = report.get("error", "")
    check(code == 1 and "part " in said and str(bench.n_records + 1) in said, f"a bad record is named, by its part and line: {report}")
    check(time.monotonic() - began < 60 and not (bench.work / "bad").exists(), "nothing is tried again or written")


def a_node_dies(bench, whole, cluster, node):
    out = bench.work / "node"
    process = bench.start(out)
    check(wait_until(lambda: len(parts_at_work(f"{out}.parts")) == 2), "both nodes make parts")
    cluster.remove_node(node, allow_graceful=False)
    code, report, err = finish(process)
    check(code == 0 and report.get("retried", 0) >= 1, f"the other node makes its parts: {code} {report} {err[-800:] if code else ''}")
    check(files(out) == whole, "the same bytes after a lost node")


def on_s3(bench, whole, endpoint):
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="rows")
    s3.upload_file(str(bench.data), "rows", "in/records.jsonl")
    more = ["--parts-at", "s3://rows/parts", "--scratch", bench.work / "scratch"]
    code, report, err = finish(bench.start(bench.work / "s3", *more, data="s3://rows/in/records.jsonl", parts=2))
    check(code == 0, f"records and parts on S3: {report} {err[-800:] if code else ''}")
    names = [found["Key"] for found in s3.list_objects_v2(Bucket="rows", Prefix="parts/").get("Contents", [])]
    check(sum(name.endswith("commits/000000.json") for name in names) == 2, f"a commit a part: {len(names)} objects")
    check(files(bench.work / "s3") == whole, "the same bytes from S3")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--ascribe", required=True)
    arguments.add_argument("--root", required=True)
    args = arguments.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    server = subprocess.Popen(
        [sys.executable, f"{args.root}/tests/conformance/objects/server.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    endpoint = server.stdout.readline().strip()
    keys = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_REGION": "us-east-1"}
    # Before the nodes: their workers read the keys from their environment.
    os.environ.update(keys, AWS_DEFAULT_REGION="us-east-1")
    work = tempfile.mkdtemp()
    cluster = None
    try:
        bench = Bench(args.ascribe, args.root, work)
        whole = bench.local()
        cluster = Cluster(initialize_head=True, head_node_args=node_arguments())
        second = cluster.add_node(**node_arguments())
        cluster.wait_for_nodes()
        bench.address = cluster.address
        both_nodes(bench, whole)
        a_worker_dies(bench, whole)
        the_driver_dies(bench, whole)
        a_bad_record(bench)
        on_s3(bench, whole, endpoint)
        a_node_dies(bench, whole, cluster, second)
    finally:
        if cluster is not None:
            cluster.shutdown()
        if ray.is_initialized():
            ray.shutdown()
        server.terminate()
        server.wait()
        shutil.rmtree(work, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
