"""Registries, made and added to from Python: the folder is the command's own, and bad descriptions leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess

import ascribe
import pytest
from ascribe import Registry

COMMAND = os.environ.get("ASCRIBE", "")
ACCOUNT = "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
OTHER = "eip155:1:0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "My Texts"
    folder.mkdir()
    lines = [json.dumps({"id": f"r{i}", "text": f"text number {i}"}) for i in range(20)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "LICENSE").write_text("Do as you like.\n")
    return folder


@pytest.fixture
def registry(tmp_path):
    Registry.init(tmp_path / "registry", "A test")
    return tmp_path / "registry"


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.name.startswith("registry.db"))


def test_a_dataset_and_its_next_version(texts, registry):
    seen = []

    class Listener:
        def start(self, stage, total, unit):
            seen.append(stage)

        def advance(self, n):
            pass

        def finish(self, note):
            pass

    added = Registry.add(registry, texts, licence="CC-BY-4.0", payees=ACCOUNT, owner="ann", progress=Listener())
    assert (added["name"], added["version"], added["new"], added["records"]) == ("my-texts", 1, True, 20) and seen
    again = Registry.add(registry, texts, licence="CC-BY-4.0", payees=ACCOUNT, owner="ann")
    assert again == {**added, "new": False}
    assert (registry / "my-texts" / "terms.txt").read_text() == "Do as you like.\n"
    with (texts / "a.jsonl").open("a") as file:
        file.write(json.dumps({"id": "more", "text": "one more"}) + "\n")
    grown = Registry.add(registry, texts, licence="CC-BY-4.0", payees=ACCOUNT, owner="ann")
    assert (grown["version"], grown["records"], grown["uuid"]) == (2, 21, added["uuid"])
    assert grown["content_root"] != added["content_root"]


@pytest.mark.skipif(not COMMAND, reason="ASCRIBE names no command")
def test_it_is_what_the_command_makes(tmp_path, texts, registry):
    def asked(*arguments):
        done = subprocess.run([COMMAND, *map(str, arguments), "--format", "json"], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    shares = {ACCOUNT: 700_000, OTHER: 300_000}
    settings = {"owner": "ann", "language": "en", "title": "Texts", "permits": ["ai-train", "search"], "terms": "Terms.\n"}
    mine = Registry.add(registry, texts, licence="mit", payees=shares, **settings)
    asked("registry", "init", tmp_path / "theirs", "--name", "A test", "--chain-id", 1)
    (tmp_path / "terms").write_text("Terms.\n")
    words = ["--licence", "mit", "--owner", "ann", "--language", "en", "--title", "Texts", "--terms", tmp_path / "terms"]
    words += [word for account, share in shares.items() for word in ("--payee", f"{account}={share}")]
    words += ["--permit", "ai-train", "--permit", "search", "--dir", tmp_path / "theirs"]
    theirs = asked("registry", "add", texts, *words)
    assert (mine["content_root"], mine["uuid"]) == (theirs["content_root"], theirs["uuid"])
    for name in ("manifest.json", "records.jsonl", "terms.txt"):
        assert (registry / "my-texts" / name).read_bytes() == (tmp_path / "theirs" / "my-texts" / name).read_bytes()
    # Signed by the command, it is a dataset like others.
    (tmp_path / "phrase").write_text("a phrase for a test\n")
    key = ["--passphrase-file", tmp_path / "phrase"]
    subprocess.run([COMMAND, "licence", "new-key", "--out", tmp_path / "key.json", *key], check=True, capture_output=True)
    command = [COMMAND, "licence", "sign", "my-texts", "--keystore", tmp_path / "key.json", *key, "--dir", registry]
    subprocess.run(command, check=True, capture_output=True)
    found = Registry(registry)
    assert found.datasets()["name"] == ["my-texts"] and found.verify()["records"].tolist() == [20]
    assert found.owners()["share_ppm"].tolist() == [700_000, 300_000]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"licence": "apache"}, ascribe.RegistryError, "apache"),
        ({"payees": ACCOUNT.lower()}, ascribe.RegistryError, "expected"),
        ({"payees": {ACCOUNT: 700_000}}, ascribe.RegistryError, "1000000|1,000,000|700000"),
        ({"payees": {}}, ValueError, "payees"),
        ({"payees": {ACCOUNT: -1}}, ValueError, "payees"),
        ({"payees": {ACCOUNT: 1.5}}, ValueError, "payees"),
        ({"name": "../up"}, ascribe.RegistryError, "name"),
        ({"text_field": "nothing"}, ascribe.RegistryError, "nothing|text"),
        ({"terms": ""}, ascribe.RegistryError, "terms|text"),
    ],
)
def test_bad_descriptions_leave_nothing(texts, registry, changes, kind, words):
    before = files(registry)
    with pytest.raises(kind, match=words):
        Registry.add(registry, texts, **{"licence": "CC-BY-4.0", "payees": ACCOUNT, **changes})
    assert files(registry) == before


def test_no_registry_no_records(tmp_path, texts, registry):
    with pytest.raises(ascribe.RegistryError):
        Registry.init(registry)
    with pytest.raises(ascribe.RegistryError):
        Registry.add(tmp_path / "nothing", texts, licence="MIT", payees=ACCOUNT)
    with pytest.raises(ascribe.RegistryError, match="records|folder"):
        Registry.add(registry, tmp_path / "no texts", licence="MIT", payees=ACCOUNT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ascribe.RegistryError):
        Registry.add(registry, tmp_path / "empty", licence="MIT", payees=ACCOUNT)
