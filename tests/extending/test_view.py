"""A view added as docs/extending.md says is named in a configuration, changes the gradient, is recorded,
replayed and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from selfemo.config.load import load_config
from selfemo.config.schema import AlgorithmConfig, RunConfig
from selfemo.flywheel.replay import replay
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.records.reading import read_run
from selfemo.report.page import render
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.views import parse_views, unknown_views, view_named
from tests.flywheel.test_flywheel import Run, speak
from tests.helpers.groups import recognizer_group
from tests.helpers.learning import gradients
from tests.helpers.made_run import CONFIG, PLAY, make_run
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator, turns


def test_a_configuration_and_a_command_may_name_it(transcript: str) -> None:
    config = load_config(None, [f"selfplay.views=[plain, {transcript}]"])
    assert list(unknown_views(config.selfplay, config.sft)) == []
    assert parse_views(f"plain,{transcript}", "--views") == ("plain", transcript)


def test_it_shows_what_the_page_says(transcript: str) -> None:
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    dialogue = turns("Ann: Oh, NO!", "Bo: It's all right.")
    shown = CharEncoder().decode(prompts.recognize(dialogue, view_named(transcript))).splitlines()
    assert shown[2:] == ["Ann: oh no", "> Bo: It's all right."]


def test_it_changes_the_gradient(transcript: str) -> None:
    """The same answers: within one prompt two against two, over two views each of which is of one mind."""
    config = RunConfig(algorithm=AlgorithmConfig(kl_beta=0.0))
    answers = ["joy", "joy", "joy", "anger"]
    one, two = (
        gradients([recognizer_group(answers, None, views=views)], config)
        for views in (["plain"] * 4, ["plain", "plain", transcript, transcript])
    )
    assert any(not torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_records_and_report_name_it_and_a_replay_asks_in_it(transcript: str, tmp_path: Path) -> None:
    path = tmp_path / "flywheel.sqlite"
    run = Run(path, views=("plain", transcript))
    run.iterate(range(1))
    for record in FlywheelStore(path).find(Filter(role="recognizer")):
        assert [candidate.view for candidate in record.candidates] == ["plain"] * 2 + [transcript] * 2
        assert replay(record, ScriptedGenerator(speak)).equal
    config = replace(CONFIG, selfplay=replace(PLAY, views=("plain", transcript)))
    assert f"<td>{transcript}</td>" in render(read_run(make_run(tmp_path / "run", config=config)))


def test_a_run_goes_on_with_it_as_if_it_had_not_stopped(transcript: str, tmp_path: Path) -> None:
    whole, path = Run(tmp_path / "whole.sqlite", views=("plain", transcript)), tmp_path / "parts.sqlite"
    whole.iterate(range(4))
    first = Run(path, views=("plain", transcript))
    first.iterate(range(2))
    first.flywheel.close()
    Run(path, views=("plain", transcript)).iterate(range(1, 4))
    records = [list(FlywheelStore(tmp_path / f"{name}.sqlite").find(Filter())) for name in ("whole", "parts")]
    assert records[0] == records[1]


def test_a_run_that_began_with_one_view_goes_on_with_two(transcript: str, tmp_path: Path) -> None:
    path = tmp_path / "flywheel.sqlite"
    first = Run(path)
    first.iterate(range(2))
    first.flywheel.close()
    Run(path, views=("plain", transcript)).iterate(range(2, 4))
    found = {
        (record.iteration >= 2, record.candidates[-1].view)
        for record in FlywheelStore(path).find(Filter(role="recognizer"))
    }
    assert found == {(False, "plain"), (True, transcript)}
