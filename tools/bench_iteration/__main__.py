"""Measures an iteration: its rollout beside plain vLLM, all of it beside TRL's GRPOTrainer, and its views.

    python -m tools.bench_iteration                         # the first two, on this machine
    python -m tools.bench_iteration --parts rollout         # needs nothing beyond the project
    python -m tools.bench_iteration --parts trl             # needs requirements/bench.txt
    python -m tools.bench_iteration --parts views --views 3
    ... --json FILE                                         # the same, for a machine to read

Both sides of a comparison run in this process on the same threads, in turns, so that any other load on
the machine slows both alike; the figure is the median over rounds. Nothing is downloaded: the model is
initialised here, the dialogues are the bundled corpus.

rollout   selfplay.play (prompts, engine calls, parsing, gates, votes) against LLM.generate of the very
          prompts and lengths that it asked for; beside it with the seeds and logprobs that self-play
          needs, and in one call
trl       rollout, rewards, SELF-GRPO step and weight sync of the trainer's own loop, against
          GRPOTrainer's step on the same prompts, G, completion cap, loss (GRPO), KL and optimizer rate,
          in fp32, without gradient checkpointing and with nothing logged
views     the trainer's own loop with recognizer groups in V views against the same in one, without a bar
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from selfemo.selfplay.views import view_names
from tools.bench_iteration.against_trl import bench_trl
from tools.bench_iteration.rollout import bench_rollout
from tools.bench_iteration.views import bench_views


def main(arguments: list[str] | None = None) -> int:
    """Return exit status 1 if a bar is missed, else 0."""
    options = _options(arguments)
    # before torch is imported: vLLM makes torch.set_num_threads a no-op
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    # libraries print; the trainer's terminal sends file descriptor 1 to a log
    terminal = os.fdopen(os.dup(1), "w")
    warnings.simplefilter("ignore")
    console = Console(file=terminal, width=110, highlight=False)
    document: dict[str, Any] = {
        "machine": _machine(options.threads),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    console.print(f"{document['machine']}, {document['time']}")
    with tempfile.TemporaryDirectory(prefix="selfemo-bench-") as scratch, _failures_told():
        if "rollout" in options.parts:
            document["rollout"] = bench_rollout(options, Path(scratch) / "rollout")
            console.print(_rollout_table(document["rollout"]))
        if "trl" in options.parts:
            document["trl"] = bench_trl(options, Path(scratch) / "trl")
            console.print(_trl_table(document["trl"]))
        if "views" in options.parts:
            document["views"] = bench_views(options, Path(scratch) / "views")
            console.print(_views_table(document["views"]))
    if options.json:
        temporary = options.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(options.json)
    judged = [document[part] for part in options.parts]
    judged += [document["rollout"]["same_requests"]] if "rollout" in options.parts else []
    return int(any(result["ratio"] < (result["bar"] or 0) for result in judged))


@contextmanager
def _failures_told() -> Iterator[None]:
    """Send a traceback to the terminal, although the trainer's log has file descriptor 2."""
    kept = os.fdopen(os.dup(2), "w", buffering=1)
    try:
        yield
    except BaseException:
        sys.stderr = kept
        raise


def _rollout_table(result: dict[str, Any]) -> Table:
    title = (
        f"Self-play rollout: {result['seeds']} episodes x {result['turns']} turns, {_views(result)}, "
        f"{result['requests_per_round']:.0f} requests and {result['tokens_per_round']:.0f} tokens a round, "
        f"median of {result['rounds']} rounds"
    )
    table = Table("", "seconds", "tokens/s", title=title, title_justify="left")
    for name, seconds in result["seconds"].items():
        table.add_row(name, f"{seconds:.3f}", f"{result['tokens_per_round'] / seconds:.0f}")
    table.add_row("self-play / plain", *_verdict(result))
    table.add_row("self-play / plain, seeded", *_verdict(result["same_requests"]))
    return table


def _trl_table(result: dict[str, Any]) -> Table:
    lengths = result["mean_completion_tokens"]
    groups = f"G {result['group']} over {_views(result)}"
    sizes = f"{result['prompts']} turns x {groups}, at most {result['tokens_cap']} tokens"
    title = f"One iteration: {sizes}, median of {result['rounds']} rounds"
    table = Table("", "seconds", "mean tokens", title=title, title_justify="left")
    table.add_row("selfemo", f"{result['seconds']['selfemo']:.3f}", f"{lengths['selfemo']:.1f}")
    table.add_row(
        f"TRL {result['trl']} GRPOTrainer", f"{result['seconds']['trl']:.3f}", f"{lengths['trl']:.1f}"
    )
    for name, seconds in result["phases"].items():
        table.add_row(f"  selfemo: {name}", f"{seconds:.3f}", "")
    table.add_row("TRL / selfemo", *_verdict(result))
    return table


def _views_table(result: dict[str, Any]) -> Table:
    sizes = f"{result['prompts']} episodes x {result['turns']} turns, {result['samples']} samples"
    title = f"One iteration: {sizes}, G {result['group']}, median of {result['rounds']} rounds"
    table = Table("", "1 view", _views(result), "times as long", title=title, title_justify="left")
    for phase, figures in result["phases"].items():
        spread = f"{figures['ratio']:.2f} ({figures['ratio_low']:.2f} to {figures['ratio_high']:.2f})"
        table.add_row(phase, f"{figures['one']:.3f} s", f"{figures['several']:.3f} s", spread)
    return table


def _views(result: dict[str, Any]) -> str:
    return "1 view" if result["views"] == 1 else f"{result['views']} views"


def _verdict(result: dict[str, Any]) -> tuple[str, str]:
    verdict = "holds" if result["ratio"] >= result["bar"] else "MISSED"
    return (
        f"{result['ratio']:.2f} ({result['ratio_low']:.2f} to {result['ratio_high']:.2f})",
        f"bar {result['bar']}: {verdict}",
    )


def _machine(threads: int) -> str:
    import psutil

    memory_gib = round(psutil.virtual_memory().total / 2**30)
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory_gib} GiB, {threads} threads, "
        f"Python {platform.python_version()}"
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, known = parser.parse_args(arguments), len(view_names())
    fewest = 2 if "views" in options.parts else 1
    if not fewest <= options.views <= min(known, options.group):
        parser.error(f"--views {options.views}: expected {fewest} to {min(known, options.group)} here")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=["rollout", "trl", "views"], default=["rollout", "trl"])
    parser.add_argument("--prompts", type=int, default=8, help="dialogues per iteration (default 8)")
    parser.add_argument("--group", type=int, default=8, help="G, samples per prompt (default 8)")
    parser.add_argument(
        "--views", type=int, default=1, help="V, views of our recognizer groups (default 1); TRL's keep one"
    )
    parser.add_argument("--tokens", type=int, default=32, help="completion cap (default 32)")
    parser.add_argument(
        "--turns", type=int, default=2, help="turns of a self-play episode, rollout part (default 2)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default 9)")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them (default 2)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="OpenMP threads (default: all cores)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
