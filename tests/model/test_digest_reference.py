"""Text forms of digests and references."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.errors import UsageError
from packtrain.model.digest import Digest, is_hex256
from packtrain.model.reference import Reference, check_alias, check_name
from tests.model.strategies import digests, names

HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

aliases = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True).filter(
    lambda a: a.lower() != "latest" and not (a[0] in "vV" and a[1:].isdigit())
)
references = st.one_of(
    st.builds(Reference, names),
    st.builds(Reference, names, alias=aliases),
    st.builds(Reference, names, version=st.integers(1, 10**15 - 1)),
    st.builds(Reference, names, digest=digests),
)


@given(digests)
def test_a_digest_reads_back_from_its_text(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == digest
    assert digest.hex.startswith(digest.short)


@given(st.binary())
def test_a_digest_is_sha256(data: bytes) -> None:
    assert str(Digest.of(data)) == "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "", "sha256", "sha256:", HEX, f"sha256:{HEX[1:]}", f"sha256:{HEX}0", f"sha256:{HEX.upper()}",
        f"sha256:{HEX}\n", f" sha256:{HEX}",
        f"SHA256:{HEX}", f"sha512:{HEX}", f"sha256::{HEX}", "sha256:" + "٣" * 64, "sha256:" + "g" * 64,
    ],
)  # fmt: skip
def test_what_is_no_digest_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        Digest.parse(text)


@given(st.text() | st.text("0123456789abcdef", min_size=63, max_size=65).map("sha256:".__add__))
def test_nonsense_digests_are_usage_errors_only(text: str) -> None:
    try:
        assert str(Digest.parse(text)) == text
    except UsageError:
        assert not (text.startswith("sha256:") and is_hex256(text.removeprefix("sha256:")))


@given(references, st.sampled_from(["", "models:/", "packtrain://"]))
def test_a_reference_reads_back_from_its_text_behind_every_scheme(reference: Reference, scheme: str) -> None:
    assert Reference.parse(scheme + str(reference)) == reference


@given(st.text() | st.text("ab1/@:.-v", max_size=12) | names.flatmap(lambda n: st.text(max_size=8).map(n.__add__)))
def test_nonsense_references_are_usage_errors_only(text: str) -> None:
    with suppress(UsageError):
        reference = Reference.parse(text)
        assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("llama", Reference("llama")),
        ("llama@latest", Reference("llama")),
        ("models:/llama/latest", Reference("llama")),
        ("models:/llama/3", Reference("llama", version=3)),
        ("models:/llama@production", Reference("llama", alias="production")),
        ("packtrain://llama@sha256:" + HEX, Reference("llama", digest=Digest(HEX))),
        ("llama@3", Reference("llama", alias="3")),  # an alias, as in MLflow
        ("Qwen2.5-0.5B_x/12", Reference("Qwen2.5-0.5B_x", version=12)),
    ],
)
def test_the_forms(text: str, reference: Reference) -> None:
    assert Reference.parse(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "/", "llama@", "llama/", "@production", "/3", "llama/0", "llama/03", "llama/-1", "llama/3.0",
        "llama/x",
        "llama/3/4", "llama/3@production", "llama@production/3", "llama@a@b", "llama@v3", "llama@Latest",
        "llama@LATEST",
        "llama@pro duction", "llama@sha256:abc", "llama/1000000000000000", "llama/٣", "../llama", ".llama",
        "-llama",
        "ll ama", "llama\n", "llama/3\n", "l" * 129, "models:/models:/llama", "models://llama", "https://llama",
        "packtrain:///llama",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError):
        Reference.parse(text)


def test_a_reference_has_one_selector() -> None:
    with pytest.raises(UsageError, match="one of them"):
        Reference("llama", alias="production", version=3)


@pytest.mark.parametrize("name", ["a", "A.b_c-d", "3", "x" * 128, "a..b"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("alias", ["production", "A-b_c", "3", "v", "v3a", "latest-1", "-", "x" * 255])
def test_aliases(alias: str) -> None:
    assert check_alias(alias) == alias


@pytest.mark.parametrize("alias", ["", "latest", "LATEST", "v3", "V03", "a.b", "a/b", "ä", "x" * 256, "a\n"])
def test_what_is_no_alias(alias: str) -> None:
    with pytest.raises(UsageError):
        check_alias(alias)
