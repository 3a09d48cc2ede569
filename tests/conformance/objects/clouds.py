"""The same on Azure's blobs (Azurite, Microsoft's own server), and what can be tried of Google's store. See README.md."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

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

    def __init__(self, ascribe, work, env, check, make, spec_of):
        self.ascribe, self.work, self.check, self.make, self.spec_of = ascribe, work, check, make, spec_of
        self.env = {**os.environ, **env}

    def start(self, *args, env=None):
        command = [self.ascribe, "--quiet", "--format", "json", "store", *map(str, args)]
        env = {**self.env, **(env or {})}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def run(self, *args, code=0, env=None):
        process = self.start(*args, env=env)
        out, err = process.communicate(timeout=300)
        self.check(process.returncode == code, f"{args}: exit {process.returncode}: {out} {err}")
        return json.loads(out) if out.strip() else {}


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
        bench = Place(ascribe, work, env, check, make, spec_of)
        blobs = client.get_container_client("rows")
        azure_there_and_back(bench, blobs)
        azure_races(bench)
        azure_damage(bench, blobs)
        azure_refusals(bench)
    finally:
        server.terminate()
        server.wait()


def azure_there_and_back(bench, blobs):
    work, place, check = bench.work, "az://rows/a b/stores", bench.check
    rows, ids = bench.make(400, 48, 1)
    write_store(f"{work}/az", bench.spec_of(48), rows, ids, 64)
    first = bench.run("push", f"{work}/az", "--to", place)
    check((first.get("commit"), first.get("n_rows")) == (0, 400), f"azure: first commit: {first}")
    names = {blob.name.removeprefix("a b/stores/") for blob in blobs.list_blobs()}
    check({"store.json", "CURRENT", "commits/000000.json"} <= names, f"azure: objects {sorted(names)}")
    # An outsider's client reads what is there, and cannot create a commit a second time either.
    body = blobs.download_blob("a b/stores/commits/000000.json").readall()
    check(json.loads(body)["number"] == 0, "azure: Microsoft's client reads the commit")
    try:
        blobs.upload_blob("a b/stores/commits/000000.json", b"other")
        check(False, "azure: a commit was created twice")
    except ResourceExistsError:
        check(True, "azure: a commit is created once")
    check(bench.run("push", f"{work}/az", "--to", place).get("commit") == 0, "azure: pushed again: nothing to do")
    bench.run("pull", place, "--out", f"{work}/az-back")
    back = Store(f"{work}/az-back")
    check(np.array_equal(back.rows, rows.astype(np.float64)) and np.array_equal(back.ids, ids), "azure: rows come back")
    bench.run("relicense", f"{work}/az-back", "--dataset", "2", "--owner", "Moss & Söhne", "--licence", "MIT")
    bench.run("delete", f"{work}/az-back", "--dataset", "1")
    second = bench.run("push", f"{work}/az-back", "--to", place)
    check(second.get("commit") == 1, f"azure: second commit: {second}")
    bench.run("pull", place, "--out", f"{work}/az-later")
    bench.run("verify", f"{work}/az-later")
    later = Store(f"{work}/az-later")
    check(np.array_equal(later.rows, rows[(ids >> np.uint64(32)) != 1].astype(np.float64)), "azure: the deletion comes back")
    sums = bench.run("sums", f"{work}/az-later")
    check([o["owner"] for o in sums["owners"]] == ["Moss & Söhne"], f"azure: the owner comes back: {sums}")
    bench.run("delete", f"{work}/az", "--dataset", "2")
    refused = bench.run("push", f"{work}/az", "--to", place, code=1)
    check("commits/000001" in refused.get("error", ""), f"azure: the conflict is named: {refused}")


def azure_races(bench):
    work, check = bench.work, bench.check
    rows, ids = bench.make(300, 32, 2)
    write_store(f"{work}/az-base", bench.spec_of(32), rows, ids, 32)
    n_one, n_told = 0, 0
    for number in range(ROUNDS):
        place = f"az://rows/race{number}"
        bench.run("push", f"{work}/az-base", "--to", place)
        stores = [f"{work}/az-race{number}-{writer}" for writer in range(3)]
        for writer, store in enumerate(stores):
            shutil.copytree(f"{work}/az-base", store)
            bench.run("delete", store, "--example", f"{writer}:{number}")
        processes = [bench.start("push", store, "--to", place) for store in stores]
        outcomes = [(p.communicate(timeout=300), p.returncode) for p in processes]
        winners = [i for i, (_, code) in enumerate(outcomes) if code == 0]
        n_one += len(winners) == 1
        n_told += sum("commits/" in out for (out, _), code in outcomes if code == 1)
        if len(winners) != 1:
            check(False, f"azure: round {number}: {outcomes}")
            continue
        bench.run("pull", place, "--out", f"{work}/az-won{number}")
        wanted = ids != (np.uint64(winners[0]) << np.uint64(32)) + np.uint64(number)
        found = Store(f"{work}/az-won{number}").rows
        check(np.array_equal(found, rows[wanted].astype(np.float64)), f"azure: round {number}: rows of the winner")
    check(n_one == ROUNDS and n_told == 2 * ROUNDS, f"azure: {n_one} of {ROUNDS} rounds with one winner, {n_told} told")


def azure_damage(bench, blobs):
    work, check = bench.work, bench.check
    rows, ids = bench.make(100, 16, 4)
    write_store(f"{work}/az-d", bench.spec_of(16), rows, ids, 50)
    bench.run("push", f"{work}/az-d", "--to", "az://rows/damaged")
    for number, blob in enumerate(sorted(b.name for b in blobs.list_blobs(name_starts_with="damaged/"))):
        body = blobs.download_blob(blob).readall()
        at = len(body) // 2
        blobs.upload_blob(blob, body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :], overwrite=True)
        refused = bench.run("pull", "az://rows/damaged", "--out", f"{work}/az-d-{number}", code=1)
        name = blob.rsplit("/", 1)[1]
        check(name[:8] in refused.get("error", ""), f"azure: the error names {name}: {refused}")
        blobs.upload_blob(blob, body, overwrite=True)
    shard = next(b.name for b in blobs.list_blobs(name_starts_with="damaged/shards/"))
    blobs.delete_blob(shard)
    refused = bench.run("pull", "az://rows/damaged", "--out", f"{work}/az-d-gone", code=1)
    check(shard.rsplit("/", 1)[1] in refused.get("error", ""), f"azure: a missing object is named: {refused}")


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
        refused = bench.run("push", f"{bench.work}/az-base", "--to", place, code=1, env=env)
        text = json.dumps(refused)
        bench.check(word in text and KEY not in text and other_key not in text, f"azure: {place} {env}: {refused}")
    refused = bench.run("pull", "az://rows/empty", "--out", f"{bench.work}/az-none", code=1)
    bench.check("nothing was pushed" in refused.get("error", ""), f"azure: an empty place: {refused}")


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
        bench = Place(ascribe, work, {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}, check, make, spec_of)
        rows, ids = make(100, 16, 6)
        write_store(f"{work}/gs", spec_of(16), rows, ids, 50)
        refused = bench.run("push", f"{work}/gs", "--to", "gs://rows/stores", code=1)
        check("ignores conditions" in refused.get("error", ""), f"google: a store without conditions is found out: {refused}")
        refused = bench.run("pull", "gs://rows/stores", "--out", f"{work}/gs-back", code=1)
        check("nothing was pushed" in refused.get("error", ""), f"google: nothing was committed: {refused}")
        refused = bench.run("push", f"{work}/gs", "--to", "gs://rows/x", code=1, env={"STORAGE_EMULATOR_HOST": ""})
        check("CLOUDSDK_AUTH_ACCESS_TOKEN" in refused.get("error", ""), f"google: no key: {refused}")
    finally:
        server.terminate()
        server.wait()
