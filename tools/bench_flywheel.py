"""Measures the flywheel's store as it grows from a thousand records to a million.

    python tools/bench_flywheel.py               # a million records, about 4 GB in the temporary directory
    python tools/bench_flywheel.py --records 100000

Prints seconds per append and per summary at each size. A record has the size of a run's: a dialogue of
3 turns, a prompt of 80 ids, 8 candidates of 4 ids with their rewards. Every record goes through
FlywheelStore.append, in transactions of one iteration (64 records), each on disk before the next
begins.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from selfemo.corpora.conversation import Turn
from selfemo.flywheel.flywheel import OPENING_RECORDS
from selfemo.flywheel.record import Candidate, Record
from selfemo.flywheel.store import FlywheelStore
from selfemo.records.directory import flywheel_file

BATCH = 64
"""Groups of an iteration: 16 openings, two turns, one group of each role."""
MEASURED = 20
"""Iterations measured at each size; their median is reported."""
LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
COMMAND = "import sys; from selfemo.commands.main import main; sys.argv[0] = 'selfemo'; main()"


def main() -> None:
    """Grow a store tenfold at a time and measure at each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000, help="largest size (default 1,000,000)")
    largest = parser.parse_args().records
    sizes = [size for size in (1_000, 10_000, 100_000) if size < largest] + [largest]
    console = Console(width=130, highlight=False)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, {datetime.now(UTC).isoformat(timespec='seconds')}"
    )
    table = Table(
        "records", "file", "append of 64 records", "totals()", "selfemo flywheel list", "recall on resume"
    )
    with tempfile.TemporaryDirectory(prefix="selfemo-bench-") as scratch:
        path = flywheel_file(Path(scratch), 0)
        store = FlywheelStore(path, writable=True, labels=LABELS)
        for size in sizes:
            grow(store, size)
            appends = [
                seconds(lambda: store.append(iteration(store.last_id() // BATCH))) for _ in range(MEASURED)
            ]
            totals, (listed, listed_cpu), recalled = (
                seconds(store.totals),
                list_command(scratch),
                seconds(lambda: recall(path)),
            )
            figures = [f"{statistics.median(appends) * 1e3:.1f} ms", f"{totals * 1e3:.2f} ms"]
            figures += [f"{listed:.1f} s ({listed_cpu:.1f} s of CPU)", f"{recalled:.1f} s"]
            table.add_row(f"{size:,}", f"{path.stat().st_size / 1e6:,.0f} MB", *figures)
        store.close()
    console.print(table)


def grow(store: FlywheelStore, size: int) -> None:
    """Append whole iterations until the store holds at least `size` records."""
    for number in range(store.last_id() // BATCH, -(-size // BATCH)):
        store.append(iteration(number))


def iteration(number: int) -> list[Record]:
    """Make the records of one iteration."""
    return [record(number, place) for place in range(BATCH)]


def record(number: int, place: int) -> Record:
    """Make a record with texts of its own."""
    label, kept = LABELS[place % 7], place % 3 == 0
    text = f"Well, I never thought that number {number} would come to {place}, did you?"
    context = (
        Turn("Ana", "You came! I did not expect that at all.", ("surprise",)),
        Turn("Ben", text, (label,)),
    )
    return replace(
        TEMPLATE,
        record_id=number * BATCH + place + 1,
        iteration=number,
        episode=place,
        text=text,
        labels=(label,),
        kept=kept,
        reason="annotated" if kept else "low score",
        context=context,
    )


def list_command(run: str) -> tuple[float, float]:
    """Return the seconds of `selfemo flywheel list`, and its seconds of CPU.

    On a busy machine most of the former is waiting.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", COMMAND, "flywheel", "list", run]
    elapsed = seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def recall(path: Path) -> None:
    """Read from an existing store everything that Flywheel reads when a run resumes."""
    store = FlywheelStore(path)
    for _ in store.kept_texts():
        pass
    store.newest_kept("recognizer", OPENING_RECORDS)
    store.iterations()
    store.close()


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


TEMPLATE = Record(
    record_id=1,
    iteration=0,
    episode=0,
    turn=0,
    role="recognizer",
    source="everyday/train/42",
    parent=None,
    weight_version=3,
    speaker="Ben",
    text="",
    labels=("joy",),
    gold=("joy",),
    target=(),
    score=1.0,
    agreement=0.7,
    kept=True,
    reason="annotated",
    prompt_ids=tuple(range(1000, 1080)),
    max_tokens=12,
    temperature=1.0,
    context=(),
    components=("alignment", "consistency", "format"),
    candidates=tuple(
        Candidate(
            2**62 + i, "joy, surprise", (311, 12, 845, 2), True, "joy, surprise", (), (0.5, 0.7, 1.0), 0.5
        )
        for i in range(8)
    ),
)

if __name__ == "__main__":
    main()
