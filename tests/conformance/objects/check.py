"""`ascribe store push` and `pull` over a real S3 server. See README.md."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import boto3
import numpy as np

import clouds
from layout import Store, write_store

passed = failed = 0
HERE = os.path.dirname(os.path.abspath(__file__))
REGION = "eu-central-1"
# Requests that moto answers before it begins to check signatures: those of `admit`.
FREE_REQUESTS = 4
ROUNDS = 12


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


def make(n, dim, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, dim)).astype(np.float32)
    ids = ((np.arange(n) % 3).astype(np.uint64) << np.uint64(32)) | (np.arange(n) // 3).astype(np.uint64)
    return rows, ids


def client(service, endpoint, key_id, secret):
    return boto3.client(
        service, endpoint_url=endpoint, aws_access_key_id=key_id, aws_secret_access_key=secret, region_name=REGION
    )


def admit(endpoint):
    """A user who may do everything with S3, and a bucket; returns the user's keys."""
    iam = client("iam", endpoint, "root", "root")
    iam.create_user(UserName="ascribe")
    keys = iam.create_access_key(UserName="ascribe")["AccessKey"]
    statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="ascribe", PolicyName="all", PolicyDocument=policy)
    s3 = client("s3", endpoint, "root", "root")
    s3.create_bucket(Bucket="rows", CreateBucketConfiguration={"LocationConstraint": REGION})
    return keys["AccessKeyId"], keys["SecretAccessKey"]


class Bench:
    def __init__(self, ascribe, work, endpoint):
        self.ascribe, self.work = ascribe, work
        key_id, self.secret = admit(endpoint)
        self.env = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": endpoint,
        }
        self.s3 = client("s3", endpoint, key_id, self.secret)

    def start(self, *args, env=None, group=("store",)):
        command = [self.ascribe, "--quiet", "--format", "json", *group, *map(str, args)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**self.env, **(env or {})}
        )

    def run(self, *args, code=0, env=None, **group):
        process = self.start(*args, env=env, **group)
        out, err = process.communicate(timeout=300)
        check(process.returncode == code, f"{args}: exit {process.returncode}: {out} {err}")
        return json.loads(out) if out.strip() else {}

    def keys(self, prefix):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket="rows", Prefix=prefix)
        return {o["Key"][len(prefix) :]: o["Size"] for page in pages for o in page.get("Contents", [])}


def there_and_back(bench):
    work, place = bench.work, "s3://rows/a b/stores"
    rows, ids = make(400, 48, 1)
    write_store(f"{work}/one", spec_of(48), rows, ids, 64)
    first = bench.run("push", f"{work}/one", "--to", place)
    check((first.get("commit"), first.get("n_rows")) == (0, 400), f"first commit: {first}")
    names = bench.keys("a b/stores/")
    check({"store.json", "CURRENT", "commits/000000.json"} <= set(names), f"objects: {sorted(names)}")
    shards = [name for name in names if name.startswith("shards/")]
    check(len(shards) == 7, f"{len(shards)} shards")
    # An outsider's client reads what is there.
    body = bench.s3.get_object(Bucket="rows", Key="a b/stores/commits/000000.json")["Body"].read()
    check(json.loads(body)["number"] == 0, "boto3 reads the commit")
    check(bench.run("push", f"{work}/one", "--to", place).get("commit") == 0, "pushed again: nothing to do")
    bench.run("pull", place, "--out", f"{work}/back")
    back = Store(f"{work}/back")
    check(np.array_equal(back.rows, rows.astype(np.float64)) and np.array_equal(back.ids, ids), "rows come back")
    bench.run("verify", f"{work}/back")
    bench.run("delete", f"{work}/back", "--dataset", "1")
    second = bench.run("push", f"{work}/back", "--to", place)
    check(second.get("commit") == 1, f"second commit: {second}")
    bench.run("pull", place, "--out", f"{work}/later")
    later = Store(f"{work}/later")
    check(np.array_equal(later.rows, rows[(ids >> np.uint64(32)) != 1].astype(np.float64)), "the deletion comes back")
    # One that was not built on the newest commit is refused, and changes nothing.
    bench.run("delete", f"{work}/one", "--dataset", "2")
    refused = bench.run("push", f"{work}/one", "--to", place, code=1)
    check("commits/000001" in refused.get("error", ""), f"the conflict is named: {refused}")
    check("commits/000002.json" not in bench.keys("a b/stores/"), "nothing was committed")


def scored(bench):
    """A store is scored where it lies, whole and as the parts of a job array: the bytes of its folder."""
    work, place = bench.work, "s3://rows/scored"
    rows, ids = make(300, 32, 5)
    write_store(f"{work}/scored", spec_of(32), rows, ids, 40)
    np.save(f"{work}/q.npy", rows[:5])
    bench.run("push", f"{work}/scored", "--to", place)
    bench.s3.upload_file(f"{work}/q.npy", "rows", "q.npy")

    def score(store, out, *more, queries=f"{work}/q.npy", code=0, env=None):
        command = ["score", "--store", store, "--queries", queries, "--k", 7, "--out", f"{work}/{out}", *more]
        return bench.run(*command, code=code, env=env, group=())

    score(f"{work}/scored", "here.json")
    score(place, "there.json", queries="s3://rows/q.npy")
    for part in range(3):
        score(place, f"{part}.part", "--shard", f"{part}/3")
    parts = [f"{work}/{part}.part" for part in (2, 0, 1)]
    bench.run("score", "--join", *parts, "--out", f"{work}/joined.json", group=())
    here, *others = (open(f"{work}/{name}.json", "rb").read() for name in ("here", "there", "joined"))
    check(len(here) > 100 and others == [here, here], "scores of a store on S3, whole and in parts: the bytes of its folder")
    refused = score("s3://rows/nothing", "none.json", code=1)
    check("nothing was pushed" in refused.get("error", ""), f"scores of nothing: {refused}")
    check(not os.path.exists(f"{work}/none.json"), "nothing is written")


def races(bench):
    """Two machines build on one state at once: one commits, the other is told, and every row of the winner is there."""
    work = bench.work
    rows, ids = make(300, 32, 2)
    write_store(f"{work}/base", spec_of(32), rows, ids, 32)
    n_one, n_conflicts = 0, 0
    for number in range(ROUNDS):
        place = f"s3://rows/race{number}"
        bench.run("push", f"{work}/base", "--to", place)
        stores = []
        for writer in range(3):
            stores.append(f"{work}/race{number}-{writer}")
            shutil.copytree(f"{work}/base", stores[-1])
            bench.run("delete", stores[-1], "--example", f"{writer}:{number}")
        processes = [bench.start("push", store, "--to", place) for store in stores]
        outcomes = [(p.communicate(timeout=300), p.returncode) for p in processes]
        winners = [i for i, (_, code) in enumerate(outcomes) if code == 0]
        n_one += len(winners) == 1
        n_conflicts += sum("commits/" in out for (out, _), code in outcomes if code == 1)
        check(len(winners) == 1, f"round {number}: {outcomes}")
        if len(winners) != 1:
            continue
        bench.run("pull", place, "--out", f"{work}/won{number}")
        bench.run("verify", f"{work}/won{number}")
        wanted = ids != (np.uint64(winners[0]) << np.uint64(32)) + np.uint64(number)
        check(np.array_equal(Store(f"{work}/won{number}").rows, rows[wanted].astype(np.float64)), f"round {number}: its rows")
    check(n_one == ROUNDS and n_conflicts == 2 * ROUNDS, f"{n_one} of {ROUNDS} rounds with one winner, {n_conflicts} told")


def first_pushes(bench):
    """Two builders of one store for one place that is still empty: the same shards twice, one commit."""
    work = bench.work
    rows, ids = make(500, 32, 3)
    for writer in range(2):
        write_store(f"{work}/same{writer}", spec_of(32), rows, ids, 16)
    processes = [bench.start("push", f"{work}/same{writer}", "--to", "s3://rows/same") for writer in range(2)]
    outcomes = [(p.communicate(timeout=300), p.returncode) for p in processes]
    # The loser of a race for the very same content may be told of the conflict or find its commit there already.
    check(any(code == 0 for _, code in outcomes), f"somebody won: {outcomes}")
    names = bench.keys("same/")
    check(sum(name.startswith("shards/") for name in names) == 32, "every shard once")
    check([name for name in names if name.startswith("commits/")] == ["commits/000000.json"], "one commit")
    bench.run("pull", "s3://rows/same", "--out", f"{work}/same")
    check(np.array_equal(Store(f"{work}/same").rows, rows.astype(np.float64)), "no row was lost")


def damage(bench):
    work = bench.work
    rows, ids = make(100, 16, 4)
    write_store(f"{work}/d", spec_of(16), rows, ids, 50)
    bench.run("push", f"{work}/d", "--to", "s3://rows/damaged")
    for name in sorted(bench.keys("damaged/")):
        key = f"damaged/{name}"
        body = bench.s3.get_object(Bucket="rows", Key=key)["Body"].read()
        at = len(body) // 2
        bench.s3.put_object(Bucket="rows", Key=key, Body=body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :])
        refused = bench.run("pull", "s3://rows/damaged", "--out", f"{work}/d-{passed}", code=1)
        check(name.split("/")[-1][:8] in refused.get("error", ""), f"the error names {name}: {refused}")
        bench.s3.put_object(Bucket="rows", Key=key, Body=body)
    shard = next(name for name in bench.keys("damaged/") if name.startswith("shards/"))
    bench.s3.delete_object(Bucket="rows", Key=f"damaged/{shard}")
    refused = bench.run("pull", "s3://rows/damaged", "--out", f"{work}/d-gone", code=1)
    check(shard in refused.get("error", ""), f"a missing object is named: {refused}")


def refusals(bench):
    work = bench.work
    for place, env, word in [
        ("s3://nowhere/x", {}, "NoSuchBucket"),
        ("s3://rows/x", {"AWS_SECRET_ACCESS_KEY": "another"}, "403"),
        ("s3://rows/x", {"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, "403"),
        ("s3://rows/x", {"AWS_ACCESS_KEY_ID": ""}, "AWS_ACCESS_KEY_ID"),
        ("s3://rows/x", {"AWS_ENDPOINT_URL": "http://storage.example"}, "AWS_ALLOW_HTTP"),
        ("gs://rows/x", {}, "CLOUDSDK_AUTH_ACCESS_TOKEN"),
    ]:
        refused = bench.run("push", f"{work}/base", "--to", place, code=1, env=env)
        text = json.dumps(refused)
        check(word in text and bench.secret not in text, f"{place} {env}: {refused}")
    refused = bench.run("pull", "s3://rows/empty", "--out", f"{work}/none", code=1)
    check("nothing was pushed" in refused.get("error", ""), f"an empty place: {refused}")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--ascribe", required=True)
    arguments.add_argument("--modules", required=True, help="where npm put Azurite")
    given = arguments.parse_args()
    ascribe = given.ascribe
    server = subprocess.Popen(
        [sys.executable, f"{HERE}/server.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(FREE_REQUESTS)},
    )
    try:
        endpoint = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as work:
            bench = Bench(ascribe, work, endpoint)
            there_and_back(bench)
            scored(bench)
            races(bench)
            first_pushes(bench)
            damage(bench)
            refusals(bench)
    finally:
        server.terminate()
        server.wait()
    with tempfile.TemporaryDirectory() as work:
        clouds.azure(ascribe, work, given.modules, check, make, spec_of)
        clouds.google(ascribe, work, check, make, spec_of)
        if os.environ.get("GOOGLE_TESTBENCH"):
            clouds.google_testbench(os.environ["GOOGLE_TESTBENCH"], ascribe, work, check, make, spec_of)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
