"""The picture of a delta: well formed whatever others wrote, whole, and within its frame."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.test_delta import version
from tests.model.test_tensors import MIB, Content
from tests.pictures.test_pictures import NASTY, SVG, frame, texts

from packtrain.model.delta import between
from packtrain.pictures import heatmap

KINDS = ("self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight")


def layers(count: int, seed: str = "a") -> Content:
    each: Content = {
        f"model.layers.{number}.{kind}": (seed if "q_proj" in kind else "same", MIB)
        for number in range(count)
        for kind in KINDS
    }
    return {**each, "lm_head.weight": ("same", MIB), f"extra.{seed}": ("x", MIB)}


def test_the_picture_says_what_the_delta_says() -> None:
    delta = between(version("llama", layers(3)), version("tone", layers(3, "b")))
    picture = heatmap.draw(delta)
    shown = texts(picture)
    for fact in ("llama/1 → tone/1", "model.layers", "q_proj", "3 changed; 3.1 MB fetched", "3 same", "1 removed",
                 "model.layers.2 q_proj: 1 changed; 1.0 MB fetched", "outside of layers", "copied 8.4 MB"):  # fmt: skip
        assert fact in shown, fact
    assert picture.count('class="cell s4"') == 1 + 3, "the legend's and q_proj's"
    assert picture.count('class="cell gone"') == 1
    assert "b: 1 added" in shown, "it is new, and its bytes are at hand"
    assert picture == heatmap.draw(delta), "the same delta gives the same bytes"


@pytest.mark.parametrize("count", [1, 2, 40, 41, 126, 1000])
def test_every_cell_is_within_the_frame(count: int) -> None:
    picture = heatmap.draw(between(version("a", layers(count)), version("b", layers(count, "b"))))
    width, height = frame(picture)
    cells = [each for each in ElementTree.fromstring(picture).iter(f"{SVG}rect") if "cell" in each.attrib["class"]]
    assert len(cells) == 5 + 3 * count + 3
    for each in cells:
        x, y, wide = (float(each.attrib[name]) for name in ("x", "y", "width"))
        assert x >= 0 and x + wide <= width and 0 <= y <= height and wide > 0


names = st.lists(st.one_of(st.just(NASTY), st.text(max_size=40)), min_size=1, max_size=5, unique=True)


@settings(max_examples=30)
@given(names, names)
def test_whatever_the_names_are(before: list[str], after: list[str]) -> None:
    contents = [{name: ("c", 5) for name in each if name.isprintable() or name == NASTY} for each in (before, after)]
    picture = heatmap.draw(between(version("a", contents[0]), version("b", contents[1])))
    ElementTree.fromstring(picture)
    assert "<script" not in picture
