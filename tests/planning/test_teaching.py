"""Test that a plan counts the supervised examples of every step, and the teacher's reading of every round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from selfemo.commands.plan import plan
from selfemo.config.layout import Layout
from selfemo.config.schema import (
    AlgorithmConfig,
    FlywheelConfig,
    RolloutConfig,
    RunConfig,
    SelfPlayConfig,
    SftConfig,
    TrainConfig,
)
from selfemo.models.architecture import architecture_by_name
from selfemo.planning.hardware import GPUS
from selfemo.planning.memory import Memory
from selfemo.planning.plan import Plan, make_plan
from selfemo.planning.steptime import bubble_share, passes, supervised_pass
from selfemo.planning.workload import Lengths, Workload, workload_of
from selfemo.selfplay.teacher import read_turns
from tests.selfplay.test_teacher import CONFIG as TAUGHT
from tests.selfplay.test_teacher import parts

QWEN, H100 = architecture_by_name("qwen3-0.6b"), GPUS["h100-80g"]
SUPERVISED = AlgorithmConfig(supervised_weight=0.1, supervised_batch_size=10, updates_per_rollout=3)
CONFIG = RunConfig(
    iterations=8,
    selfplay=SelfPlayConfig(
        views=("plain", "short", "labels"), teacher="round_start", teacher_turns=50, rounds=2
    ),
    sft=SftConfig(expression_share=0.2),
    algorithm=SUPERVISED,
    rollout=RolloutConfig(dtype="bfloat16", kv_cache_bytes=4_000_000_000),
    train=TrainConfig(dtype="bfloat16"),
)


def work(config: RunConfig = CONFIG, turns: int | None = None) -> Workload:
    """Describe the work for means of 100, 5 and 20 tokens: prompt, answer and utterance."""
    return workload_of(config, 100, 5, 20, turns)


def planned(config: RunConfig, layout: Layout, workload: Workload | None = None) -> Plan:
    return make_plan(config, QWEN, layout, workload or work(config), H100)


def with_teacher(**fields: object) -> RunConfig:
    return replace(CONFIG, selfplay=replace(CONFIG.selfplay, **fields))  # type: ignore[arg-type]


def test_without_weight_and_teacher_a_plan_is_that_of_rollouts_alone() -> None:
    """Settings that then have no effect must not reach the plan."""
    plain = replace(CONFIG, algorithm=AlgorithmConfig(updates_per_rollout=3), selfplay=SelfPlayConfig())
    idle = replace(
        plain,
        algorithm=replace(plain.algorithm, supervised_batch_size=999),
        selfplay=replace(plain.selfplay, teacher_turns=999),
    )
    workload = work(plain)
    assert workload == work(idle, turns=7)
    assert (workload.supervised_tokens, workload.teacher_tokens) == (0, 0)
    assert workload.train_tokens == workload.trained_samples * workload.lengths.mean_total
    assert planned(plain, Layout()).step.teacher == 0


def test_supervised_tokens_by_hand() -> None:
    """10 examples in each of 3 steps, a fifth of them replies: 100 + (0.8 * 5 + 0.2 * 20) tokens."""
    workload = work()
    assert workload.supervised_tokens == pytest.approx(3 * 10 * 108)
    rollouts = work(replace(CONFIG, algorithm=replace(SUPERVISED, supervised_weight=0.0)))
    assert workload.train_tokens - rollouts.train_tokens == pytest.approx(3 * 10 * 108)
    # Half from the flywheel, whose kept replies are half to be read: 0.5 * 0.2 + 0.5 * 0.6 / 2 are replies.
    taught = replace(CONFIG, flywheel=FlywheelConfig(teach_share=0.5, teach_replies=0.6))
    assert work(taught).supervised_tokens == pytest.approx(3 * 10 * (100 + 0.75 * 5 + 0.25 * 20))
    for field in ("supervised_batch_size", "updates_per_rollout"):
        doubled = replace(SUPERVISED, **{field: 2 * getattr(SUPERVISED, field)})
        assert work(replace(CONFIG, algorithm=doubled)).supervised_tokens == pytest.approx(2 * 3 * 10 * 108)


def test_supervised_answers_hold_no_thoughts() -> None:
    thinking = with_teacher(thinking=True, max_thinking_tokens=1000)
    lengths = workload_of(thinking, 100, 700, 20).supervised_lengths
    assert lengths is not None
    assert lengths.mean_completion < 20


@pytest.mark.parametrize("layout", [Layout(1, 4), Layout(1, 4, pipeline=2, virtual_pipeline=2)])
def test_supervised_examples_are_packed_under_the_same_cap(layout: Layout) -> None:
    workload = replace(work(), supervised_examples=400, microbatch_tokens=5000)
    found, rollouts = supervised_pass(workload, layout), passes(workload, layout)[0]
    assert found.tokens <= 5000
    assert found.microbatches * found.tokens * layout.data >= 400 * 108 - 1e-6
    assert found.microbatches % layout.pipeline == 0 or layout.virtual_pipeline == 1
    if layout.virtual_pipeline > 1:
        assert found.tokens >= rollouts.tokens, "the interleaved schedule has one shape"


def test_examples_train_as_long_as_samples_of_their_length() -> None:
    """Both kinds run through one schedule: 32 samples and 32 examples are 64 samples, in every part."""
    lengths = Lengths(100, 28, 40)
    rollouts = replace(
        work(replace(CONFIG, selfplay=SelfPlayConfig())),
        train_samples=64,
        lengths=lengths,
        optimizer_steps=1,
        microbatch_tokens=8 * 128,
        supervised_examples=0,
        supervised_lengths=None,
    )
    mixed = replace(rollouts, train_samples=32, supervised_examples=32, supervised_lengths=lengths)
    for layout in (Layout(), Layout(1, 2, pipeline=2)):
        whole, parts_of_it = (planned(CONFIG, layout, workload) for workload in (rollouts, mixed))
        assert parts_of_it.step.train == pytest.approx(whole.step.train)
        assert bubble_share(mixed, layout) == pytest.approx(bubble_share(rollouts, layout))
        assert mixed.train_tokens == rollouts.train_tokens
        # passes of the reference and of the old policy read the samples alone
        assert parts_of_it.step.logprob < whole.step.logprob


def test_memory_grows_where_examples_fill_the_pipeline_and_nowhere_else() -> None:
    """One stage holds one micro-batch whatever follows; the first of four holds as many as there are."""

    def peak(layout: Layout, examples: int) -> Memory:
        workload = replace(work(), supervised_examples=examples, microbatch_tokens=200_000)
        assert passes(workload, layout)[0].microbatches == 1
        return planned(CONFIG, layout, workload).stages[0].phases["train"]

    assert peak(Layout(), 1) == peak(Layout(), 10_000)
    one, many = (peak(Layout(1, 4, pipeline=4), examples) for examples in (1, 10_000))
    assert many.activations == 2 * one.activations
    assert replace(many, activations=0) == replace(one, activations=0)


def test_a_further_round_holds_two_references() -> None:
    phases = planned(CONFIG, Layout()).stages[0].phases
    assert phases["round"] == replace(phases["rollout"], reference=2 * phases["rollout"].reference)
    assert "round" not in planned(with_teacher(rounds=1), Layout()).stages[0].phases


def test_the_teachers_call_is_the_one_that_it_makes() -> None:
    play, pool, _ = parts()
    read_turns(play, pool.unlabelled(range(2), 0), 0)
    (made,) = play.generator.calls  # type: ignore[attr-defined]
    call = workload_of(RunConfig(selfplay=TAUGHT), unlabelled_turns=10).teacher_call
    assert call is not None
    assert call.samples == call.groups == len(made) == len({request.prompt_ids for request in made})
    assert call.lengths.max_completion == made[0].max_tokens


def test_teacher_tokens_by_hand() -> None:
    """50 turns in 3 views, answers of 5 tokens, in 2 rounds over 8 iterations."""
    assert work().teacher_tokens == pytest.approx(50 * 3 * 5 * 2 / 8)
    own = work(with_teacher(teacher="policy"))
    assert work().generated_tokens - own.generated_tokens == pytest.approx(50 * 3 * 5 * 2 / 8)
    tokens = [work(with_teacher(views=CONFIG.selfplay.views[:count])).teacher_tokens for count in (1, 2, 3)]
    assert tokens == pytest.approx([tokens[0], 2 * tokens[0], 3 * tokens[0]])
    assert work(with_teacher(rounds=4)).teacher_tokens == pytest.approx(2 * work().teacher_tokens)
    assert work(replace(CONFIG, iterations=0)).teacher is None


def test_an_average_is_sent_to_the_engines_and_the_policy_after_it() -> None:
    """Twice in every round but the first, where the average is the policy."""
    start, average = (
        planned(with_teacher(teacher=kind, rounds=3), Layout(1, 2, tensor=2))
        for kind in ("round_start", "average")
    )
    assert average.step.teacher - start.step.teacher == pytest.approx(2 * 2 / 8 * start.step.sync)
    assert start.step.total - start.step.teacher == pytest.approx(
        planned(with_teacher(teacher="policy", rounds=3), Layout(1, 2, tensor=2)).step.total
    )
    twice = planned(with_teacher(rounds=6), Layout(1, 2, tensor=2))
    assert twice.step.teacher == pytest.approx(2 * start.step.teacher)
    assert start.step.teacher > 0


@pytest.mark.parametrize(
    ("limit", "turns_of_the_corpus", "turns", "known_from"),
    [
        (50, None, 50, "limit"),
        (50, 30, 30, "corpus"),
        (0, 30, 30, "corpus"),
        (0, None, 16 * 8 // 2, "guess"),
    ],
)
def test_turns_are_those_of_the_corpus_up_to_the_limit(
    limit: int, turns_of_the_corpus: int | None, turns: int, known_from: str
) -> None:
    teacher = work(with_teacher(teacher_turns=limit), turns_of_the_corpus).teacher
    assert teacher is not None
    assert (teacher.turns, teacher.known_from) == (turns, known_from)


def _run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(plan)
    small = ["--model", "qwen3-0.6b", "--gpus-per-node", "1", "rollout.kv_cache_bytes=4000000000"]
    result = CliRunner().invoke(app, [*small, *arguments], catch_exceptions=False)
    return result.stdout


def test_the_plan_names_what_teaches_only_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = _run()
    assert "supervised" not in plain
    assert "teacher" not in plain
    several = ["iterations=6", "selfplay.rounds=2", "selfplay.teacher=average"]
    everyday = ["corpus.name=everyday", "corpus.labelled_share=0.5", *several]
    text = _run(*everyday, "selfplay.teacher_turns=8", "algorithm.supervised_weight=1")
    assert max(map(len, text.splitlines())) <= 80
    told = " ".join(text.split())
    assert "supervised: 16 examples of" in told
    assert "at most 8 turns (selfplay.teacher_turns), in 1 view at the start of each of 2 rounds" in told
    assert "2 weight syncs in all; over 6 iterations" in told
    report = json.loads(_run(*everyday, "--json"))
    assert report["workload"]["teacher"]["known_from"] == "corpus"
    assert report["workload"]["teacher_tokens"] > 0
    monkeypatch.setenv("SELFEMO_DATA", str(tmp_path))
    told = " ".join(_run("corpus.name=meld", *several).split())
    assert "48 turns, assumed to be those that episodes open on (the corpus is not here" in told
