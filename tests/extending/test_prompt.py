"""Test a prompt that is changed as docs/extending.md says: every user of prompts asks in the new words."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.rollout.api import GenerationRequest
from selfemo.selfplay import prompts
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.sft import SftExamples
from tests.flywheel.test_flywheel import CONFIG, TRAIN, Run, speak
from tests.helpers.guide import example
from tests.helpers.scripted import LABELS, CharEncoder, turns

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    "Write the next line, by": {"selfemo/selfplay/prompts.py"},
    "does the last line show?": {"selfemo/selfplay/prompts.py", "selfemo/selfplay/views.py"},
    "How does the speaker of the last line feel?": {"selfemo/selfplay/views.py"},
}
"""Beginnings of the instructions, and the files that have them; prompts.py shows them in its docstring."""


@pytest.fixture(autouse=True)
def reworded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the page's function in the place of `responder_text`."""
    names = dict(vars(prompts))
    exec(
        compile(example("selfemo/selfplay/prompts.py, in place of responder_text"), "extending.md", "exec"),
        names,
    )
    monkeypatch.setattr(prompts, "responder_text", names["responder_text"])


def test_it_asks_as_the_page_says() -> None:
    builder = PromptBuilder(CharEncoder(), LABELS, 1, 80)
    asked = CharEncoder().decode(builder.respond(turns("Ann: one", "Bo: two"), "Cy", ["joy", "anger"]))
    assert asked == "Cy feels joy, anger. Write the next line without the word.\n\nAnn: one\nBo: two"


def test_self_play_asks_and_records_in_the_new_words(tmp_path: Path) -> None:
    def answer(prompt: str, request: GenerationRequest) -> str:
        return speak("Write" if " feels " in prompt.split("\n")[0] else prompt, request)

    run = Run(tmp_path / "flywheel.sqlite")
    run.generator.script = answer
    run.iterate(range(1))
    records = list(FlywheelStore(tmp_path / "flywheel.sqlite").find(Filter(role="responder")))
    assert any(record.score > 0 for record in records), "replies are read"
    for record in records:
        asked = CharEncoder().decode(record.prompt_ids)
        expected = f"{record.speaker} feels {', '.join(record.target)}. Write the next line"
        assert asked.startswith(expected)


def test_the_supervised_start_teaches_the_new_words() -> None:
    builder = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    examples = SftExamples(TRAIN, builder, CONFIG, 5, expression_share=1.0, max_length=4000)
    asked = [CharEncoder().decode(e.prompt_ids) for e in map(examples.example, range(8))]
    assert all(". Write the next line without the word.\n\n" in text for text in asked)


@pytest.mark.parametrize("words", WORDS)
def test_the_words_of_a_prompt_stand_in_one_place(words: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for room in ("selfemo", "kernels", "tools")
        for path in (ROOT / room).rglob("*.py")
        if words in path.read_text(encoding="utf-8")
    }
    assert found == WORDS[words]
