"""Show a plan as JSON and as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selfemo.planning.memory import Memory, StageMemory
from selfemo.planning.plan import Plan, Suggestion
from selfemo.planning.published import ASSUMED, FITTED, HELD_OUT, fitted_rates, predict
from selfemo.planning.workload import Workload

SCHEMA = 1
PAIRS_SHOWN = 24
"""Most rank pairs that the terminal shows; only --json lists more."""


def as_json(
    plan: Plan, pairs: dict[tuple[int, int], int], workload: Workload, suggestions: Sequence[Suggestion]
) -> dict[str, Any]:
    """Collect everything about a plan in plain values. Byte counts and seconds carry their unit in
    the name."""
    return {
        "schema": SCHEMA,
        "layout": asdict(plan.layout) | {"data": plan.layout.data, "label": plan.layout.label},
        "gpu": asdict(plan.gpu),
        "parameters": plan.parameters,
        "fits": plan.fits,
        "peak_bytes": plan.peak_bytes,
        "memory_bytes": [
            {
                "stage": stage.stage,
                "ranks": list(stage.ranks),
                "phases": {
                    name: asdict(memory) | {"total": memory.total} for name, memory in stage.phases.items()
                },
            }
            for stage in plan.stages
        ],
        "sync": asdict(plan.sync)
        | {
            "path": plan.sync_path,
            "pair_bytes": [
                {"source": s, "target": t, "bytes": size} for (s, t), size in sorted(pairs.items())
            ],
        },
        "step_seconds": asdict(plan.step) | {"total": plan.step.total},
        "pipeline_bubble": plan.bubble,
        "tokens_per_second_per_gpu": plan.tokens_per_second_per_gpu,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "checkpoint_blocks_s": plan.checkpoint_blocks_s,
        "host_bytes": asdict(plan.host) | {"total": plan.host.total},
        "live_sequences_per_engine": plan.live_sequences,
        "workload": {
            "generated_tokens": workload.generated_tokens,
            "train_samples": workload.train_samples,
            "train_tokens": workload.train_tokens,
            "supervised_tokens": workload.supervised_tokens,
            "teacher_tokens": workload.teacher_tokens,
            "teacher": asdict(workload.teacher) if workload.teacher else None,
            "longest_completion": max(call.lengths.max_completion for call in workload.calls),
        },
        "suggestions": [
            {
                "label": s.plan.layout.label,
                "step_seconds": s.plan.step.total,
                "peak_bytes": s.plan.peak_bytes,
                "reason": s.reason,
            }
            for s in suggestions
        ],
    }


def print_plan(
    plan: Plan,
    pairs: dict[tuple[int, int], int],
    workload: Workload,
    suggestions: Sequence[Suggestion],
    title: str,
    console: Console,
) -> None:
    """Print memory by stage and phase, the step by phase, sync and checkpoint, and the layouts
    worth considering."""
    console.print(
        f"[bold]{escape(title)}[/]: {plan.parameters / 1e9:.2f} B parameters "
        f"on {plan.layout.world_size} x {plan.gpu.name}"
    )
    console.print(plan.layout.label)
    console.print(
        "memory by phase (weights, gradients, optimizer, reference, engine weights, cache, buckets exact; "
        "the rest estimated)"
    )
    for stage in plan.stages:
        console.print(_memory_table(plan, stage))
    verdict = "fits" if plan.fits else "[red]DOES NOT FIT[/]"
    console.print(f"{verdict}: {_gib(plan.peak_bytes)} of {_gib(plan.gpu.memory_bytes)} GiB at the fullest\n")
    console.print(_step_table(plan))
    console.print(
        f"per iteration: {workload.generated_tokens:,.0f} tokens sampled, "
        f"{workload.train_samples:,} samples of "
        f"{workload.lengths.mean_total:,.0f} tokens trained; "
        f"{plan.tokens_per_second_per_gpu:,.0f} tokens/s/GPU; "
        f"{plan.live_sequences} sequences decode together per engine"
    )
    for line in _teaching_lines(plan, workload):
        console.print(line)
    console.print(
        f"sync ({plan.sync_path}): {plan.sync.direct / 1e9:.2f} GB direct, "
        f"{plan.sync.checkpoint / 1e9:.2f} GB by full tensors, over all "
        f"ranks; at most {plan.sync.received_max / 1e9:.2f} GB to one rank. "
        f"Checkpoint: {plan.checkpoint_bytes / 1e9:.1f} GB, {plan.host.total / 1e9:.1f} GB of host memory on "
        "the node that needs most"
        + (
            f"; training waits for about {plan.checkpoint_blocks_s:.0f} s while its optimizer is gathered "
            "(assumed)"
            if plan.checkpoint_blocks_s
            else ""
        )
    )
    console.print(_pair_table(pairs), "\n")
    if suggestions:
        console.print(_suggestion_table(suggestions))
    else:
        console.print(
            "[red]no layout of this cluster fits: add GPUs, lower rollout.kv_cache_bytes "
            "or train.max_tokens_per_microbatch[/]"
        )


def print_accuracy(console: Console) -> None:
    """Print published step times beside the planned ones, phase by phase if the source gives phases."""
    rates = fitted_rates()
    table = Table(title="published step times and the planner's, seconds")
    for name in ("run", "phase", "published", "planned", "off by", ""):
        table.add_column(name, justify="left" if name in ("run", "phase", "") else "right")
    uses = {
        FITTED: "rates fitted to it",
        **dict.fromkeys(HELD_OUT, "held out"),
        **dict.fromkeys(ASSUMED, "lengths guessed"),
    }
    for run, use in uses.items():
        planned = predict(run, rates)
        table.add_row(
            run.name,
            "step",
            f"{run.step_s:.1f}",
            f"{planned.total:.1f}",
            f"{planned.total / run.step_s - 1:+.0%}",
            use,
        )
        for phase in ("generate", "logprob", "train", "sync") if run.phases else ():
            wanted, found = getattr(run.phases, phase), getattr(planned, phase)
            if wanted:
                table.add_row("", phase, f"{wanted:.1f}", f"{found:.1f}", f"{found / wanted - 1:+.0%}")
    console.print(table)
    console.print(f"sources: {'; '.join(sorted({run.source for run in uses}))}")


def _teaching_lines(plan: Plan, workload: Workload) -> Iterator[str]:
    """Tell what supervised examples and a teacher add; nothing where there are none."""
    if workload.supervised_lengths:
        yield (
            f"supervised: {workload.supervised_examples} examples of "
            f"{workload.supervised_lengths.mean_total:,.0f} tokens in each of {workload.optimizer_steps} "
            f"optimizer steps, {workload.supervised_tokens:,.0f} tokens per iteration"
        )
    if teacher := workload.teacher:
        turns = {
            "limit": f"at most {teacher.turns:,} turns (selfplay.teacher_turns)",
            "corpus": f"{teacher.turns:,} turns of the corpus",
            "guess": f"{teacher.turns:,} turns, assumed to be those that episodes open on (the corpus is not "
            "here, and selfplay.teacher_turns=0 reads all of it)",
        }[teacher.known_from]
        yield (
            f"teacher: {turns}, in {teacher.views} {'view' if teacher.views == 1 else 'views'} at the start "
            f"of each of {teacher.rounds} rounds"
            + (f", and {teacher.syncs} weight syncs in all" if teacher.syncs else "")
            + f"; over {teacher.iterations} iterations, {workload.teacher_tokens:,.0f} tokens and "
            f"{plan.step.teacher:.1f} s for each"
        )


def _memory_table(plan: Plan, stage: StageMemory) -> Table:
    ranks = (
        f"rank {stage.ranks[0]}"
        if len(stage.ranks) == 1
        else f"ranks {stage.ranks[0]}-{stage.ranks[-1]}, each"
    )
    table = Table(title=f"stage {stage.stage}, {ranks}: GiB", title_justify="left")
    table.add_column("")
    for phase in stage.phases:
        table.add_column(phase, justify="right")
    for kind in (field.name for field in fields(Memory)):
        sizes = [getattr(memory, kind) for memory in stage.phases.values()]
        if any(sizes):
            table.add_row(kind.replace("_", " "), *(_gib(size) if size else "" for size in sizes))
    totals = (memory.total for memory in stage.phases.values())
    table.add_section()
    table.add_row(
        "total",
        *(f"[red]{_gib(total)}[/]" if total > plan.gpu.memory_bytes else _gib(total) for total in totals),
    )
    return table


def _pair_table(pairs: dict[tuple[int, int], int]) -> Table | str:
    if not pairs:
        return "between ranks: nothing, every rank holds what its engine needs"
    if len(pairs) > PAIRS_SHOWN:
        return f"between {len(pairs)} pairs of ranks: `--json` lists them"
    table = Table(
        "from rank", "to rank", "GB", title="direct path, the replicas that differ", title_justify="left"
    )
    for (source, target), size in sorted(pairs.items(), key=lambda entry: (entry[0][1], entry[0][0])):
        table.add_row(str(source), str(target), f"{size / 1e9:.3f}")
    return table


def _step_table(plan: Plan) -> Table:
    table = Table(title="one iteration, seconds (estimate: see --accuracy)", title_justify="left")
    seconds = {phase: value for phase, value in asdict(plan.step).items() if phase != "teacher" or value}
    seconds["total"] = plan.step.total
    for name in (*seconds, "bubble"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.1f}" for value in seconds.values()), f"{plan.bubble:.0%}")
    return table


def _suggestion_table(suggestions: Sequence[Suggestion]) -> Table:
    table = Table("layout", "s/iteration", "peak GiB", "why", title="layouts worth considering")
    for s in suggestions:
        table.add_row(s.plan.layout.label, f"{s.plan.step.total:.1f}", _gib(s.plan.peak_bytes), s.reason)
    return table


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
