"""Curves as inline SVG by matplotlib. Text and lines take the page's colour, so they follow light and dark mode."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

_INK = "#123456"
"""Stands for the page's text colour until the SVG is written."""
_COLOURS = ("#3b7dd8", "#d9822b", "#2f9e6e", "#b455a0", "#8a7a2f", "#c94f4f")


def line_chart(title: str, series: Mapping[str, Sequence[float]], steps: Sequence[int]) -> str:
    """An <svg> element with one line per series over `steps`."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for index, (name, values) in enumerate(series.items()):
            axes.plot(steps, values, label=name, color=_COLOURS[index % len(_COLOURS)], linewidth=1.6, marker=".")
        axes.set_title(title, loc="left", color=_INK)
        axes.set_xlabel("iteration", color=_INK)
        axes.tick_params(colors=_INK)
        axes.patch.set_alpha(0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_INK)
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=_INK, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)
