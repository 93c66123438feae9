"""Terminal output in which text is text.

rich reads `[red]` as a colour and `:joy:` as a picture in whatever it prints, cells of tables included. Dialogues, answers, labels
and paths are data, so what prints them prints through this console; control characters are the business of selfemo.common.printable.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """A rich console that interprets nothing; styles are given as arguments. Options are Console's."""
    return Console(markup=False, emoji=False, highlight=False, **options)
