"""The same on Azure's blobs (Azurite, Microsoft's own server) and on Google's store (its testbench, where there is one). See README.md."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

from layout import Store, write_store

# The account and the key of every emulator, in Azurite's documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
ROUNDS = 12


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_for(port, process):
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"no server on port {port}")


class Place:
    """Runs the command with an environment, and hands outcomes to `check`."""

    def __init__(self, ascribe, work, cloud, scheme, env, check, make, spec_of):
        self.ascribe, self.work, self.make, self.spec_of = ascribe, f"{work}/{cloud}", make, spec_of
        self.cloud, self.place = cloud, f"{scheme}://rows"
        self.check = lambda ok, what: check(ok, f"{cloud}: {what}")
        self.env = {**os.environ, **env}
        os.makedirs(self.work, exist_ok=True)

    def start(self, *args, env=None):
        command = [self.ascribe, "--quiet", "--format", "json", "store", *map(str, args)]
        env = {**self.env, **(env or {})}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def run(self, *args, code=0, env=None):
        process = self.start(*args, env=env)
        out, err = process.communicate(timeout=300)
        self.check(process.returncode == code, f"{args}: exit {process.returncode}: {out} {err}")
        return json.loads(out) if out.strip() else {}


class Blobs:
    """A container of Azurite, by Microsoft's own client."""

    def __init__(self, client):
        self.client = client

    def names(self, prefix=""):
        return [blob.name for blob in self.client.list_blobs(name_starts_with=prefix)]

    def read(self, name):
        return self.client.download_blob(name).readall()

    def write(self, name, body):
        self.client.upload_blob(name, body, overwrite=True)

    def delete(self, name):
        self.client.delete_blob(name)

    def creates(self, name, body):
        try:
            self.client.upload_blob(name, body)
        except ResourceExistsError:
            return False
        return True


class Bucket:
    """A bucket of Google's testbench, by its JSON interface: the command uses the other one."""

    def __init__(self, base):
        self.base = base
        self.ask("POST", "/storage/v1/b?project=rows", json.dumps({"name": "rows"}).encode(), "application/json")

    def ask(self, method, path, body=None, kind="application/octet-stream"):
        request = urllib.request.Request(self.base + path, body, {"content-type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    @staticmethod
    def quoted(name):
        return urllib.parse.quote(name, safe="")

    def names(self, prefix=""):
        found = json.loads(self.ask("GET", f"/storage/v1/b/rows/o?prefix={self.quoted(prefix)}"))
        return [item["name"] for item in found.get("items", [])]

    def read(self, name):
        return self.ask("GET", f"/storage/v1/b/rows/o/{self.quoted(name)}?alt=media")

    def write(self, name, body, condition=""):
        self.ask("POST", f"/upload/storage/v1/b/rows/o?uploadType=media&name={self.quoted(name)}{condition}", body)

    def delete(self, name):
        self.ask("DELETE", f"/storage/v1/b/rows/o/{self.quoted(name)}")

    def creates(self, name, body):
        try:
            self.write(name, body, "&ifGenerationMatch=0")
        except urllib.error.HTTPError as refused:
            if refused.code != 412:
                raise
            return False
        return True


def azure(ascribe, work, modules, check, make, spec_of):
    """There and back, races, damage and refusals on Azurite."""
    port = free_port()
    main = f"{modules}/azurite/dist/src/blob/main.js"
    server = subprocess.Popen(
        ["node", main, "--silent", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, server)
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        client = BlobServiceClient(endpoint, credential={"account_name": ACCOUNT, "account_key": KEY}, api_version="2021-08-06")
        client.create_container("rows")
        env = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY, "AZURE_STORAGE_ENDPOINT": endpoint}
        bench = Place(ascribe, work, "azure", "az", env, check, make, spec_of)
        everything(bench, Blobs(client.get_container_client("rows")))
        azure_refusals(bench)
    finally:
        server.terminate()
        server.wait()


def everything(bench, bucket):
    there_and_back(bench, bucket)
    races(bench)
    damage(bench, bucket)


def there_and_back(bench, bucket):
    work, place, check = bench.work, f"{bench.place}/a b/stores", bench.check
    rows, ids = bench.make(400, 48, 1)
    write_store(f"{work}/one", bench.spec_of(48), rows, ids, 64)
    first = bench.run("push", f"{work}/one", "--to", place)
    check((first.get("commit"), first.get("n_rows")) == (0, 400), f"first commit: {first}")
    names = {name.removeprefix("a b/stores/") for name in bucket.names()}
    check({"store.json", "CURRENT", "commits/000000.json"} <= names, f"objects {sorted(names)}")
    # An outsider's client reads what is there, and cannot create a commit a second time either.
    body = bucket.read("a b/stores/commits/000000.json")
    check(json.loads(body)["number"] == 0, "another client reads the commit")
    check(not bucket.creates("a b/stores/commits/000000.json", b"other"), "a commit is created once")
    check(bench.run("push", f"{work}/one", "--to", place).get("commit") == 0, "pushed again: nothing to do")
    bench.run("pull", place, "--out", f"{work}/back")
    back = Store(f"{work}/back")
    check(np.array_equal(back.rows, rows.astype(np.float64)) and np.array_equal(back.ids, ids), "rows come back")
    bench.run("relicense", f"{work}/back", "--dataset", "2", "--owner", "Moss & Söhne", "--licence", "MIT")
    bench.run("delete", f"{work}/back", "--dataset", "1")
    second = bench.run("push", f"{work}/back", "--to", place)
    check(second.get("commit") == 1, f"second commit: {second}")
    bench.run("pull", place, "--out", f"{work}/later")
    bench.run("verify", f"{work}/later")
    later = Store(f"{work}/later")
    check(np.array_equal(later.rows, rows[(ids >> np.uint64(32)) != 1].astype(np.float64)), "the deletion comes back")
    sums = bench.run("sums", f"{work}/later")
    check([o["owner"] for o in sums["owners"]] == ["Moss & Söhne"], f"the owner comes back: {sums}")
    bench.run("delete", f"{work}/one", "--dataset", "2")
    refused = bench.run("push", f"{work}/one", "--to", place, code=1)
    check("commits/000001" in refused.get("error", ""), f"the conflict is named: {refused}")
    refused = bench.run("pull", f"{bench.place}/empty", "--out", f"{work}/none", code=1)
    check("nothing was pushed" in refused.get("error", ""), f"an empty place: {refused}")


def races(bench):
    work, check = bench.work, bench.check
    rows, ids = bench.make(300, 32, 2)
    write_store(f"{work}/base", bench.spec_of(32), rows, ids, 32)
    n_one, n_told = 0, 0
    for number in range(ROUNDS):
        place = f"{bench.place}/race{number}"
        bench.run("push", f"{work}/base", "--to", place)
        stores = [f"{work}/race{number}-{writer}" for writer in range(3)]
        for writer, store in enumerate(stores):
            shutil.copytree(f"{work}/base", store)
            bench.run("delete", store, "--example", f"{writer}:{number}")
        processes = [bench.start("push", store, "--to", place) for store in stores]
        outcomes = [(p.communicate(timeout=300), p.returncode) for p in processes]
        winners = [i for i, (_, code) in enumerate(outcomes) if code == 0]
        n_one += len(winners) == 1
        n_told += sum("commits/" in out for (out, _), code in outcomes if code == 1)
        if len(winners) != 1:
            check(False, f"round {number}: {outcomes}")
            continue
        bench.run("pull", place, "--out", f"{work}/won{number}")
        wanted = ids != (np.uint64(winners[0]) << np.uint64(32)) + np.uint64(number)
        found = Store(f"{work}/won{number}").rows
        check(np.array_equal(found, rows[wanted].astype(np.float64)), f"round {number}: rows of the winner")
    check(n_one == ROUNDS and n_told == 2 * ROUNDS, f"{n_one} of {ROUNDS} rounds with one winner, {n_told} told")


def damage(bench, bucket):
    work, check = bench.work, bench.check
    rows, ids = bench.make(100, 16, 4)
    write_store(f"{work}/d", bench.spec_of(16), rows, ids, 50)
    place = f"{bench.place}/damaged"
    bench.run("push", f"{work}/d", "--to", place)
    for number, name in enumerate(sorted(bucket.names("damaged/"))):
        body = bucket.read(name)
        at = len(body) // 2
        bucket.write(name, body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :])
        refused = bench.run("pull", place, "--out", f"{work}/d-{number}", code=1)
        last = name.rsplit("/", 1)[1]
        check(last[:8] in refused.get("error", ""), f"the error names {last}: {refused}")
        bucket.write(name, body)
    shard = next(iter(bucket.names("damaged/shards/")))
    bucket.delete(shard)
    refused = bench.run("pull", place, "--out", f"{work}/d-gone", code=1)
    check(shard.rsplit("/", 1)[1] in refused.get("error", ""), f"a missing object is named: {refused}")


def azure_refusals(bench):
    other_key = KEY.replace("E", "F", 1)
    for place, env, word in [
        ("az://nowhere/x", {}, "ContainerNotFound"),
        ("az://rows/x", {"AZURE_STORAGE_ACCOUNT_KEY": other_key}, "403"),
        ("az://rows/x", {"AZURE_STORAGE_ACCOUNT_KEY": "not base 64"}, "AZURE_STORAGE_ACCOUNT_KEY"),
        ("az://rows/x", {"AZURE_STORAGE_ACCOUNT_KEY": ""}, "AZURE_STORAGE_SAS_TOKEN"),
        ("az://rows/x", {"AZURE_STORAGE_ENDPOINT": "http://storage.example"}, "AZURE_ALLOW_HTTP"),
        ("ftp://rows/x", {}, "az://"),
    ]:
        refused = bench.run("push", f"{bench.work}/base", "--to", place, code=1, env=env)
        text = json.dumps(refused)
        bench.check(word in text and KEY not in text and other_key not in text, f"{place} {env}: {refused}")


def google(ascribe, work, check, make, spec_of):
    """An emulator that knows no conditions: what it creates twice must hold no commit."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", "rows"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, server)
        env = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
        bench = Place(ascribe, work, "google, no conditions", "gs", env, check, make, spec_of)
        rows, ids = make(100, 16, 6)
        write_store(f"{bench.work}/gs", spec_of(16), rows, ids, 50)
        refused = bench.run("push", f"{bench.work}/gs", "--to", "gs://rows/stores", code=1)
        bench.check("ignores conditions" in refused.get("error", ""), f"a store without conditions is found out: {refused}")
        refused = bench.run("pull", "gs://rows/stores", "--out", f"{bench.work}/gs-back", code=1)
        bench.check("nothing was pushed" in refused.get("error", ""), f"nothing was committed: {refused}")
        refused = bench.run("push", f"{bench.work}/gs", "--to", "gs://rows/x", code=1, env={"STORAGE_EMULATOR_HOST": ""})
        bench.check("CLOUDSDK_AUTH_ACCESS_TOKEN" in refused.get("error", ""), f"no key: {refused}")
    finally:
        server.terminate()
        server.wait()


def google_testbench(command, ascribe, work, check, make, spec_of):
    """Google's own testbench (github.com/googleapis/storage-testbench), which knows conditions; it is on no package registry, so that
    `GOOGLE_TESTBENCH` names the python of an environment where it is installed."""
    port = free_port()
    serve = f"import testbench, werkzeug.serving; werkzeug.serving.run_simple('127.0.0.1', {port}, testbench.run(), threaded=True)"
    server = subprocess.Popen([command, "-c", serve], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        base = f"http://127.0.0.1:{port}"
        bench = Place(ascribe, work, "google", "gs", {"STORAGE_EMULATOR_HOST": base}, check, make, spec_of)
        everything(bench, Bucket(base))
        refused = bench.run("push", f"{bench.work}/base", "--to", "gs://nowhere/x", code=1)
        bench.check("gs://nowhere" in json.dumps(refused), f"a bucket that is not there: {refused}")
        env = {"STORAGE_EMULATOR_HOST": "http://storage.example"}
        refused = bench.run("push", f"{bench.work}/base", "--to", "gs://rows/x", code=1, env=env)
        bench.check("GS_ALLOW_HTTP" in json.dumps(refused), f"rows in the clear: {refused}")
    finally:
        server.terminate()
        server.wait()
