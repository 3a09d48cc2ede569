"""One part of a build, as a task runs it on whatever node. Travels to the nodes by value: standard library only."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
from typing import Any

#: Seconds that a part waits for the process of a task before it, which dies with its worker, to let go of the store.
LOCK_SECONDS = 60.0
#: What is shown of a command's words.
SAID_CHARS = 2000
#: Linux: a signal for this process when its parent's thread ends.
PR_SET_PDEATHSIG = 1


def _end_with_the_worker() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_lock(store: pathlib.Path) -> None:
    """Until nobody writes to the store any more; the writer itself takes the lock anew."""
    end = time.monotonic() + LOCK_SECONDS
    try:
        handle = (store / "writer.lock").open("rb")
    except FileNotFoundError:
        return
    with handle:
        while time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.2)


def _ask(command: list[str]) -> tuple[str, Any]:
    """``done`` with what it printed, ``refused`` with its reason (it would refuse again), or ``died``."""
    process = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=_end_with_the_worker)
    said = (process.stdout.strip() or process.stderr.strip())[-SAID_CHARS:]
    if process.returncode == 0:
        return "done", json.loads(process.stdout)
    if process.returncode == 1:
        try:
            return "refused", json.loads(process.stdout)["error"]
        except (ValueError, KeyError, TypeError):
            return "refused", said
    return "died", f"{command[0]} ended with {process.returncode}: {said}"


def run_part(job: dict[str, Any]) -> dict[str, Any]:
    """Makes a part, or what is left of it; then sends it where parts are kept, if that is an object store."""
    store = pathlib.Path(job["store"])
    store.parent.mkdir(parents=True, exist_ok=True)
    _wait_for_lock(store)
    head = [job["ascribe"], "--quiet", "--format", "json"]
    if job["threads"]:
        head += ["--threads", str(job["threads"])]
    shard = f"{job['part']}/{job['parts']}"
    features = [
        "features",
        "--model",
        job["model"],
        "--data",
        job["data"],
        "--out",
        str(store),
        "--shard",
        shard,
        *job["arguments"],
    ]
    began = time.monotonic()
    state, said = _ask([*head, *features])
    if state == "done" and job["push_to"]:
        pushed, why = _ask([*head, "store", "push", str(store), "--to", job["push_to"]])
        if pushed != "done":
            state, said = pushed, why
    return {
        "part": job["part"],
        "state": state,
        "said": said,
        "seconds": time.monotonic() - began,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }
