"""Pictures of an ancestry: well formed whatever others wrote, whole, and within their frame."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.model.examples import LINEAGE, hex_of
from tests.model.strategies import unicode_text
from tests.model.test_lineage import lineages

from packtrain.model.ancestry import Ancestry, Generation, Promotion
from packtrain.model.digest import Digest
from packtrain.model.lineage import Dataset, Lineage, Parent
from packtrain.model.version import ModelVersion
from packtrain.pictures import mermaid, svg
from packtrain.pictures.spark import spark

SVG = "{http://www.w3.org/2000/svg}"
NASTY = '<script>alert("x")</script> & \'q\' ]]> --> #quot; \x00\x1b[2J\u202e\n`]"'
NODE = re.compile(r'^  (\w+)\["([^"\n]*)"\]:::(input|training|adapter|version|alias)$')
EDGE = re.compile(r"^  (\w+) (-->|-\.->) (\w+)$")


def version(number: int, name: str = "llama") -> ModelVersion:
    digest = Digest(hex_of(f"{name}/{number}"))
    return ModelVersion(name, number, digest, digest, "merged", 14_200_000_000, "2026-01-02T03:04:05.678Z", "ada")


def promotion(alias: str, reason: str = "", *, back: bool = False) -> Promotion:
    return Promotion(alias, "alice", "2026-03-02T09:21:40.551Z", reason, back)


def grown_up(lineage: Lineage | None = LINEAGE) -> Ancestry:
    """An adapter's merge, on a model that was trained on a base of which nothing is known."""
    return (
        Generation(version(3), (promotion("production", "accuracy 0.87"), promotion("staging", back=True)), lineage),
        Generation(version(1, "base"), (promotion("base"),), LINEAGE),
        Generation(version(1, "seed"), (), None),
    )


def texts(picture: str) -> str:
    root = ElementTree.fromstring(picture)
    return "\n".join(text for element in root.iter() for text in [element.text or ""])


def test_the_svg_tells_the_whole_story() -> None:
    picture = svg.draw(grown_up())
    shown = texts(picture)
    for fact in (
        "Lineage of llama/3", "llama/3", "base/1", "seed/1", "@production",
        "promoted by alice, 2026-03-02", "accuracy 0.87",
        "rolled back by alice", "dataset: identity", hex_of("identity")[:12], "evaluation: identity-eval",
        "training: sft lora",
        "learning_rate 0.0001", "3 steps in 1 epoch, template qwen", "eval_loss 1.5", "adapter: saves/sft",
        "git 0123abc",
        "loss (nats per token)", "training step", "training 1.25", "evaluation 1.5", "torch unknown",
    ):  # fmt: skip
        assert fact in shown, fact
    assert picture == svg.draw(grown_up()), "the same ancestry gives the same bytes"


def test_what_is_unknown_is_drawn_as_unknown() -> None:
    shown = texts(svg.draw((Generation(version(1), (), None),)))
    assert "lineage\nunknown" in shown
    shown = texts(svg.draw((Generation(version(1), (), Lineage(stage="sft")),)))
    for fact in ("base\nunknown", "datasets\nunknown", "hyperparameters unknown", "steps unknown, template unknown",
                 "metrics unknown", "git revision unknown", "loss curve: unknown"):  # fmt: skip
        assert fact in shown, fact


def frame(picture: str) -> tuple[float, float]:
    root = ElementTree.fromstring(picture)
    return float(root.attrib["width"]), float(root.attrib["height"])


def boxes(picture: str) -> list[tuple[float, float, float, float]]:
    found = [rect for rect in ElementTree.fromstring(picture).iter(f"{SVG}rect") if "x" in rect.attrib]
    return [
        (float(r.attrib["x"]), float(r.attrib["y"]), float(r.attrib["width"]), float(r.attrib["height"])) for r in found
    ]


ancestries = st.lists(
    st.tuples(
        st.none() | lineages,
        st.lists(
            st.builds(Promotion, unicode_text, unicode_text, unicode_text, unicode_text, st.booleans()), max_size=5
        ),
    ),
    min_size=1,
    max_size=3,
).map(lambda made: tuple(Generation(version(n), tuple(p), lineage) for n, (lineage, p) in enumerate(made, start=1)))


NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # it would take minutes


@settings(max_examples=100, phases=NO_SHRINKING, suppress_health_check=list(HealthCheck))
@given(ancestries)
def test_any_ancestry_makes_a_picture_that_is_whole(ancestry: Ancestry) -> None:
    picture = svg.draw(ancestry)
    width, height = frame(picture)
    places = boxes(picture)
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in places)
    apart = [
        a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
        for index, a in enumerate(places)
        for b in places[index + 1 :]
    ]
    assert all(apart), "no box covers another"
    for circle in ElementTree.fromstring(picture).iter(f"{SVG}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width and 0 <= float(circle.attrib["cy"]) <= height
    assert len(ElementTree.fromstring(picture).findall(f".//{SVG}rect[@class='box version']")) == len(ancestry)
    require_flowchart(mermaid.draw(ancestry))


def require_flowchart(text: str) -> None:
    head, *lines = text.split("\n")
    assert head == "flowchart TD"
    nodes = {found[1] for line in lines if (found := NODE.match(line))}
    edges = [found for line in lines if (found := EDGE.match(line))]
    classes = [line for line in lines if line.startswith("  classDef ")]
    assert len(nodes) + len(edges) + len(classes) == len(lines), "every line is a node, an edge or a class"
    assert {edge[1] for edge in edges} | {edge[3] for edge in edges} <= nodes


def test_nothing_that_others_wrote_gets_out_of_its_text() -> None:
    lineage = replace(
        LINEAGE, base=Parent(NASTY), template=NASTY, datasets=(Dataset(NASTY, {NASTY: "0" * 64}),), stage=NASTY,
        git_revision=NASTY, adapters=(Parent(NASTY),), curves={"loss": ((1, 1.0),), NASTY: ((1, 2.0),)},
    )  # fmt: skip
    ancestry = (Generation(version(1), (promotion(NASTY, NASTY),), lineage),)
    picture = svg.draw(ancestry)
    assert {element.tag.removeprefix(SVG) for element in ElementTree.fromstring(picture).iter()} <= {
        "svg", "title", "style", "rect", "text", "g", "path", "circle",
    }  # fmt: skip
    assert all(character.isprintable() or character == "\n" for character in picture)
    chart = mermaid.draw(ancestry)
    require_flowchart(chart)
    assert "<script" not in chart and "\x1b" not in chart


@pytest.mark.parametrize(
    "curve",
    [
        ((5, 1.0),), ((0, 1.0),), ((0, 0.0), (1, 0.0)), ((1, -3.0), (2, -7.5)), ((1, 1e-9), (10**7, 5e4)),
        ((1, 1e29), (2, -1e29)), ((1, 5e-324), (2, 1e29)), tuple((n, 1 / (n + 1)) for n in range(2000)),
    ],
)  # fmt: skip
def test_any_curve_fits_its_axes(curve: tuple[tuple[int, float], ...]) -> None:
    picture = svg.draw((Generation(version(1), (), Lineage(curves={"loss": curve, "eval_loss": curve[:1]})),))
    root = ElementTree.fromstring(picture)
    [line] = [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.attrib["class"] == "curve c0"]
    points = [tuple(map(float, pair.split())) for pair in line.removeprefix("M").split("L")]
    assert len(points) == min(len(curve), svg.MAX_POINTS)
    rows = {
        float(p.attrib["d"].split()[1].partition("H")[0])
        for p in root.iter(f"{SVG}path")
        if p.attrib["class"] == "grid"
    }
    assert 2 <= len(rows) <= 12
    assert all(min(rows) - 0.2 <= y <= max(rows) + 0.2 for _, y in points)


@pytest.mark.parametrize("point", [(1, 1e300), (10**400, 1.0), (-1, 1.0)])
def test_what_no_training_logs_is_left_out(point: tuple[int, float]) -> None:
    assert "beyond what can be drawn" in svg.draw((Generation(version(1), (), Lineage(curves={"loss": (point,)})),))


def test_an_axis_of_many_magnitudes_is_logarithmic_and_says_so() -> None:
    def heading(*losses: float) -> str:
        lineage = Lineage(stage="dpo", curves={"loss": tuple(enumerate(losses))})
        return re.findall(r">(loss[^<]*)<", svg.draw((Generation(version(1), (), lineage),)))[0]

    assert heading(7.5, 0.005) == "loss (logarithmic)"
    assert heading(7.5, 1.0) == heading(7.5, 0.0) == heading(7.5, -1.0) == "loss"


def test_a_curve_in_one_line() -> None:
    assert spark(((1, 0.0), (2, 7.0), (3, 3.0))) == "▁█▄"
    assert spark(((1, 2.0),)) == spark(((1, 5e-324),)) == "▁"
    assert spark(((1, -1.7e308), (2, 1.7e308))) == "▁█"
    assert spark(tuple((n, float(-n)) for n in range(1000)))[0] == "█"
    assert len(spark(tuple((n, float(n)) for n in range(1000)))) == 24


def test_the_flowchart_tells_the_whole_story() -> None:
    chart = mermaid.draw(grown_up())
    require_flowchart(chart)
    for fact in ("seed/1", "base/1", "llama/3", "@production", "promoted by alice", "loss 2.5 █▄▁ 1.25", "saves/sft"):
        assert fact in chart, fact
    assert "  version0 --> training1" in chart, "a generation is trained on the one before"
