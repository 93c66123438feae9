"""Measures what an iteration costs: a self-play rollout beside plain vLLM, and a whole iteration beside TRL's GRPOTrainer.

    python tools/bench_iteration.py                         # both, on this machine
    python tools/bench_iteration.py --parts rollout         # needs nothing beyond the project
    python tools/bench_iteration.py --parts trl             # needs requirements/bench.txt
    ... --json FILE                                         # the same, for a machine to read

Both sides of a comparison run in this process on the same threads, in turns, so that whatever else the machine does slows both alike;
the figure is the median over rounds. Nothing is downloaded: the model is initialised here, the dialogues are the bundled corpus.

rollout   selfplay.play (prompts, engine calls, parsing, gates, votes) against LLM.generate
          of the very prompts and lengths that it asked for; beside it with the seeds and logprobs that self-play needs, and in one call
trl       rollout, rewards, SELF-GRPO step and weight sync of the trainer's own loop, against GRPOTrainer's step on the same prompts,
          G, completion cap, loss (GRPO), KL and optimizer rate, in fp32, without gradient checkpointing and with nothing logged
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from selfemo.config.schema import RunConfig
    from selfemo.rollout.api import Completion, GenerationRequest, Generator
    from selfemo.selfplay.records import Opening
    from selfemo.trainer import Trainer

    Call = list[tuple[GenerationRequest, int]]
    """Requests of one generator call, and the tokens each was answered with."""

ROLLOUT_BAR = 0.9
"""Least throughput of a self-play rollout, of plain generation's."""
TRL_BAR = 2.0
"""Least speed of an iteration, of TRL's."""
LEARNING_RATE = 1e-5
"""Low: random weights must not drift to short answers on one side alone."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 if a bar is missed."""
    options = _parser().parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(
        options.threads
    )  # before torch is imported: vLLM makes torch.set_num_threads a no-op
    terminal = os.fdopen(
        os.dup(1), "w"
    )  # libraries print; the trainer's terminal sends file descriptor 1 to a log
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
    if options.json:
        temporary = options.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(options.json)
    return int(any(document[part]["ratio"] < document[part]["bar"] for part in options.parts))


@contextmanager
def _failures_told() -> Iterator[None]:
    """A traceback goes to the terminal, although the trainer's log has file descriptor 2."""
    kept = os.fdopen(os.dup(2), "w", buffering=1)
    try:
        yield
    except BaseException:
        sys.stderr = kept
        raise


def bench_rollout(options: argparse.Namespace, run_dir: Path) -> dict[str, Any]:
    """A self-play rollout with both roles, against plain generation of what it asks for: phase by phase, and all in one call."""
    trainer = _trainer(_config(options, run_dir, turns=options.turns))
    listener = _Listener(trainer.system.generator)
    seconds: dict[str, list[float]] = {
        "self-play": [],
        "plain": [],
        "plain, seeded": [],
        "plain, one call": [],
    }
    tokens = requests = 0
    for round_number in range(options.warmup + options.rounds):
        seeds = trainer.seed_pool.draw(round_number)
        listener.calls.clear()
        replace(trainer.selfplay, generator=listener).play(seeds, round_number)
        calls = [list(call) for call in listener.calls]
        sides: list[tuple[str, Callable[[], Any]]] = [
            ("self-play", partial(trainer.selfplay.play, seeds, round_number)),
            ("plain", partial(_plain, trainer, calls)),
            ("plain, seeded", partial(_plain, trainer, calls, seeded=True)),
            ("plain, one call", partial(_plain, trainer, [[item for call in calls for item in call]])),
        ]
        shift = round_number % len(sides)
        for name, side in sides[shift:] + sides[:shift]:
            _llm(trainer).reset_prefix_cache()
            started = time.perf_counter()
            side()
            if round_number >= options.warmup:
                seconds[name].append(time.perf_counter() - started)
        if round_number >= options.warmup:
            requests += sum(len(call) for call in calls)
            tokens += sum(length for call in calls for _, length in call)
    return {
        "seeds": options.prompts,
        "views": options.views,
        "turns": options.turns,
        "rounds": options.rounds,
        "requests_per_round": requests / options.rounds,
        "tokens_per_round": tokens / options.rounds,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        **_ratios(seconds["plain"], seconds["self-play"], ROLLOUT_BAR),
    }


def bench_trl(options: argparse.Namespace, run_dir: Path) -> dict[str, Any]:
    """Iterations of both, in turns: TRL's training loop hands over after each of its steps."""
    try:
        import datasets
        import trl
    except ImportError as error:
        raise SystemExit(
            f"bench_iteration: {error.name} is not installed: pip install --no-deps -r requirements/bench.txt"
        ) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from selfemo.emotions.answer import parse_answer
    from selfemo.grpo.advantages import loss_config
    from selfemo.selfplay.prompts import recognizer_text

    config = _config(options, run_dir, turns=0)
    count = options.warmup + options.rounds
    model_dir, batches, labels = _prompts(config, count)
    seeds = [seed for batch in batches for seed in batch]
    rows = [
        {
            "prompt": [{"role": "user", "content": recognizer_text(s.turns, labels)}],
            "gold": s.turns[-1].labels,
        }
        for s in seeds
    ]
    loss = loss_config(config)
    settings = trl.GRPOConfig(
        output_dir=str(run_dir.with_name("trl-output")),
        max_steps=count,
        per_device_train_batch_size=options.prompts * options.group,
        num_generations=options.group,
        max_completion_length=options.tokens,
        chat_template_kwargs={"enable_thinking": False},
        shuffle_dataset=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=config.train.weight_decay,
        max_grad_norm=config.train.clip_grad,
        temperature=config.selfplay.temperature,
        loss_type="grpo",
        beta=loss.kl_beta,
        epsilon=loss.clip_low,
        epsilon_high=loss.clip_high,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=config.seed,
    )
    ours: list[float] = []
    theirs: list[float] = []
    lengths: list[float] = []

    def reward(
        completions: list[Any], gold: list[list[str]], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        lengths.append(statistics.mean(map(len, completion_ids)))
        readings = [parse_answer(c[0]["content"], labels) for c in completions]
        return [
            trainer.rewards.score.of_reading(reading, tuple(target))
            for reading, target in zip(readings, gold, strict=True)
        ]

    class InTurns(TrainerCallback):
        """Takes TRL's time, then runs and times an iteration of ours."""

        mark = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.mark = (
                self.mark or time.perf_counter()
            )  # the first step; later ones are counted from the end of our iteration

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ended = time.perf_counter()
            theirs.append(ended - self.mark)
            trainer.iterate(len(ours))
            self.mark = time.perf_counter()
            ours.append(self.mark - ended)

    # TRL first: its accelerator would otherwise find our process group and wrap the model for it.
    peer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(model_dir), dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(str(model_dir)),
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        callbacks=[InTurns()],
    )
    trainer = _trainer(config)
    for seed, row in zip(seeds, rows, strict=True):
        ids = peer.processing_class.apply_chat_template(
            row["prompt"], add_generation_prompt=True, enable_thinking=False, return_dict=False
        )
        if tuple(ids) != trainer.system.prompts.recognize(seed.turns):
            raise RuntimeError(f"seed {seed.index}: the two sides would be given different prompts")
    trainer.state.reference = trainer.system.learner.snapshot()
    trainer.system.learner.begin_stage()
    peer.train()
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    iterations = [record for record in records if record["event"] == "iteration"][options.warmup :]
    phases = iterations[0]["seconds"]
    return {
        "prompts": options.prompts,
        "group": options.group,
        "views": options.views,
        "tokens_cap": options.tokens,
        "rounds": options.rounds,
        "trl": trl.__version__,
        "mean_completion_tokens": {
            "selfemo": statistics.mean(record["tokens"] / record["samples"] for record in iterations),
            "trl": statistics.mean(lengths[options.warmup :]),
        },
        "seconds": {
            "selfemo": statistics.median(ours[options.warmup :]),
            "trl": statistics.median(theirs[options.warmup :]),
        },
        "phases": {
            name: statistics.median(record["seconds"][name] for record in iterations) for name in phases
        },
        **_ratios(theirs[options.warmup :], ours[options.warmup :], TRL_BAR),
    }


class _Listener:
    """A generator that notes what it is asked for, and how long the answers are."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.calls: list[Call] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        completions = self._generator.generate(requests)
        self.calls.append(list(zip(requests, (len(c.token_ids) for c in completions), strict=True)))
        return completions


def _plain(trainer: Trainer, calls: Sequence[Call], seeded: bool = False) -> None:
    """vLLM alone: token ids in, as many ids out; no seeds and no logprobs unless `seeded`, which asks for what self-play needs."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for call in calls:
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request, _ in call]
        params = [
            SamplingParams(
                temperature=request.temperature,
                max_tokens=length,
                min_tokens=length,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                seed=request.seed if seeded and request.temperature > 0 else None,
                logprobs=0 if seeded else None,
            )
            for request, length in call
        ]
        _llm(trainer).generate(prompts, params, use_tqdm=False)


def _llm(trainer: Trainer) -> Any:
    engine: Any = trainer.system.engine
    return engine._llm


def _config(options: argparse.Namespace, run_dir: Path, turns: int) -> RunConfig:
    """The default configuration with the sizes asked for."""
    from selfemo.config.load import load_config
    from selfemo.selfplay.views import view_names

    return load_config(
        None,
        [
            f"output_dir={run_dir}",
            "corpus.name=everyday",
            "corpus.history_turns=2",
            f"selfplay.seeds_per_iteration={options.prompts}",
            f"selfplay.turns={turns}",
            f"selfplay.recognizer_group_size={options.group}",
            f"selfplay.views=[{', '.join(view_names()[: options.views])}]",
            f"selfplay.max_answer_tokens={options.tokens if turns == 0 else 12}",
            f"selfplay.max_utterance_tokens={options.tokens}",
            "selfplay.real_seed_share=1.0",
            "algorithm.loss=grpo",  # every sample is trained on, as in TRL; SELF-GRPO would skip groups that rank nothing
            f"train.learning_rate={LEARNING_RATE}",
            "train.max_tokens_per_microbatch=8192",
        ],
    )


def _trainer(config: RunConfig) -> Trainer:
    """The trainer of a run that has just started: random weights, sent to the engine."""
    from selfemo.inference.engines import join_world_of_one
    from selfemo.process.stop import StopSignals
    from selfemo.process.terminal import Terminal
    from selfemo.records.directory import RunDirectory
    from selfemo.run.journal import Journal
    from selfemo.run.stoppable import StopRequest
    from selfemo.system import build_system, join_world, load_run_corpus
    from selfemo.trainer import Trainer

    run = RunDirectory.claim(config)
    terminal = Terminal(True, run.root, 0)
    join_world_of_one("gloo")  # needs no port
    world = join_world(config)
    system = build_system(config, world, run, load_run_corpus(config))
    stop = StopRequest(world.device.torch_device, StopSignals())
    trainer = Trainer(config, system, run, Journal(config, run, terminal, world), stop)
    trainer.sync()
    return trainer


def _prompts(config: RunConfig, iterations: int) -> tuple[Path, list[list[Opening]], tuple[str, ...]]:
    """The run's initial model, the seeds of its first iterations, and the label set."""
    from selfemo.records.directory import RunDirectory
    from selfemo.selfplay.openings import OpeningPool
    from selfemo.system import INITIAL_MODEL, load_run_corpus, tokenizer_texts
    from selfemo.tokens.init_model import init_model

    corpus = load_run_corpus(config)
    run = RunDirectory.claim(config)
    model_dir = init_model(run.path(INITIAL_MODEL), config.model, tokenizer_texts(corpus), config.seed)
    pool = OpeningPool(corpus, config.selfplay, config.seed, config.corpus.history_turns)
    return model_dir, [pool.draw(iteration) for iteration in range(iterations)], corpus.labels


def _ratios(slower: Sequence[float], ours: Sequence[float], bar: float) -> dict[str, float]:
    """Their seconds over ours, round by round: the median, the extremes and the bar."""
    ratios = [theirs / mine for theirs, mine in zip(slower, ours, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "bar": bar,
    }


def _rollout_table(result: dict[str, Any]) -> Table:
    title = (
        f"Self-play rollout: {result['seeds']} episodes x {result['turns']} turns, {result['views']} views, "
        f"{result['requests_per_round']:.0f} requests and {result['tokens_per_round']:.0f} tokens a round, "
        f"median of {result['rounds']} rounds"
    )
    table = Table("", "seconds", "tokens/s", title=title, title_justify="left")
    for name, seconds in result["seconds"].items():
        table.add_row(name, f"{seconds:.3f}", f"{result['tokens_per_round'] / seconds:.0f}")
    table.add_row("self-play / plain", *_verdict(result))
    return table


def _trl_table(result: dict[str, Any]) -> Table:
    lengths = result["mean_completion_tokens"]
    groups = f"G {result['group']} over {result['views']} views"
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


def _verdict(result: dict[str, Any]) -> tuple[str, str]:
    verdict = "holds" if result["ratio"] >= result["bar"] else "MISSED"
    return (
        f"{result['ratio']:.2f} ({result['ratio_low']:.2f} to {result['ratio_high']:.2f})",
        f"bar {result['bar']}: {verdict}",
    )


def _machine(threads: int) -> str:
    import psutil

    memory_gib = round(psutil.virtual_memory().total / 2**30)
    return f"{platform.machine()}, {os.cpu_count()} cores, {memory_gib} GiB, {threads} threads, Python {platform.python_version()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=["rollout", "trl"], default=["rollout", "trl"])
    parser.add_argument("--prompts", type=int, default=8, help="dialogues per iteration (default 8)")
    parser.add_argument("--group", type=int, default=8, help="G, samples per prompt (default 8)")
    parser.add_argument(
        "--views", type=int, default=1, help="V, prompts of our recognizer groups (default 1); TRL's keep one"
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
