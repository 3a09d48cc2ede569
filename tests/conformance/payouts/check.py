"""check.py FOLDER…: the bank's file and the books of each run folder against the ISO schema, hledger and beancount.

Prints one line per failure and `N passed, M failed`; exit code 1 when anything failed or nothing ran.
"""

import csv
import re
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

from beancount import loader
from lxml import etree
import pain001

PASSED = FAILED = 0
NAMESPACE = {"p": "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"}


def check(name, ok, why=""):
    global PASSED, FAILED
    if ok:
        PASSED += 1
    else:
        FAILED += 1
        print(f"FAILED {name}: {why or 'not so'}")


def schema():
    folder = Path(pain001.__file__).parent
    found = sorted(folder.rglob("pain.001.001.09.xsd"))
    return etree.XMLSchema(etree.parse(found[0]))


def payout(folder):
    with open(folder / "payout.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def bank(xsd, folder):
    path = folder / "pain001.xml"
    if not path.exists():
        return
    name = f"{folder.name} pain001"
    document = etree.parse(path)
    check(f"{name} is valid", xsd.validate(document), str(xsd.error_log.last_error))
    amounts = [Decimal(e.text) for e in document.iterfind(".//p:InstdAmt", NAMESPACE)]
    rows = [row for row in payout(folder) if row["amount_minor"] != "0"]
    for total in document.iterfind(".//p:CtrlSum", NAMESPACE):
        check(f"{name} control sum", Decimal(total.text) == sum(amounts), total.text)
    for count in document.iterfind(".//p:NbOfTxs", NAMESPACE):
        check(f"{name} number of transfers", int(count.text) == len(amounts) == len(rows))
    check(f"{name} pays the payout", amounts == [Decimal(row["amount"]) for row in rows])
    ids = [e.text for e in document.iterfind(".//p:EndToEndId", NAMESPACE)]
    check(f"{name} ids are unique and short", len(set(ids)) == len(ids) and all(len(i) <= 35 for i in ids))
    text = path.read_text(encoding="utf-8")
    changed = [
        text.replace("<NbOfTxs>", "<NbOfTxs>x", 1),
        text.replace("<EndToEndId>", "<EndToEndId>" + "9" * 36, 1),
        re.sub(r"(<InstdAmt Ccy=\"[A-Z]+\">)", r"\g<1>1.000001", text, count=1),
    ]
    for number, bad in enumerate(changed):
        check(f"{name} broken {number} is refused", not xsd.validate(etree.fromstring(bad.encode())))


def hledger(*arguments):
    return subprocess.run(["hledger", *arguments], capture_output=True, text=True, check=False)


def bump(text):
    """One unit of the last decimal more in the last posting."""
    match = list(re.finditer(r"(\d)( [A-Z]+)$", text, re.MULTILINE))[-1]
    return text[: match.start(1)] + str((int(match[1]) + 1) % 10) + text[match.end(1) :]


def books(folder):
    rows = payout(folder)
    paid = sum(Decimal(row["amount"]) for row in rows)
    carried = sum(int(row["carried_subunits"]) for row in rows)
    journal, bean = folder / "run.journal", folder / "run.beancount"
    name = f"{folder.name} hledger"
    found = hledger("check", "-f", str(journal))
    check(f"{name} accepts", found.returncode == 0, found.stderr)
    found = hledger("balance", "-f", str(journal), "Liabilities:Payable", "--format", "%(total)", "-N", "-1", "--pending")
    total = hledger("balance", "-f", str(journal), "Liabilities:Payable", "-O", "csv", "--pending").stdout
    lines = list(csv.reader(total.splitlines()))
    if paid > 0:
        pending = sum(Decimal(re.sub(r"[^-.\d]", "", row[1])) for row in lines[1:] if not row[0].lower().startswith("total"))
        check(f"{name} has the payout pending", pending == paid, f"{pending} {paid}")
    with tempfile.TemporaryDirectory() as scratch:
        bad = Path(scratch) / "bad.journal"
        bad.write_text(bump(journal.read_text(encoding="utf-8")), encoding="utf-8")
        check(f"{name} refuses a changed amount", hledger("check", "-f", str(bad)).returncode != 0)
        worse = Path(scratch) / "bad.beancount"
        worse.write_text(bump(bean.read_text(encoding="utf-8")), encoding="utf-8")
        errors = loader.load_file(str(worse))[1]
        check(f"{folder.name} beancount refuses a changed amount", bool(errors))
    entries, errors, _ = loader.load_file(str(bean))
    name = f"{folder.name} beancount"
    check(f"{name} accepts", not errors, str(errors[:1]))
    balance = Decimal(0)
    for entry in entries:
        for posting in getattr(entry, "postings", []):
            if posting.account.startswith("Liabilities:Payable"):
                balance += posting.units.number
    decimals = len(rows[0]["amount"].partition(".")[2]) if rows else 0
    owed = Decimal(carried).scaleb(-6 - decimals)
    check(f"{name} owes what is carried", -balance == owed, f"{balance} {owed}")


def main():
    xsd = schema()
    folders = [Path(argument) for argument in sys.argv[1:]]
    check("there are folders", bool(folders))
    for folder in folders:
        bank(xsd, folder)
        books(folder)
    print(f"{PASSED} passed, {FAILED} failed")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
