"""Show a corpus's figures as terminal tables, at most 80 columns wide for the public corpora."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from selfemo.common.printable import printable
from selfemo.corpora.check import CorpusCheck
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.overlap import Overlap
from selfemo.corpora.stats import corpus_stats, transition_shares
from selfemo.evaluation.matrix import Matrix


def counts_table(report: CorpusCheck) -> Table:
    """Show dialogues, turns and the majority baseline per split."""
    headings = ("split", "dialogues", "turns", "labelled", "majority", "accuracy", "weighted F1", "macro F1")
    table = _table("Counts, and the scores of always answering train's most frequent label", *headings)
    for s in report.splits:
        scores = (s.majority.accuracy, s.majority.weighted_f1, s.majority.macro_f1)
        counts = (s.dialogues, s.turns, s.labelled_turns)
        table.add_row(
            s.split,
            *(f"{count:,}" for count in counts),
            s.majority.label,
            *(f"{score:.4f}" for score in scores),
        )
    return table


def labels_table(report: CorpusCheck) -> Table:
    """Show turns by primary label and split."""
    table = _table("Primary labels: turns (% of labelled)", "label", *(s.split for s in report.splits))
    for i, label in enumerate(report.labels):
        cells = [(s.label_counts[i][1], s.labelled_turns) for s in report.splits]
        table.add_row(label, *(f"{count:,} ({100 * count / max(1, total):.1f})" for count, total in cells))
    return table


def lengths_table(corpus: Corpus) -> Table:
    """Show turns per dialogue, words per turn, and how many turns carry more than one label."""
    headings = ("split", "dialogues", "turns", "turns each", "most", "words each", "95%", "multi", "votes")
    table = _table(f"{corpus.name}: turns of a dialogue and words of a turn (medians)", *headings)
    for s in corpus_stats(corpus):
        figures = (
            s.dialogues,
            s.turns,
            s.turns_median,
            s.turns_max,
            s.words_median,
            s.words_p95,
            s.multi_label_turns,
            s.voted_turns,
        )
        table.add_row(
            s.split, *(f"{figure:,g}" if isinstance(figure, float) else f"{figure:,}" for figure in figures)
        )
    return table


def transitions_table(corpus: Corpus) -> Group:
    """Show how one emotion follows another in the training split; a wide label set takes several parts."""
    shares = transition_shares(corpus.split("train"), corpus.labels)
    percent = [[round(100 * share) for share in row] for row in shares]
    title = Text("Next turn's emotion in train, % of a row", style="italic")
    return Group(title, Matrix("this turn", corpus.labels, corpus.labels, percent))


def overlap_table(title: str, overlaps: dict[str, Overlap]) -> Table:
    """Show the number of shared long texts by split."""
    table = _table(title, "split", "long texts", "shared", "%")
    for split, found in overlaps.items():
        table.add_row(
            split,
            f"{found.long_texts:,}",
            f"{found.shared:,}",
            f"{100 * found.shared / max(1, found.long_texts):.1f}",
        )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i and heading != "majority" else "left")
    return table


def print_lines(console: Console, lines: list[str], limit: int) -> None:
    """Print at most `limit` lines (0: all), and how many are left out."""
    shown = lines[: limit or None]
    for line in shown:
        console.print(printable(line), soft_wrap=True)
    if len(shown) < len(lines):
        console.print(f"... and {len(lines) - len(shown)} more (--limit 0 shows all)")
