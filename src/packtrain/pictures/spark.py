"""A curve in one line of text."""

from __future__ import annotations

from packtrain.model.lineage import Curve, thin

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 24


def spark(curve: Curve) -> str:
    """At most 24 blocks, the lowest value the lowest block. The curve has a point at least."""
    values = [value for _, value in thin(curve, _WIDTH)]
    low, high = min(values), max(values)
    height = high / 2 - low / 2  # halves, because the difference of two numbers may be larger than any number
    return "".join(_BLOCKS[round((value / 2 - low / 2) / height * 7) if height else 0] for value in values)
