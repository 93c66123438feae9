"""Writes a study's page and figures from its CSV files alone; no model, run or corpus is needed.

    python -m tools.study.page docs/study/figures/meld --output /tmp/page

The directory holds what `python -m tools.study` wrote to OUTPUT/tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfemo.common.errors import told_in_one_line
from selfemo.common.files import replace_text
from tools.study.figures import plot_curve, plot_variants
from tools.study.render import curve_variants, render, shares_of
from tools.study.tables import Tables, read_tables

PAGE = "report.md"


def write_page(tables: Tables, output: Path) -> str:
    """Write report.md and its figures; return the text."""
    output.mkdir(parents=True, exist_ok=True)
    for split in tables.splits:
        plot_variants(tables, split, output / f"{split.split}.png")
        if curve_variants(tables) and len(shares_of(tables)) > 1:
            plot_curve(tables, split, output / f"{split.split}-curve.png")
    text = render(tables)
    replace_text(output / PAGE, text)
    return text


def main(
    tables: Annotated[Path, typer.Argument(help="Directory of the four CSV files.")],
    output: Annotated[Path, typer.Option(help="Directory for report.md and its figures.")],
) -> None:
    """Write the page of a study from its CSV files."""
    with told_in_one_line():
        write_page(read_tables(tables), output)
        typer.echo(f"page: {output / PAGE}")


if __name__ == "__main__":
    typer.run(main)
