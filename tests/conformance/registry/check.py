"""mlcroissant, eth-account and an XML parser against the registry. Arguments: the repository, the folder of check.mjs."""

import json
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as xml

import mlcroissant
from eth_account import Account
from eth_account.messages import encode_typed_data

root, work = map(pathlib.Path, sys.argv[1:])
failed = 0


def check(name, holds):
    global failed
    print("ok" if holds else "FAILED", name, flush=True)
    failed += not holds


def validates(path):
    command = [pathlib.Path(sys.executable).with_name("mlcroissant"), "validate", "--jsonld", path]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


for name, source in [("kjv", "kjv-bible"), ("jargon", "jargon-file")]:
    path = work / f"{name}.croissant"
    jsonld = work / f"{name}.json"
    jsonld.write_text(path.read_text())
    passed, said = validates(jsonld)
    check(f"{name}: mlcroissant validate passes", passed)
    check(f"{name}: without a warning", "WARNING" not in said.upper())
    if not passed or "WARNING" in said.upper():
        print(said)
    records = [
        {key.split("/")[-1]: value.decode() for key, value in record.items()}
        for record in mlcroissant.Dataset(jsonld=jsonld).records("records")
    ]
    lines = (root / "datasets" / source / "records.jsonl").read_text().splitlines()
    check(f"{name}: mlcroissant reads the registered records", records == [json.loads(line) for line in lines])
    changed = json.loads(jsonld.read_text())
    changed["distribution"][0]["sha256"] = "0" * 64
    bad = work / f"{name}-bad.json"
    bad.write_text(json.dumps(changed))
    try:
        list(mlcroissant.Dataset(jsonld=bad).records("records"))
        check(f"{name}: a file with another hash is refused", False)
    except Exception:
        check(f"{name}: a file with another hash is refused", True)
    dangling = json.loads(jsonld.read_text())
    dangling["recordSet"][0]["field"][0]["source"]["fileObject"]["@id"] = "nowhere"
    bad.write_text(json.dumps(dangling))
    check(f"{name}: a dangling reference is refused", not validates(bad)[0])

    rsl = xml.parse(work / f"{name}.rsl").getroot()
    space = "{https://rslstandard.org/rsl}"
    check(f"{name}: RSL permits what was signed", rsl.find(f".//{space}permits").text == "ai-train")
    check(f"{name}: RSL names a payment by use", rsl.find(f".//{space}payment").get("type") == "use")
    summary = (work / f"{name}.ai-act").read_text()
    check(f"{name}: the summary has its three sections", all(f"## {i}." in summary for i in (1, 2, 3)))

licence = json.loads((work / "registry/texts/licence.json").read_text())
typed = json.loads((work / "typed.json").read_text())
for key in ("recordCount", "validFrom", "validUntil", "nonce"):
    typed["message"][key] = int(typed["message"][key])
signable = encode_typed_data(full_message=typed)
recovered = Account.recover_message(signable, signature=licence["signature"])
check("eth-account recovers the licensor", recovered == licence["message"]["licensor"])

ours = json.loads((work / "ours.json").read_text())
secret = Account.decrypt(ours, "correct horse")
check("eth-account opens our keystore", Account.from_key(secret).address.lower().endswith(ours["address"]))
theirs = Account.encrypt(Account.create().key, "correct horse", kdf="pbkdf2", iterations=10000)
(work / "pbkdf2.json").write_text(json.dumps(theirs))
command = [
    *(str(part) for part in (__import__("os").environ["ASCRIBE"], "licence", "sign", "texts")),
    *("--keystore", str(work / "pbkdf2.json"), "--passphrase-file", str(work / "phrase.txt")),
    *("--dir", str(work / "registry"), "--format", "json"),
]
done = subprocess.run(command, capture_output=True, text=True)
check(
    "a PBKDF2 keystore of eth-account opens here, and its key may not license another's dataset",
    done.returncode == 1 and "licensor of dataset" in done.stderr,
)
sys.exit(failed != 0)
