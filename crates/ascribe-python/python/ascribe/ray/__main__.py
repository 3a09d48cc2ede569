"""``python -m ascribe.ray build``: see :func:`ascribe.ray.build`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys

from .build import RETRIES, BuildError, build

EXAMPLE = """example:
  python -m ascribe.ray build --address auto --model MODEL --data records.jsonl --out store --parts 64 --num-gpus 1 \\
    -- --device cuda"""


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    return name, float(amount or 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ascribe.ray", description="Ascribe on a Ray cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser(
        "build",
        help="a feature store, one part of its rows a task",
        description="Builds a feature store on a Ray cluster. The bytes are those of one machine. Run it again to go on.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--model", required=True, metavar="DIR", help="model folder, seen by every node")
    add("--data", required=True, metavar="FILE", help="JSONL records, seen by every node, or s3://BUCKET/FILE")
    add("--out", required=True, metavar="DIR", help="the joined store")
    add(
        "--parts",
        required=True,
        type=int,
        metavar="N",
        help="parts: a few for each place that works, each at most the rows of a node's disk",
    )
    add("--parts-at", metavar="PLACE", help="folder that every node sees, or s3://BUCKET/PREFIX (default: OUT.parts)")
    add("--scratch", metavar="DIR", help="with s3: folder of each node for the part it works on (default: /tmp/ascribe-ray)")
    add("--address", metavar="ADDRESS", help="of the cluster; auto finds a running one (default: RAY_ADDRESS, else a local one)")
    add("--num-cpus", type=float, default=1.0, metavar="X", help="cores of a task (default: 1)")
    add("--num-gpus", type=float, default=0.0, metavar="X", help="GPUs of a task (default: 0); say `-- --device cuda` too")
    add("--resource", type=_resource, action="append", default=[], metavar="NAME=X", help="another resource of a task")
    add("--threads", type=int, metavar="N", help="threads of a task (default: its cores)")
    add(
        "--retries",
        type=int,
        default=RETRIES,
        metavar="N",
        help=f"times that a part that died is begun again (default: {RETRIES})",
    )
    add("--ascribe", default="ascribe", metavar="FILE", help="the command on every node (default: ascribe)")
    add("--no-join", action="store_true", help="leave the parts as they are")
    add("--keep-parts", action="store_true", help="keep the parts after they are joined")
    add("arguments", nargs="*", metavar="-- ARGUMENTS", help="for `ascribe features`, as they are")
    return parser


def main() -> int:
    """Runs the command; returns the exit code: 0 done, 1 refused."""
    args = _parser().parse_args()
    # Stdout is the answer's alone: what Ray and its workers print there goes to stderr.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        report = build(
            model=args.model,
            data=args.data,
            out=args.out,
            parts=args.parts,
            arguments=args.arguments,
            parts_at=args.parts_at,
            scratch=args.scratch,
            num_cpus=args.num_cpus,
            num_gpus=args.num_gpus,
            resources=dict(args.resource),
            threads=args.threads,
            retries=args.retries,
            address=args.address,
            ascribe=args.ascribe,
            join=not args.no_join,
            keep_parts=args.keep_parts,
        )
    except (BuildError, ValueError) as error:
        print(json.dumps({"error": str(error)}), file=answer, flush=True)
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(dataclasses.asdict(report)), file=answer, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
