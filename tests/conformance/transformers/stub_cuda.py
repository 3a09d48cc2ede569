"""Makes PyTorch's GPU wheel importable on a machine without the NVIDIA libraries.

The wheel is linked against some four gigabytes of NVIDIA libraries that a CPU never calls. This builds, beside it, one
small library per missing name whose functions abort: the loader is content, and a call would be noticed at once.
Nothing is stubbed that is really there. Needs `readelf`, `nm` and a C compiler. Usage: stub_cuda.py SITE_PACKAGES
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

NVIDIA_LIBRARY = re.compile(r"lib(cu|nv|nccl)[^/]*\.so")
NVIDIA_SYMBOL = re.compile(r"_*(cu|nv|p?nccl)[A-Za-z]")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed(library: Path) -> list[str]:
    """Names of the libraries that `library` is linked against."""
    return re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-dW", str(library)))


def versions(library: Path) -> dict[str, str]:
    """Symbol version → library that must offer it, from the version-needs section."""
    found, file = {}, ""
    for line in run("readelf", "-VW", str(library)).splitlines():
        if match := re.search(r"Version: \d+\s+File: (\S+)", line):
            file = match[1]
        elif match := re.search(r"Name: (\S+)\s+Flags", line):
            found[match[1]] = file
    return found


def undefined(library: Path) -> list[tuple[str, str]]:
    """(symbol, version or "") that `library` needs from others; weak symbols may stay away."""
    symbols = []
    for line in run("nm", "-D", "--undefined-only", str(library)).splitlines():
        kind, name = line.split()[-2:]
        if kind == "U":
            symbol, _, version = name.partition("@")
            symbols.append((symbol, version.lstrip("@")))
    return symbols


def defined(library: Path) -> set[str]:
    lines = run("nm", "-D", "--defined-only", str(library)).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines}


def build(target: Path, plain: set[str], versioned: dict[str, set[str]]) -> None:
    """One shared library with a function per symbol; versioned symbols go to their version nodes."""
    names = plain.union(*versioned.values())
    source = "#include <stdlib.h>\n" + "".join(f"void {name}(void) {{ abort(); }}\n" for name in sorted(names))
    nodes = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(symbols))} }};\n"
        for version, symbols in sorted(versioned.items())
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stub.c").write_text(source)
        (Path(folder) / "stub.map").write_text(nodes)
        script = [f"-Wl,--version-script={folder}/stub.map"] if nodes else []
        soname = f"-Wl,-soname,{target.name}"
        run("cc", "-shared", "-fPIC", "-w", soname, *script, "-o", str(target), f"{folder}/stub.c")


def main(site_packages: Path) -> None:
    lib = site_packages / "torch" / "lib"
    libraries = sorted(path for path in lib.glob("lib*.so*") if not path.is_symlink())
    present = {path.name for path in lib.iterdir()} | {path.name for path in site_packages.glob("nvidia/**/lib*.so*")}
    missing = sorted({name for path in libraries for name in needed(path)} - present)
    missing = [name for name in missing if NVIDIA_LIBRARY.match(name)]
    if not missing:
        return

    offered = set().union(*(defined(path) for path in libraries))
    for path in site_packages.glob("nvidia/**/lib*.so*"):
        offered |= defined(path)
    plain: set[str] = set()
    versioned: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in libraries:
        owners = versions(path)
        for symbol, version in undefined(path):
            if owners.get(version) in missing:
                versioned[owners[version]][version].add(symbol)
            elif not version and symbol not in offered and NVIDIA_SYMBOL.match(symbol):
                plain.add(symbol)
    # An unversioned symbol is looked up in every loaded library, so one home for all of them is enough.
    for i, name in enumerate(missing):
        build(lib / name, plain if i == 0 else set(), versioned[name])
    print(f"stubs for {len(missing)} libraries: {', '.join(missing)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
