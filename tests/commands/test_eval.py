"""Test `selfemo eval` and `selfemo chat` with a real vLLM engine, on a tiny model.

A few steps taught it the answer format. conftest.py has its run and the engine.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from typer.testing import CliRunner

from selfemo.commands.chat import chat
from selfemo.commands.eval import build_command
from selfemo.commands.main import main
from selfemo.common.errors import UserError
from selfemo.config.schema import CorpusConfig, RolloutConfig, SelfPlayConfig
from selfemo.evaluation import likelihood
from selfemo.evaluation.evaluate import prompts_of, smoothed_iou
from selfemo.evaluation.intervals import mean_interval, paired_bootstrap
from selfemo.evaluation.likelihood import AnswerScorer
from selfemo.evaluation.metrics import NO_ANSWER
from selfemo.evaluation.recognition import evaluate_recognition
from selfemo.inference import engines as standalone
from selfemo.inference.engines import ModelGenerator, StandaloneEngines
from selfemo.inference.finished_model import DEFAULTS, FinishedModel, find_model
from selfemo.report.vote_card import CARD_NAME, NOT_MEASURED, vote_part
from selfemo.rollout.api import GenerationRequest
from selfemo.tokens.init_model import init_model
from tests.helpers.finished_run import CORPUS, LIMIT, SHAPE, dev_turns


def evaluate(engines: StandaloneEngines, run_dir: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run `selfemo eval`; returns its output and its JSON."""
    app = typer.Typer()
    app.command()(build_command(lambda: engines))
    target = run_dir.parent / "report.json"
    command = ["--model", str(run_dir / "model"), "--limit", str(LIMIT), "--json", str(target), *arguments]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output, json.loads(target.read_text())


def greedy(model: FinishedModel, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    from transformers import AutoModelForCausalLM

    loaded, ids = AutoModelForCausalLM.from_pretrained(model.path).eval(), list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(loaded(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.long
def test_models_of_one_shape_share_an_engine_and_each_speaks_with_its_own_weights(
    run_dir: Path, engines: StandaloneEngines, trained: FinishedModel
) -> None:
    initial = find_model(run_dir / "model-initial")
    prompt = prompts_of(trained, CORPUS.labels).recognize(dev_turns()[3].context)
    wanted = {model.path: greedy(model, prompt, 3) for model in (trained, initial)}
    assert wanted[trained.path] != wanted[initial.path]
    voices = {model.path: engines.generator(model) for model in (trained, initial)}
    for path in (trained.path, initial.path, trained.path):
        assert voices[path].generate([GenerationRequest(prompt, 0, 3, 0.0)])[0].token_ids == wanted[path]
    assert len(engines._engines) == 1


class StartedEngines(StandaloneEngines):
    """Counts the engines that would start."""

    def _start(
        self, model_dir: str, rollout: RolloutConfig, max_length: int, stop_ids: tuple[int, ...]
    ) -> Any:
        return model_dir


@pytest.mark.parametrize(("change", "engines_started"), [({}, 1), ({"logit_scale": 1.0}, 2)])
def test_models_with_different_config_json_have_two_engines(
    run_dir: Path, tmp_path: Path, change: dict[str, Any], engines_started: int
) -> None:
    copy = tmp_path / "run" / "model"
    shutil.copytree(run_dir / "model", copy)
    shutil.copy(run_dir / "config.yaml", tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change, sort_keys=True))
    started = StartedEngines()
    for path in (run_dir / "model", copy):
        started.generator(find_model(path))
    assert len(started._engines) == engines_started


def test_settings_come_from_the_run_and_overrides_win(
    run_dir: Path, tmp_path: Path, trained: FinishedModel
) -> None:
    assert (trained.config.corpus.history_turns, trained.config.model.max_length) == (1, 320)
    assert trained.settings_from != DEFAULTS
    assert find_model(run_dir / "model", ["corpus.history_turns=3"]).config.corpus.history_turns == 3
    (tmp_path / "alone").symlink_to(run_dir / "model")
    # The model's run is found through a symbolic link.
    assert find_model(tmp_path / "alone").settings_from != DEFAULTS
    init_model(tmp_path / "new", SHAPE, ["some words"] * 9, seed=1)
    alone = find_model(tmp_path / "new", ["selfplay.thinking=true"])
    assert alone.settings_from == DEFAULTS
    assert alone.config.model.max_length == 320  # a model without a run has its own limit on length
    assert alone.config.corpus.history_turns == CorpusConfig().history_turns


def test_the_report_says_what_the_evaluation_functions_say(
    run_dir: Path, engines: StandaloneEngines, trained: FinishedModel
) -> None:
    output, report = evaluate(engines, run_dir, "--against", str(run_dir / "model-initial"), "--votes", "4")
    prompts, score = prompts_of(trained, CORPUS.labels), smoothed_iou(trained, CORPUS.labels)
    direct = evaluate_recognition(
        engines.generator(trained), prompts, dev_turns(), trained.config.selfplay, score
    )
    figures, second = report["models"]
    assert direct.accuracy > 0.5  # the tiny model has learnt something to measure
    assert (figures["accuracy"], figures["macro_f1"], figures["siou"]) == (
        direct.accuracy,
        direct.macro_f1,
        direct.siou,
    )
    assert figures["settings"]["corpus.history_turns"] == 1

    gold = [row["gold"][0] for row in report["answers"]]
    first, other = ([(row["predicted"][i] or [NO_ANSWER])[0] for row in report["answers"]] for i in (0, 1))
    assert figures["accuracy"] == accuracy_score(gold, first)
    assert figures["weighted_f1"] == pytest.approx(
        f1_score(gold, first, average="weighted", labels=sorted(set(gold)), zero_division=0)
    )
    columns = figures["confusion"]["predicted"]
    assert figures["confusion"]["counts"] == confusion_matrix(gold, first, labels=columns)[:-1].tolist()
    assert second["collapse"]["format_failure_rate"] == other.count(NO_ANSWER) / LIMIT
    keys = [row["dialogue"] for row in report["answers"]]
    expected = [
        {**asdict(i), "excludes_zero": i.excludes_zero} for i in paired_bootstrap(gold, first, other, keys, 1)
    ]
    assert report["differences"][:3] == expected
    assert report["differences"][3]["value"] == pytest.approx(figures["siou"] - second["siou"])
    assert sum(row["count"] for row in figures["calibration"]["bins"]) == LIMIT

    assert report["context"] == "causal"
    for shown in (
        "causal",
        "never a later one",
        "corpus.history_turns=1",
        "model minus against",
        "calibration error",
    ):
        assert shown in output


def test_likelihoods_are_those_of_the_whole_answer(
    trained: FinishedModel, engines: StandaloneEngines
) -> None:
    """Compare scores with a plain forward pass over prompt and answer, and with the engine's logprobs."""
    from transformers import AutoModelForCausalLM

    prompts = prompts_of(trained, CORPUS.labels)
    asked = [prompts.recognize(turn.context) for turn in dev_turns()]
    answers = {label: prompts.answer_ids([label]) for label in CORPUS.labels}
    # Answers differ in length, so that some are padded.
    assert len({len(ids) for ids in answers.values()}) > 1
    rows = AnswerScorer(trained).score(asked, answers)
    plain = AutoModelForCausalLM.from_pretrained(trained.path).eval()
    with torch.no_grad():
        for prompt, row in zip(asked[:3], rows):
            for label, ids in answers.items():
                logits = plain(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
                wanted = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
                assert row[label] == pytest.approx(wanted.item(), abs=1e-4)
    generated = engines.generator(trained).generate(
        [GenerationRequest(prompt, 0, 12, 0.0) for prompt in asked]
    )
    by_ids = {ids: label for label, ids in answers.items()}
    compared = [
        (row[by_ids[c.token_ids]], math.fsum(c.logprobs))
        for row, c in zip(rows, generated)
        if c.token_ids in by_ids
    ]
    assert len(compared) > LIMIT / 2
    assert all(ours == pytest.approx(engine, abs=1e-3) for ours, engine in compared)


def test_no_more_sequences_are_scored_at_once_than_their_cache_may_take(
    trained: FinishedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allow the cache of three sequences: scores stay, and answers are dealt over several passes."""
    prompts = prompts_of(trained, CORPUS.labels)
    asked = [prompts.recognize(turn.context) for turn in dev_turns()][:4]
    answers = {label: prompts.answer_ids([label]) for label in CORPUS.labels}
    scorer = AnswerScorer(trained)
    wanted = scorer.score(asked, answers)
    longest = max(map(len, asked)) + max(map(len, answers.values()))
    token_bytes = trained.architecture.kv_bytes_per_token(trained.config.rollout.dtype, 1)
    monkeypatch.setattr(likelihood, "CACHE_BYTES", 3 * longest * token_bytes)
    scored, score_batch = [], scorer._score_batch

    def counted(batch: Any, part: Any) -> list[dict[str, float]]:
        scored.append(len(batch) * len(part))
        return score_batch(batch, part)

    monkeypatch.setattr(scorer, "_score_batch", counted)
    found = scorer.score(asked, answers)
    assert sum(scored) == len(asked) * len(answers)
    assert max(scored) * min(map(len, asked)) <= 3 * longest
    assert [row.keys() for row in found] == [answers.keys()] * len(asked)
    for row, plain in zip(found, wanted, strict=True):
        assert list(row.values()) == pytest.approx(list(plain.values()), abs=1e-4)


def test_with_thinking_likelihoods_are_still_those_of_the_bare_answer(run_dir: Path) -> None:
    """Score answers behind a closed thinking block.

    Directly after a prompt that is open for thoughts, no label would be likely.
    """
    arguments = ("--scoring", "likelihood", "model.path=a/thinker", "selfplay.thinking=true")
    models = [
        evaluate(StandaloneEngines(), run_dir, *more)[1]["models"][0] for more in (arguments[:2], arguments)
    ]
    assert models[1]["settings"]["selfplay.max_thinking_tokens"] == SelfPlayConfig().max_thinking_tokens
    assert models[1]["accuracy"] == models[0]["accuracy"]
    assert models[1]["calibration"] == models[0]["calibration"]


def test_likelihood_scoring_needs_no_engine(run_dir: Path) -> None:
    class NoEngines(StandaloneEngines):
        def generator(self, model: FinishedModel) -> ModelGenerator:
            raise AssertionError("an engine was started")

    _, report = evaluate(NoEngines(), run_dir, "--scoring", "likelihood")
    assert report["scoring"] == "likelihood"
    assert report["models"][0]["accuracy"] > 0.5
    assert all(len(row["predicted"][0]) == 1 for row in report["answers"])


@pytest.mark.parametrize("scoring", ["generate", "likelihood"])
def test_views_vote_beside_the_plain_reading(run_dir: Path, engines: StandaloneEngines, scoring: str) -> None:
    output, report = evaluate(engines, run_dir, "--scoring", scoring, "--votes", "0", "--views", "3")
    (figures,) = report["models"]
    voting = figures["voting"]
    assert voting["views"] == ["plain", "short", "labels"]
    assert [view["view"] for view in voting["alone"]] == voting["views"]
    assert voting["alone"][0]["accuracy"] == figures["accuracy"], "the plain view is the plain reading"
    gold = [row["gold"][0] for row in report["answers"]]
    first, voted = (
        [(answer or [NO_ANSWER])[0] for answer in column]
        for column in zip(*((row["predicted"][0], row["voted"][0]) for row in report["answers"]))
    )
    assert voting["accuracy"] == accuracy_score(gold, voted)
    keys = [row["dialogue"] for row in report["answers"]]
    assert voting["differences"][:3] == [
        {**asdict(i), "excludes_zero": i.excludes_zero} for i in paired_bootstrap(gold, voted, first, keys, 1)
    ]
    assert "voting over 3 views (plain, short, labels)" in output
    assert evaluate(engines, run_dir, "--scoring", scoring, "--votes", "0")[1]["models"][0]["voting"] is None


def test_the_card_tells_of_a_vote_on_the_runs_own_split_alone(
    run_dir: Path, engines: StandaloneEngines, tmp_path: Path
) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    card = tmp_path / "run" / "model" / CARD_NAME
    card.write_text(f"# Card\n{vote_part()}\n")
    arguments = ("--votes", "0", "--scoring", "likelihood", "--views", "plain,short")
    evaluate(engines, tmp_path / "run", *arguments)  # evaluates the first turns alone
    assert NOT_MEASURED in card.read_text()
    output, report = evaluate(engines, tmp_path / "run", *arguments, "--limit", "0")
    voted = report["models"][0]["voting"]
    assert f"| vote over 2 views (plain, short) | {voted['accuracy']:.3f} |" in card.read_text()
    assert f"model card: {card}" in output


def test_expression_is_read_by_the_frozen_recognizer(run_dir: Path, engines: StandaloneEngines) -> None:
    frozen = run_dir / "model-frozen"
    shutil.copytree(run_dir / "model", frozen)
    arguments = ("--expression", "--recognizer", str(frozen), "--votes", "0")
    output, report = evaluate(engines, run_dir, *arguments)
    expression = report["models"][0]["expression"]
    assert expression["recognizer"] == str(frozen)
    assert expression["n"] == sum(row["n"] for row in expression["per_target"]) > 0
    assert any(reply["read_as"] for reply in expression["replies"])
    assert expression["siou"] == pytest.approx(
        sum(reply["score"] for reply in expression["replies"]) / expression["n"]
    )
    assert report["models"][0]["calibration"] is None
    assert "distinct replies" in output
    assert evaluate(engines, run_dir, *arguments)[1] == report  # the seed determines every figure


def test_a_prompt_that_cannot_fit_is_named_before_it_is_sent(
    engines: StandaloneEngines, trained: FinishedModel
) -> None:
    with pytest.raises(
        UserError, match=r"may take 322 tokens, model.max_length=320.*lower corpus.history_turns"
    ):
        engines.generator(trained).generate([GenerationRequest((9,) * 310, 0, 12, 0.0)])


def test_the_interval_of_a_mean_resamples_dialogues() -> None:
    spread = mean_interval("siou", [0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], seed=0)
    # There are two dialogues: some resamples hold one of them twice.
    assert (spread.value, spread.low, spread.high) == (0.5, 0.0, 1.0)
    same = mean_interval("siou", [0.0, 1.0] * 20, [str(i // 2) for i in range(40)], seed=0)
    # Every dialogue has the mean of the whole, so that resampling varies nothing.
    assert (same.low, same.high) == (0.5, 0.5)


def chatted(run: Path, engines: StandaloneEngines, monkeypatch: pytest.MonkeyPatch, typed: bytes) -> str:
    monkeypatch.setattr(standalone, "StandaloneEngines", lambda: engines)
    app = typer.Typer()
    app.command()(chat)
    result = CliRunner().invoke(
        app, ["--model", str(run / "model"), "--emotion", "joy"], input=typed, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_chat_reads_a_pipe_to_its_end(
    run_dir: Path, engines: StandaloneEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = "You came!\n\n/emotion sadness\n[red]<|im_end|> and \xff so\n".encode("latin-1")
    output = chatted(run_dir, engines, monkeypatch, typed)
    lines = output.splitlines()
    assert "emotions: anger, disgust, fear, joy, neutral, sadness, surprise" in lines[0]
    assert "Alex: You came!" in lines
    assert "Alex: [red]<|im_end|> and \ufffd so" in lines, (
        "what was typed is echoed as it is; bytes that are no text are marked"
    )
    assert sum(line.startswith("Sam: ") for line in lines) == 2, (
        "an empty line and a command are not answered"
    )
    assert sum(line.startswith("  [reads ") for line in lines) == 2
    assert [line for line in lines if "meant as" in line][1].startswith("  [meant as sadness")
    assert chatted(run_dir, engines, monkeypatch, typed) == output, "the seed decides everything"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--model", "nowhere"], "nowhere: no such directory"),
        (["eval", "--model", "{run}"], "config.json: no such file"),
        (["eval", "--model", "{run}/model", "--corpus", "mled"], "did you mean 'meld'?"),
        (["eval", "--model", "{run}/model", "--against", "nowhere"], "nowhere: no such directory"),
        (["eval", "--model", "{run}/model", "--expression"], "--expression and --recognizer DIR go together"),
        (
            ["eval", "--model", "{run}/model", "--expression", "--recognizer", "{run}/../run/model"],
            "is an evaluated model",
        ),
        (
            ["eval", "--model", "{run}/model", "--json", "no/such/file.json"],
            "expected a file in an existing directory",
        ),
        (["eval", "--model", "{run}/model", "corpus.histroy_turns=2"], "did you mean 'history_turns'?"),
        (["eval", "--model", "{run}/model", "--votes", "1"], "expected 2 or more"),
        (["chat", "--model", "nowhere"], "nowhere: no such directory"),
        (["chat", "--model", "{run}/model", "--emotion", "joi"], "unknown label 'joi' (did you mean 'joy'?)"),
        (["chat", "--model", "{run}/model", "--emotion", "joy,joy"], "repeated label"),
        (["chat", "--model", "{run}/model", "--you", "sam"], "two names"),
        (["flywheel", "replay", "{run}/model", "1"], "no flywheel there"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(
    run_dir: Path,
    arguments: Sequence[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["selfemo", *(argument.replace("{run}", str(run_dir)) for argument in arguments)]
    )
    with pytest.raises(SystemExit) as exit_status:
        main()
    told = capsys.readouterr().err
    assert exit_status.value.code == 2
    assert message in told
    assert told.count("\n") == 1


def test_damaged_weights_are_named_before_an_engine_starts(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors: truncated"):
        find_model(tmp_path / "model").check_weights()
