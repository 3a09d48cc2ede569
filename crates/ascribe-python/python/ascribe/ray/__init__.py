"""Feature stores built on a Ray cluster: one part of the rows a task, with GPUs, retries and resume; the bytes of one machine.

``python -m ascribe.ray build --model DIR --data FILE --out STORE --parts 64`` is the command, :func:`build` the function. A part
is what ``ascribe features --shard i/n`` makes: a store of its own that resumes and that knows all records, so what is joined in
the end does not depend on the number of parts, on where they were made, or on what died meanwhile. Nodes need the ``ascribe``
command and nothing of this package.
"""

from .build import BuildError, BuildReport, build

__all__ = ["BuildError", "BuildReport", "build"]
