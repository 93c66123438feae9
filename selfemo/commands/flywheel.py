"""Show and export the records of self-play, and generate a recorded turn again (`selfemo flywheel`)."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from selfemo.common.printable import printable
from selfemo.flywheel.export import export_jsonl
from selfemo.flywheel.joined import JoinedStores
from selfemo.flywheel.record import Record
from selfemo.flywheel.replay import Replay, replay
from selfemo.flywheel.store import Filter, Total
from selfemo.inference.engines import StandaloneEngines
from selfemo.inference.run_weights import weights_of
from selfemo.process.plain_console import plain_console
from selfemo.records.directory import FLYWHEEL_NAME, flywheel_file, flywheel_files
from selfemo.records.reading import read_run
from selfemo.report.expression import EmotionRow, emotion_rows

RoleName = Literal["recognizer", "responder"]
RunArgument = Annotated[Path, typer.Argument(help="A run's output directory, or one file of its flywheel.")]
RecordArgument = Annotated[int, typer.Argument(help="Record id, as `list` shows it.")]


def list_records(
    run: RunArgument,
    kept: Annotated[
        bool | None, typer.Option("--kept/--dropped", help="Only records that were kept, or dropped.")
    ] = None,
    role: Annotated[RoleName | None, typer.Option(help="Only records of this role.")] = None,
    label: Annotated[str | None, typer.Option(help="Only records with this primary label.")] = None,
    reason: Annotated[
        str | None, typer.Option(help='Only records with this reason, such as "near duplicate".')
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="Only records with a greater id.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Most records to show; 0 shows the summary alone.")] = 20,
) -> None:
    """Summarise the flywheel and list records."""
    console = plain_console()
    with closing(open_store(run)) as store:
        totals = store.totals()
        console.print(summary_line(totals))
        console.print(summary_table(totals))
        if limit:
            console.print(records_table(list(store.find(Filter(kept, role, label, reason, after), limit))))


def show_record(run: RunArgument, record: RecordArgument) -> None:
    """Show one record: dialogue, candidates, rewards, provenance."""
    console = plain_console()
    with closing(open_store(run)) as store:
        found = store.read(record)
    for line in provenance_lines(found):
        console.print(line)
    console.print(candidates_table(found))


def export_records(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(help="New .jsonl file; labels.json is written beside it.")],
    role: Annotated[RoleName | None, typer.Option(help="Only records of this role.")] = None,
) -> None:
    """Write the kept records as a training corpus in the project's JSONL."""
    with closing(open_store(run)) as store:
        count = export_jsonl(store, out, role)
    plain_console().print(printable(f"{out}: {count} dialogues"))


def open_store(run: Path) -> JoinedStores:
    """Open the files of a run directory as one, or one file alone; UserError if there is none."""
    files = flywheel_files(run) if run.is_dir() else [run]
    return JoinedStores(files or [flywheel_file(run, 0)])


def run_of(place: Path) -> Path:
    """Return the run directory of a place that a user named: itself, or that of a flywheel's file."""
    if place.is_dir():
        return place
    return place.parent.parent if place.parent.name == FLYWHEEL_NAME else place.parent


def show_stats(run: RunArgument) -> None:
    """Show by emotion how many replies were asked for and kept, and F1 before and after self-play."""
    console = plain_console()
    with closing(open_store(run)) as store:
        console.print(summary_line(store.totals()))
    rows = emotion_rows(read_run(run_of(run)))
    if not rows:
        console.print("no reply has been asked for yet")
        return
    console.print(emotions_table(rows))


def summary_line(totals: list[Total]) -> str:
    """Say how many groups were offered and kept."""
    offered, kept = sum(t.count for t in totals), sum(t.count for t in totals if t.kept)
    return f"{offered} groups offered, {kept} kept" + (f" ({kept / offered:.1%})" if offered else "")


def summary_table(totals: list[Total]) -> Table:
    """Count records by outcome, and the kept ones also by label."""
    table = Table("outcome", "reason", "role", "label", "records")
    merged: dict[tuple[str, str, str, str], int] = {}
    for t in totals:
        key = ("kept" if t.kept else "dropped", t.reason, t.role, t.label if t.kept else "")
        merged[key] = merged.get(key, 0) + t.count
    for key, count in sorted(merged.items(), key=lambda item: (item[0][0] != "kept", -item[1])):
        table.add_row(*map(printable, key), str(count))
    return table


def records_table(records: list[Record]) -> Table:
    """Show one line per record."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("id", "iter", "role", "labels", "sIoU", "agree", "outcome", "text"):
        table.add_column(name, overflow="fold", no_wrap=name in ("id", "iter", "role", "sIoU", "agree"))
    for r in records:
        outcome = f"{'kept' if r.kept else 'dropped'}: {r.reason}"
        row = [
            str(r.record_id),
            str(r.iteration),
            r.role,
            ", ".join(r.labels),
            f"{r.score:.2f}",
            f"{r.agreement:.2f}",
            outcome,
        ]
        table.add_row(*map(printable, row), _cut(r.text, 60))
    return table


def emotions_table(rows: list[EmotionRow]) -> Table:
    """Show one line per emotion; a figure that was not measured is a dash."""
    table = Table("emotion", "asked", "kept", "read back", "F1 after SFT", "F1 at the end", "change")
    for row in rows:
        values = ["-" if value is None else f"{value:.3f}" for value in (row.before, row.after)]
        change = "-" if row.change is None else f"{row.change:+.3f}"
        counts = map(str, (row.asked, row.kept, row.read_back))
        table.add_row(printable(row.label), *counts, *values, change)
    return table


def provenance_lines(r: Record) -> list[str]:
    """Describe a record in words, one line per element."""
    parent = f", continues record {r.parent}" if r.parent is not None else ""
    lines = [
        f"record {r.record_id}: {r.role}, {'kept' if r.kept else 'dropped'} ({r.reason})",
        f"iteration {r.iteration}, episode {r.episode}, turn {r.turn}, "
        f"weights {r.weight_version}, from {r.source}{parent}",
        f"gold {', '.join(r.gold) or '-'}; target {', '.join(r.target) or '-'}; "
        f"sIoU {r.score:.3f}; agreement {r.agreement:.3f}",
    ]
    lines += [
        f"  {turn.speaker}: {turn.text}" + (f"  [{', '.join(turn.labels)}]" if turn.labels else "")
        for turn in r.dialogue
    ]
    return list(map(printable, lines))


def candidates_table(r: Record) -> Group:
    """Show every candidate with its rewards, in figures; then what it says. 80 columns hold both."""
    views = ["view"] if len({c.view for c in r.candidates}) > 1 else []
    figures, texts = (Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0)) for _ in range(2))
    for name in ("", "seed", "sIoU", *map(printable, r.components)):
        figures.add_column(name, no_wrap=True)
    for name in ("", *views, "read as", "gates", "text"):
        texts.add_column(name, overflow="fold", no_wrap=not name)
    for number, c in enumerate(r.candidates, start=1):
        rewards = [f"{value:.3f}" for value in c.rewards]
        figures.add_row(str(number), str(c.seed), f"{c.score:.3f}", *rewards)
        said = [*([c.view] if views else []), c.reading or "-", ", ".join(c.gates)]
        texts.add_row(str(number), *map(printable, said), _cut(c.text, 60))
    return Group(figures, texts)


def replay_table(result: Replay) -> Table:
    """Show every candidate, recorded against replayed."""
    views = len({c.view for c in result.candidates}) > 1
    table = Table(
        "seed",
        *(["view"] if views else []),
        "tokens",
        "replayed",
        "result",
        title=f"record {result.record.record_id}, weights {result.record.weight_version}",
    )
    for c in result.candidates:
        outcome = "equal" if c.equal else f"differs from token {c.first_difference}"
        first = [str(c.seed), printable(c.view)] if views else [str(c.seed)]
        table.add_row(*first, str(len(c.recorded_ids)), str(len(c.replayed_ids)), outcome)
    return table


def _cut(text: str, width: int) -> str:
    """Cut a text to the width of a table cell."""
    return printable(text if len(text) <= width else text[: width - 3] + "...")


app = typer.Typer(help="Look at what self-play recorded, replay it, export it.", no_args_is_help=True)
app.command("list")(list_records)
app.command("show")(show_record)
app.command("stats")(show_stats)
app.command("export")(export_records)


@app.command("replay")
def replay_record(
    run: RunArgument,
    record: RecordArgument,
    model: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Hugging Face directory with the record's weights; by default they are looked for in the run."
            )
        ),
    ] = None,
) -> None:
    """Generate a recorded turn again from its seeds and compare; exit status 1 if anything differs."""
    with closing(open_store(run)) as store:
        found = store.read(record)
    run_dir = run_of(run)
    console = plain_console(soft_wrap=True)
    with weights_of(run_dir, found.weight_version, model) as weights:
        claim = "whatever version they are" if model else f"version {found.weight_version}"
        console.print(f"weights: {model or run_dir}, {claim}; settings from {weights.settings_from}")
        result = replay(found, StandaloneEngines().generator(weights))
    console.print(replay_table(result))
    raise typer.Exit(0 if result.equal else 1)
