"""The registry's contract, as somebody who has only the command line meets it: corpora of several formats, licences, exports, forged
signatures, rewritten logs, and the guided way in at a real terminal. Arguments: a folder to work in."""

import gzip
import json
import os
import pathlib
import pty
import select
import subprocess
import sys
import time

import mlcroissant

work = pathlib.Path(sys.argv[1])
ascribe = os.environ["ASCRIBE"]
PAYEE = "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
failed = 0


def check(name, holds, said=""):
    global failed
    print(f"ok {name}" if holds else f"FAILED {name} ({' '.join(said.split())[-300:]})", flush=True)
    failed += not holds


def run(*arguments):
    return subprocess.run([ascribe, *map(str, arguments)], cwd=work, capture_output=True, text=True, timeout=300)


def accepts(name, *arguments):
    done = run(*arguments)
    check(name, done.returncode == 0, done.stderr)
    return done


def refuses(name, why, *arguments):
    done = run(*arguments)
    check(name, done.returncode == 1 and why in done.stderr, done.stderr or done.stdout or "accepted")


# --- corpora that nobody has seen before
words = "river stone lantern copper meadow thread harbour winter signal orchard granite violet".split()
texts = [" ".join(words[(i * 7 + k * k) % len(words)] + str((i * k) % 23) for k in range(40)) for i in range(60)]
(work / "stories/deep").mkdir(parents=True)
for i in range(10):
    folder = work / "stories" / ("deep" if i % 2 else ".")
    (folder / f"story-{i}.txt").write_text(texts[i] + "\n")
(work / "stories/LICENSE").write_text("All of it under CC BY.\n")
(work / "table.csv").write_text("url,body\n" + "".join(f'u{i},"{texts[20 + i]}, quoted ""twice"""\n' for i in range(10)))
lines = [json.dumps({"id": f"j/{i}", "text": texts[40 + i], "extra": i}) for i in range(10)]
(work / "lines.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
# A near copy of a story, and an exact one.
copied = [texts[0] + " and a new end", texts[1]]
(work / "copies.jsonl").write_text("".join(json.dumps({"id": f"c/{i}", "text": text}) + "\n" for i, text in enumerate(copied)))

phrase = work / "contract.phrase"
phrase.write_text("a phrase of many words\n")
key = ("--keystore", "contract.key", "--passphrase-file", phrase)
accepts("a key", "licence", "new-key", "--out", "contract.key", "--passphrase-file", phrase)
accepts("registry init", "registry", "init", "reg", "--chain-id", 5)
reg = ("--dir", "reg")
refuses("no second registry in one folder", "one that is", "registry", "init", "reg")
accepts("a folder of texts", "registry", "add", "stories", "--licence", "cc-by-4.0", "--payee", PAYEE, *reg)
accepts(
    *("a CSV with columns of its own", "registry", "add", "table.csv", "--licence", "MIT/Apache-2.0", "--payee", PAYEE),
    *("--text-field", "body", "--id-field", "url", *reg),
)
accepts("a compressed JSONL", "registry", "add", "lines.jsonl.gz", "--licence", "CC0-1.0", "--payee", PAYEE, *reg)
refuses("no licence that is none", "SPDX", "registry", "add", "copies.jsonl", "--licence", "free", "--payee", PAYEE, *reg)
refuses("no account that is none", "CAIP-10", "registry", "add", "copies.jsonl", "--licence", "MIT", "--payee", "0x12", *reg)
refuses(
    *("no shares that do not sum", "999999", "registry", "add", "copies.jsonl", "--licence", "MIT"),
    *("--payee", f"{PAYEE}=599999", "--payee", "eip155:1:0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf=400000", *reg),
)
refuses(
    *("no second claim to the same content", "the content of", "registry", "add", "lines.jsonl.gz", "--name", "mine"),
    *("--licence", "MIT", "--payee", PAYEE, "--owner", "Mallory", *reg),
)
accepts("copies", "registry", "add", "copies.jsonl", "--licence", "MIT", "--payee", PAYEE, *reg)
listed = json.loads(accepts("registry list", "registry", "list", *reg, "--format", "json").stdout)
terms = {d["name"]: (d["licence_spdx"], d["record_count"]) for d in listed["datasets"]}
expected = {"copies": ("MIT", 2), "lines": ("CC0-1.0", 10), "stories": ("CC-BY-4.0", 10), "table": ("MIT OR Apache-2.0", 10)}
check("terms in one spelling, records counted", terms == expected, str(terms))

# --- exports, before and after the signature
accepts("Croissant of an unlicensed dataset", "registry", "export", "--format", "croissant", "table", "--out", "t.json", *reg)
unsigned = json.loads((work / "t.json").read_text())
check("it offers nothing and says so", "usageInfo" not in unsigned and unsigned["ascribe:licenceState"] == "unsigned")
command = [pathlib.Path(sys.executable).with_name("mlcroissant"), "validate", "--jsonld", work / "t.json"]
done = subprocess.run(command, capture_output=True, text=True)
said = done.stdout + done.stderr
check("mlcroissant validates it without a warning", done.returncode == 0 and "WARNING" not in said.upper(), said)
read = [{k.split("/")[-1]: v.decode() for k, v in r.items()} for r in mlcroissant.Dataset(jsonld=work / "t.json").records("records")]
check("mlcroissant reads its records", [r["id"] for r in read] == [f"u{i}" for i in range(10)] and '"twice"' in read[0]["text"])
refuses("RSL of an unlicensed dataset", "signed licence", "registry", "export", "--format", "rsl", "table", "--out", "t.xml", *reg)
refuses("no export of what is not there", "nothing", "registry", "export", "--format", "croissant", "nothing", "--out", "n.json", *reg)
for name in ("stories", "table", "lines", "copies"):
    accepts(f"licence sign {name}", "licence", "sign", name, *key, *reg)
    accepts(f"licence verify {name}", "licence", "verify", name, *reg)
for name, kind in [("stories", "croissant"), ("table", "rsl"), ("lines", "ai-act"), ("lines", "croissant")]:
    accepts(f"{kind} of {name}", "registry", "export", "--format", kind, name, "--out", f"{name}.{kind}.out", *reg)
offer = json.loads((work / "lines.croissant.out").read_text())["usageInfo"]
check("a licensed dataset is offered", offer["@type"] == "odrl:Offer" and offer["ascribe:logIndex"] == "2")
accepts("registry verify", "registry", "verify", "reg")
accepts("log verify of the registry", "log", "verify", "reg")

# --- duplicates
found = json.loads(accepts("registry duplicates", "registry", "duplicates", *reg, "--format", "json").stdout)
pairs = {tuple(sorted(f"{m['dataset']}/{m['id']}" for m in c["members"])) for c in found["clusters"] if c["across_datasets"]}
near = {p for p in pairs if any(m.startswith("copies/c/") for m in p)}
check("the planted copies are found, and nothing else", len(near) == 2 and len(pairs) == 2, str(pairs))
first = [c["members"][0]["dataset"] for c in found["clusters"] if c["across_datasets"]]
check("the earliest licence comes first", first == ["stories", "stories"], str(first))

# --- forged signatures
folder = work / "reg/lines"
honest = (folder / "licence.json").read_text()
licence = json.loads(honest)


def forged(name, why, change):
    bad = json.loads(honest)
    change(bad)
    path = work / "forged.json"
    path.write_text(json.dumps(bad, indent=2) + "\n")
    refuses(f"licence verify: {name}", why, "licence", "verify", "forged.json", *reg)
    refuses(f"licence submit: {name}", why, "licence", "submit", "--file", "forged.json", *reg)
    (folder / "licence.json").write_text(json.dumps(bad, indent=2) + "\n")
    refuses(f"registry verify: {name}", "licence.json", "registry", "verify", "reg")
    (folder / "licence.json").write_text(honest)


def high_s(bad):
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    raw = bytes.fromhex(bad["signature"][2:])
    twin = (order - int.from_bytes(raw[32:64])).to_bytes(32)
    bad["signature"] = "0x" + (raw[:32] + twin + bytes([55 - raw[64]])).hex()


forged("a high-s twin", "high-s twin", high_s)
forged("another v", "found v = 0", lambda bad: bad.update(signature=bad["signature"][:-2] + "00"))
forged("a changed byte", "signature", lambda bad: bad.update(signature="0x00" + bad["signature"][4:]))
forged("longer validity", "digest", lambda bad: bad["message"].update(validUntil="99999999999"))
forged("another chain", "domain", lambda bad: bad["domain"].update(chainId=6))
forged("another payee", "expected", lambda bad: bad["message"]["payees"][0].update(account="eip155:1:0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf"))
refuses("the same licence again", "registered before", "licence", "submit", "--file", "reg/lines/licence.json", *reg)
accepts("registry verify, as it was", "registry", "verify", "reg")

# --- revocation
accepts("licence revoke", "licence", "revoke", "table", *key, "--reason", "sold", *reg)
refuses("a revoked licence", "revoked", "licence", "verify", "table", *reg)
refuses("revoked again", "not revoked yet", "licence", "revoke", "table", *key, *reg)
refuses("the revoked licence again", "registered before", "licence", "submit", "--file", "reg/table/licence.json", *reg)
accepts("log verify after it", "log", "verify", "reg")

# --- a run of somebody else's trainer
(work / "weights").mkdir()
(work / "weights/model.bin").write_bytes(bytes(range(256)))
(work / "weights/config.json").write_text("{}")
now = int(time.time()) + 1


def record(*names):
    (work / "used.json").write_text(json.dumps([{"dataset": name} for name in names]))
    return ("run", "record", "--model-dir", "weights", "--datasets", "used.json", "--registered", "reg", "--trainer", "by hand",
            "--started", now, "--finished", now + 9, "--steps", 3)


refuses("run record of a revoked dataset", "revoked", *record("stories", "table"))
refuses("run record of an unknown dataset", "missing", *record("stories", "elsewhere"))
accepts("run record", *record("stories", "lines"))
accepts("run verify", "run", "verify", "weights", "--registered", "reg")
indices = {d["name"]: d["annotations"]["logIndex"] for d in json.loads((work / "weights/run.json").read_text())
           ["predicate"]["buildDefinition"]["resolvedDependencies"] if "annotations" in d and "logIndex" in d["annotations"]}
check("its log indices are the log's", indices == {"stories": 0, "lines": 2} or indices == {"stories": "0", "lines": "2"}, str(indices))
(work / "weights/model.bin").write_bytes(bytes(range(1, 256)))
refuses("a changed model", "model.bin", "run", "verify", "weights", "--registered", "reg")
(work / "weights/model.bin").write_bytes(bytes(range(256)))

# --- rewritten logs and records
log = work / "reg/licences.log"
text = log.read_text()
entries = text.splitlines(keepends=True)
for name, changed in [
    ("truncated", "".join(entries[:-1])),
    ("reordered", "".join(reversed(entries))),
    ("extended", text + "0x" + "ab" * 32 + "\n"),
    ("with a changed digest", text.replace(entries[1][2:4], "00" if entries[1][2:4] != "00" else "11", 1)),
]:
    log.write_text(changed)
    refuses(f"log verify, {name}", "", "log", "verify", "reg")
    refuses(f"registry verify, {name}", "", "registry", "verify", "reg")
    log.write_text(text)
for name, path, change in [
    ("an entry", "licences.tlog/tile/entries/000.p/5", lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:]),
    ("a hash", "licences.tlog/tile/0/000.p/5", lambda b: bytes([b[0] ^ 1]) + b[1:]),
    ("the checkpoint", "licences.tlog/checkpoint", lambda b: b.replace(b"\n5\n", b"\n4\n", 1)),
]:
    path = work / "reg" / path
    before = path.read_bytes()
    path.write_bytes(change(before))
    refuses(f"log verify, {name} changed", "", "log", "verify", "reg")
    path.write_bytes(before)
records = work / "reg/stories/records.jsonl"
before = records.read_text()
records.write_text(before.replace("river", "rider", 1))
refuses("a changed record", "content_root", "registry", "verify", "reg")
records.write_text(before)
accepts("registry verify, at the end", "registry", "verify", "reg")
accepts("log verify, at the end", "log", "verify", "reg")


# --- the guided way in, at a real terminal
def at_a_terminal(arguments, answers):
    """Types each answer after its question; returns the exit code and everything that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(work)
        os.execv(ascribe, [ascribe, *map(str, arguments)])
    shown, seen, until = b"", 0, time.time() + 60
    answers = list(answers)
    while time.time() < until:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:
                break
            if not data:
                break
            shown += data
        if answers and answers[0][0].encode() in shown[seen:]:
            question, answer = answers.pop(0)
            seen = len(shown)
            os.write(terminal, answer.encode() + b"\n")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors="replace")


(work / "My Poems").mkdir()
(work / "My Poems/one.txt").write_text("The first of my poems, which nobody else has written.\n")
(work / "My Poems/two.txt").write_text("The second of my poems, which nobody else has written either.\n")
code, shown = at_a_terminal(
    ("registry", "add", "My Poems", *reg),
    [
        ("Name of the dataset", ""),
        ("Licence, as an SPDX", "whatever"),
        ("Licence, as an SPDX", "cc-by-4.0"),
        ("Account that is paid", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"),
        ("Account that is paid", PAYEE),
        ("Owner, for people", "Ann"),
    ],
)
check("registry add asks at a terminal, and asks again", code == 0 and "my-poems registered: version 1, 2 records" in shown, shown)
check("it says what was wrong with an answer", "expected an SPDX licence expression" in shown and "expected" in shown, shown)
refuses("elsewhere it does not ask", "--licence", "registry", "add", "copies.jsonl", "--name", "other", *reg)
sys.exit(failed != 0)
