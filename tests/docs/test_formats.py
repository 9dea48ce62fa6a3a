"""docs/formats.md is enough to write a reader: its examples are computed anew, its tables are those of the code."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from dataclasses import fields
from itertools import chain
from pathlib import Path

import pytest

from packtrain.client import Silent
from packtrain.flows.hashing import hash_files
from packtrain.flows.sources import LocalFile, NewFile
from packtrain.model import golden, lease, ledger, lineage, manifest
from packtrain.model.ledger import Log
from packtrain.model.lineage import Lineage
from packtrain.model.manifest import Base, Manifest
from packtrain.model.safetensors import Header, Tensor, cut

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()
GOLDEN = Path(__file__).resolve().parents[1] / "model" / "golden"
KIB = 1024


def example(name: str) -> list[str]:
    found = re.search(rf"<!-- example: {name} -->\n```json\n(.*?)\n```", PAGE, re.DOTALL)
    assert found, name
    return found[1].split("\n")


def rows_of(section: str) -> list[list[str]]:
    """The cells of the tables under a heading, their heads left out."""
    body = re.search(rf"^(#+) {re.escape(section)}\n(.*?)(?=^#+ |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert body, section
    tables = re.findall(r"^\|[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n?)+)", body[2], re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for table in tables for row in table.splitlines()]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture
def built(tmp_path: Path) -> Manifest:
    """The manifest of the files that the page's own commands write."""
    found = re.search(r"```bash\n(mkdir example.*?)```", PAGE, re.DOTALL)
    assert found
    subprocess.run(["bash", "-euc", found[1]], cwd=tmp_path, check=True)
    paths = sorted((tmp_path / "example").iterdir())
    files = [NewFile(path.name, LocalFile(path), generated=path.name == "requirements.txt") for path in paths]
    return Manifest.of("merged", hash_files(files, Silent()))


def test_the_example_manifest(built: Manifest) -> None:
    (line,) = example("manifest")
    assert built.encode() == line.encode()
    assert f"`{hashlib.sha256(line.encode()).hexdigest()}`" in PAGE
    assert Manifest.decode(line.encode(), expect=built.digest) == built


def test_the_example_payload(built: Manifest) -> None:
    (line,) = example("payload")
    assert hashlib.sha256(line.encode()).hexdigest() == built.payload.hex
    assert [path for path, _, _ in json.loads(line)] == ["config.json", "model.safetensors"]


def test_the_example_ledger(built: Manifest) -> None:
    log = Log("tiny")
    for line in example("ledger"):
        log.extend(line.encode())
    assert log.head == hashlib.sha256(example("ledger")[-1].encode()).hexdigest()
    assert f"`{log.head}`" in PAGE
    version = log.state.versions[1]
    assert (version.digest, version.payload, version.size) == (built.digest, built.payload, built.size)
    assert log.state.aliases == {"production": 1}


def test_the_examples_of_cutting() -> None:
    rows = rows_of("Where a file is cut")
    assert len(rows) == 3
    for given, chunks in rows:
        header, *tensors = (int(number) * KIB for number in re.findall(r"\d+", given))
        if tensors:
            start, entries = header, []
            for size in tensors:
                entries.append(Tensor("", "U8", (size,), start, start + size))
                start += size
            lengths = cut(start, Header(header, tuple(entries), {}))
        else:
            lengths = cut(header, None)
        assert lengths == [int(number) * KIB for number in re.findall(r"\d+", chunks)], given


def test_the_forms_of_a_base() -> None:
    forms = [names(cells[0]) for cells in rows_of("Base")]
    assert forms.pop() == []
    written = [json.loads(form.replace("HEX", '"' + "0" * 64 + '"').replace("REV", '"main"')) for (form,) in forms]
    assert [Base.from_json(value, what="base").to_json() for value in written] == written


def test_the_fields_are_those_of_the_code() -> None:
    merged = json.loads((GOLDEN / "merged-again.manifest.json").read_bytes())
    adapter = json.loads((GOLDEN / "adapter-of-a-version.manifest.json").read_bytes())
    documented = {name for cells in rows_of("Manifest") for name in names(cells[0])}
    assert documented == {*adapter, *merged, *(key for file in merged["files"] for key in file)}
    leased = {name for cells in rows_of("Leases") for name in names(cells[0])}
    assert leased == json.loads((GOLDEN / "lease.json").read_bytes()).keys()
    recorded = {name for cells in rows_of("Records") for name in names(cells[0])}
    assert recorded == {"schema", *(field.name for field in fields(Lineage))}


def test_the_actions_and_their_details_are_those_of_the_code() -> None:
    fields_of_events, details = set(), dict[str, set[str]]()
    for line in chain(*(path.read_bytes().splitlines() for path in GOLDEN.glob("*.ledger.jsonl"))):
        event = json.loads(line)
        fields_of_events |= event.keys()
        details.setdefault(event["action"], set()).update(event["details"])
    rows = rows_of("Ledger")
    actions = {names(cells[0])[0]: set(names(cells[1])) for cells in rows if len(cells) == 3}
    assert actions == details
    assert actions.keys() == ledger._ACTIONS.keys()
    assert {name for cells in rows if len(cells) == 2 for name in names(cells[0])} == fields_of_events


def test_the_schemas() -> None:
    table = [names(cells[1]) for cells in rows_of("Formats")]
    assert table == [
        [manifest.SCHEMA],
        [ledger.SCHEMA],
        [lineage.SCHEMA],
        [golden.SCHEMA],
        [golden.RESULT_SCHEMA],
        [lease.SCHEMA],
        [],
    ]
