#!/usr/bin/env python3
"""Real text from folders of this machine as one JSONL of records: one file, one record.

    collect.py OUT.jsonl --bytes N DIR ...

Takes source code and documents (.rs .md .txt .c .h .py .js .html .rst) below the folders in sorted order until N bytes of
text are together; files over 1 MiB, unreadable ones and other encodings than UTF-8 are left out.
"""

import argparse
import json
import pathlib
import sys

ENDINGS = {".rs", ".md", ".txt", ".c", ".h", ".py", ".js", ".html", ".rst"}
MAX_BYTES = 1 << 20


def texts(folders):
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.suffix not in ENDINGS or not path.is_file() or path.stat().st_size > MAX_BYTES:
                continue
            try:
                yield str(path.relative_to(folder)), path.read_bytes().decode("utf-8")
            except (OSError, UnicodeDecodeError):
                continue


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("folders", nargs="+")
    arguments = parser.parse_args()
    total = records = 0
    with open(arguments.out, "w", encoding="utf-8") as out:
        for name, text in texts(arguments.folders):
            if not text.strip():
                continue
            json.dump({"id": name[-250:], "text": text}, out, ensure_ascii=False)
            out.write("\n")
            total += len(text.encode())
            records += 1
            if total >= arguments.bytes:
                break
    print(f"{records} records, {total} bytes of text", file=sys.stderr)


if __name__ == "__main__":
    main()
