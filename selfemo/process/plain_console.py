"""Makes a terminal console that prints text as it is.

rich reads `[red]` as a colour and `:joy:` as a picture in everything it prints, table cells included.
Dialogues, answers, labels and paths are data, so they are printed through this console.
selfemo.common.printable escapes control characters.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """Make a rich console that interprets nothing; styles are given as arguments. Options are Console's."""
    return Console(markup=False, emoji=False, highlight=False, **options)
