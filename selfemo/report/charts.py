"""Draws charts as inline SVG by matplotlib. Every colour is a CSS variable of the page.

A chart so follows light and dark mode. Text stays text: it can be selected and searched, and takes the
page's font. Each chart describes itself in words, for those who cannot see it, and its ids carry its
own prefix, since many charts share one document.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, SOFT, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0401{index:02x}" for index in range(8))
"""Colours that no chart would use: each stands for a CSS variable until the SVG is written."""
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)"} | {
    colour: f"var(--c{index})" for index, colour in enumerate(SERIES)
}
_REWRITES = (
    (r"<metadata>.*?</metadata>", ""),
    (r"<style.*?</style>", ""),  # the style would apply to the whole page
    (r"font-family: [^;]*; ", ""),  # the page's own font
    (r'(\bid="|url\(#)', r"\g<1>{key}-"),
    (r'xlink:href="#', 'href="#{key}-'),
)
SIZE_IN = (4.5, 2.35)
"""About as wide as a phone at one point per pixel, so that text is legible there."""
NAME_CHARS = 60
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.linewidth": 0.8,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Chart:
    """One chart, as SVG and in words."""

    title: str
    svg: Markup
    summary: str
    """Description of the chart, in words and figures."""


def line_chart(
    title: str,
    steps: Sequence[float],
    series: Mapping[str, Sequence[float]],
    xlabel: str = "iteration",
    log: bool = False,
    bottom: float | None = None,
    dashed: Collection[str] = (),
) -> Chart:
    """Draw one line per series over `steps`; NaN leaves a gap.

    `log` makes the axis logarithmic; `bottom` is the value it starts at; `dashed` names the series that are
    limits of others.
    """

    def draw(axes: Axes) -> None:
        for index, (name, values) in enumerate(series.items()):
            marker = "o" if len(steps) <= 40 and name not in dashed else None
            axes.plot(
                steps,
                values,
                label=as_text(name),
                color=SERIES[index % len(SERIES)],
                linewidth=1.7,
                linestyle="--" if name in dashed else "-",
                marker=marker,
                markersize=3,
            )
        if log:
            axes.set_yscale("log")
        elif bottom is not None:
            axes.set_ylim(bottom=bottom)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if len(series) > 1:
            legend(axes, 2 if max(map(len, series)) > 14 else 3)

    known = {name: [value for value in values if math.isfinite(value)] for name, values in series.items()}
    parts = [
        f"{name} from {_figure(values[0])} to {_figure(values[-1])}"
        for name, values in known.items()
        if values
    ]
    return make_chart(title, draw, "; ".join(parts))


def make_chart(
    title: str, draw: Callable[[Axes], None], summary: str, size_in: tuple[float, float] = SIZE_IN
) -> Chart:
    """Draw into fresh axes of the house style and return them as SVG."""
    key = re.sub(r"\W+", "-", title.lower()).strip("-")
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": key}):
        figure = Figure(figsize=size_in, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        draw(axes)
        axes.tick_params(colors=SOFT, length=0)
        axes.xaxis.label.set_color(SOFT)
        axes.yaxis.label.set_color(SOFT)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(GRID)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return Chart(title, Markup(_inline(buffer.getvalue(), key, f"{title}: {summary}")), summary)


def as_text(name: str) -> str:
    """Write a name so that matplotlib shows it: `$` begins a formula, and `_` hides a legend's entry.

    A long one is cut, since matplotlib takes seconds to lay it out.
    """
    cut = name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 1]}…"
    shown = cut.replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def legend(axes: Axes, columns: int = 3) -> None:
    """Write the names of the series above the plot, so that they hide no data."""
    axes.legend(
        frameon=False,
        labelcolor=INK,
        fontsize=8,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        borderaxespad=0,
        handlelength=1.2,
    )


def _inline(svg: str, key: str, label: str) -> str:
    """Return the <svg> element of matplotlib's file, sized by the page.

    Colours become CSS variables, and ids get the chart's prefix.
    """
    attributes, _, content = svg[svg.index("<svg ") :].partition(">")
    view_box = re.search(r'viewBox="[^"]*"', attributes)
    for pattern, replacement in _REWRITES:
        content = re.sub(pattern, replacement.format(key=key), content, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        content = content.replace(colour, variable)
    return f'<svg role="img" aria-label="{escape(label)}" {view_box[0] if view_box else ""}>{content}'


def _figure(value: float) -> str:
    return f"{value:.3g}"
