"""The driver of a build: which parts are left, who makes them, what is done when they are all there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import part as part_module

#: Times that a part is given to another task after its own died, if nothing is said.
RETRIES = 3
#: Name of the file beside the parts that says which are finished.
PROGRESS = "progress.json"


class BuildError(RuntimeError):
    """A build that cannot go on; it says what to do. Finished parts are kept: the same call goes on from them."""


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    #: The joined store, or the place of the parts if they were not to be joined.
    store: str
    #: Rows of all parts.
    rows: int
    #: Parts of the build.
    parts: int
    #: Parts that this call made; the others were there.
    parts_made: int
    #: Times that a part was begun again because its task, its process or its node died.
    retried: int
    #: Parts made by each node, by Ray's id of it.
    nodes: dict[str, int]
    #: Wall seconds of this call.
    seconds: float


@dataclasses.dataclass
class _Parts:
    """Where parts lie and which are finished."""

    folder: pathlib.Path
    url: str | None
    scratch: str
    n: int
    digest: str
    done: dict[int, int]

    def name(self, i: int) -> str:
        return f"part-{i:05}-of-{self.n:05}"

    def store(self, i: int) -> str:
        """The folder that part ``i`` is made in, on whatever node."""
        below = pathlib.Path(self.scratch) / self.digest[:16] if self.url else self.folder
        return str(below / self.name(i))

    def push_to(self, i: int) -> str | None:
        return f"{self.url}/{self.name(i)}" if self.url else None

    def finish(self, i: int, rows: int) -> None:
        self.done[i] = rows
        text = json.dumps({"build": self.digest, "parts": {str(i): self.done[i] for i in sorted(self.done)}})
        draft = self.folder / f"{PROGRESS}.tmp"
        draft.write_text(text + "\n")
        draft.replace(self.folder / PROGRESS)


def _open_parts(out: pathlib.Path, parts_at: str | None, scratch: str, n: int, digest: str) -> _Parts:
    """The parts of this build, those of another one refused."""
    url = parts_at.rstrip("/") if parts_at and "://" in parts_at else None
    folder = pathlib.Path(parts_at) if parts_at and not url else out.with_name(out.name + ".parts")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    parts = _Parts(folder, url, scratch, n, digest, {})
    try:
        noted = json.loads((folder / PROGRESS).read_text())
    except FileNotFoundError:
        # Written at once: the folder is this build's from now on.
        parts.done = {}
        (folder / PROGRESS).write_text(json.dumps({"build": digest, "parts": {}}) + "\n")
        return parts
    if noted["build"] != digest:
        found = (
            f"{folder}: expected the parts of this build, found those of another one (other records, model, arguments or parts)"
        )
        raise BuildError(f"{found}; hint: name another --parts-at, or delete the folder")
    # A part in a folder counts while the store says so itself.
    is_there = {i: parts.url or (folder / parts.name(i) / "CURRENT").exists() for i in range(n)}
    parts.done = {int(i): rows for i, rows in noted["parts"].items() if is_there[int(i)]}
    return parts


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _make(
    parts: _Parts, jobs: Mapping[int, dict[str, Any]], options: Mapping[str, Any], retries: int
) -> tuple[int, dict[str, int]]:
    """Runs the jobs; returns how often one was begun again, and parts by node."""
    import ray

    # Nodes have the command; this module goes to them with the task.
    ray.cloudpickle.register_pickle_by_value(part_module)

    def run(job: dict[str, Any]) -> dict[str, Any]:
        context = ray.get_runtime_context()
        return {**part_module.run_part(job), "node": context.get_node_id()}

    # A worker or a node that dies is seen here, not by Ray's own retries: so it is counted, told, and bounded once.
    task = ray.remote(run).options(max_retries=0, **options)
    attempts = dict.fromkeys(jobs, 1)
    waiting = {task.remote(job): i for i, job in jobs.items()}
    nodes: dict[str, int] = {}
    try:
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            i = waiting.pop(ready)
            try:
                said = ray.get(ready)
                why = said["said"]
            except ray.exceptions.RayError as error:
                said, why = {"state": "died"}, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if said["state"] == "done":
                parts.finish(i, int(why["examples"]))
                nodes[said["node"]] = nodes.get(said["node"], 0) + 1
                _talk(f"part {i} of {parts.n}: {why['examples']} rows, {said['seconds']:.1f} s on {said['host']}")
            elif said["state"] == "refused":
                raise BuildError(f"part {i} of {parts.n}: {why}")
            elif attempts[i] > retries:
                raise BuildError(
                    f"part {i} of {parts.n} died {attempts[i]} times, in the end: {why}; hint: the same call goes on"
                )
            else:
                attempts[i] += 1
                _talk(f"part {i} of {parts.n} is begun again: {why}")
                waiting[task.remote(jobs[i])] = i
    finally:
        for left in waiting:
            ray.cancel(left, force=True)
    return sum(attempts.values()) - len(attempts), nodes


def _run(command: list[str]) -> Any:
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise BuildError(f"{' '.join(command[:6])} …: {(process.stdout.strip() or process.stderr.strip())}")
    return json.loads(process.stdout)


def _join(parts: _Parts, out: pathlib.Path, ascribe: str) -> None:
    head = [ascribe, "--quiet", "--format", "json", "store"]
    stores = [str(parts.folder / parts.name(i)) for i in range(parts.n)]
    if parts.url:
        for i, store in enumerate(stores):
            _run([*head, "pull", f"{parts.url}/{parts.name(i)}", "--out", store])
    _run([*head, "merge", *stores, "--out", str(out)])


def build(
    *,
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    parts: int,
    arguments: Sequence[str] = (),
    parts_at: str | None = None,
    scratch: str | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    resources: Mapping[str, float] | None = None,
    threads: int | None = None,
    retries: int = RETRIES,
    address: str | None = None,
    ascribe: str = "ascribe",
    join: bool = True,
    keep_parts: bool = False,
) -> BuildReport:
    """Builds the feature store of ``data`` under ``model`` on a Ray cluster.

    ``model`` and ``data`` are read by every node: paths that all see (``data`` may be ``s3://BUCKET/FILE``). ``arguments`` go to
    ``ascribe features`` as they are (``--device cuda``, ``--projection 32x32`` …). A task asks Ray for ``num_cpus``, ``num_gpus``
    and ``resources``; it runs ``threads`` threads (the whole number of its cores if not said) on the GPUs that Ray gives it.

    ``parts_at`` is a folder that every node sees (default: ``OUT.parts``) or ``s3://BUCKET/PREFIX``; then nodes work in
    ``scratch`` and send what is finished there. The driver joins the parts (``ascribe store merge``): the bytes depend on the
    records and the arguments, not on ``parts``, nodes, retries or interruptions.

    Raises :class:`BuildError` for a part that is refused (named, never tried again), one that died more than ``retries`` times,
    and parts of another build. Finished parts stay: the same call goes on.
    """
    import ray

    if parts < 1:
        raise ValueError(f"parts: expected 1 or more, found {parts}")
    began = time.monotonic()
    target = pathlib.Path(out).absolute()
    shown = [str(text) for text in arguments]
    model_at, data_at = (str(at) if "://" in str(at) else str(pathlib.Path(at).absolute()) for at in (model, data))
    digest = _digest({"model": model_at, "data": data_at, "parts": parts, "arguments": shown})
    kept = _open_parts(target, parts_at, scratch or "/tmp/ascribe-ray", parts, digest)
    command = shutil.which(ascribe) or ascribe
    jobs: dict[int, dict[str, Any]] = {}
    for i in range(parts):
        if i not in kept.done:
            jobs[i] = {
                "part": i,
                "parts": parts,
                "ascribe": command,
                "model": model_at,
                "data": data_at,
                "arguments": shown,
                "threads": threads or max(1, int(num_cpus)),
                "store": kept.store(i),
                "push_to": kept.push_to(i),
            }
    retried = 0
    nodes: dict[str, int] = {}
    if jobs:
        is_ours = not ray.is_initialized()
        if is_ours:
            ray.init(address=address, log_to_driver=False)
        options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "resources": dict(resources or {})}
        try:
            retried, nodes = _make(kept, jobs, options, retries)
        finally:
            if is_ours:
                ray.shutdown()
    if join:
        _join(kept, target, command)
        if not keep_parts:
            shutil.rmtree(kept.folder)
    where = str(target) if join else (kept.url or str(kept.folder))
    return BuildReport(where, sum(kept.done.values()), parts, len(jobs), retried, nodes, time.monotonic() - began)
