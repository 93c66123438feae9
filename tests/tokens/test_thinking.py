"""Test chat templates that open a thinking block themselves, always or if asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from selfemo.common.errors import UserError
from selfemo.config.schema import SelfPlayConfig
from selfemo.emotions.answer import Answer, FormatFailure
from selfemo.rollout.api import Completion
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.roles import Recognizer
from selfemo.tokens.encoder import ChatEncoder, Message
from selfemo.tokens.template import OTHER_BLOCKS, THINKING_SETTINGS
from tests.helpers.scripted import turns

QUESTION = [Message("user", "Ana: what? <think>")]
TURN = "<|im_start|>assistant\n"
CLOSED = "<think>\n\n</think>\n\n"
BODY = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
)
ASKED = BODY + "{%- if enable_thinking %}{{- '<think>\\n' }}"
TEMPLATES = {
    "always": BODY + "{{- '<think>\\n' }}{%- endif %}",
    "always, without a line": BODY + "{{- '<think>' }}{%- endif %}",
    "if asked": ASKED + "{%- endif %}{%- endif %}",
    "if asked otherwise": BODY + "{%- if thinking %}{{- '<think>\\n' }}{%- endif %}{%- endif %}",
    "if asked, else closed": ASKED
    + "{%- else %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
}
"""Endings of a prompt: Qwen3-Thinking-2507's and QwQ's, one without a line break, and three hybrids."""
LABELS = ("anger", "joy", "neutral")


@pytest.fixture(params=TEMPLATES)
def directory(request: pytest.FixtureRequest, own_dir: Path, tmp_path: Path) -> Path:
    target = tmp_path / request.param.replace(" ", "_")
    shutil.copytree(own_dir, target)
    (target / "chat_template.jinja").write_text(TEMPLATES[request.param])
    return target


def test_without_thinking_no_answer_can_stand_in_the_block(directory: Path) -> None:
    encoder = ChatEncoder(directory)
    shown = encoder.decode(encoder.encode_prompt(QUESTION), show_special=True)
    ending = shown.rpartition(TURN)[2]
    assert ending == ("" if directory.name in ("if_asked", "if_asked_otherwise") else CLOSED)
    assert encoder.encode_text("</think>") != (encoder._full.token_to_id("</think>"),)
    if ending:  # the marker that closes is the control token, not its letters
        assert encoder._full.token_to_id("</think>") in encoder.encode_prompt(QUESTION)


def test_with_thinking_a_prompt_is_the_templates_own_and_ends_inside_the_block(directory: Path) -> None:
    encoder = ChatEncoder(directory)
    assert encoder.opens_thinking
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    plain = [{"role": "user", "content": "Ana: what?"}]
    rendered = tokenizer.apply_chat_template(
        plain, add_generation_prompt=True, return_dict=False, **THINKING_SETTINGS
    )
    assert encoder.encode_prompt([Message("user", "Ana: what?")], thinking=True) == tuple(rendered)
    assert tokenizer.decode(rendered).endswith(("<think>\n", "<think>"))


def test_the_projects_own_template_opens_no_block(own_dir: Path, llama_dir: Path) -> None:
    assert not ChatEncoder(own_dir).opens_thinking
    assert not ChatEncoder(llama_dir).opens_thinking


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("she sounds glad\n</think>\n\njoy", Answer(("joy",))),
        ("</think>joy, anger", Answer(("joy", "anger"))),
        ("joy", FormatFailure("thinking", "<think>joy")),
        ("<think>glad</think>joy", Answer(("joy",))),
        ("glad</think>she is glad", FormatFailure("unknown label", "she is glad")),
    ],
)
def test_an_answer_comes_after_the_block_that_the_prompt_opened(
    own_dir: Path, tmp_path: Path, text: str, wanted: object
) -> None:
    target = tmp_path / "model"
    shutil.copytree(own_dir, target)
    (target / "chat_template.jinja").write_text(TEMPLATES["always"])
    encoder = ChatEncoder(target)
    prompts = PromptBuilder(encoder, LABELS, 2, 64, True, encoder.opens_thinking)
    recognizer = Recognizer(prompts, SelfPlayConfig(thinking=True))
    ids = tuple(encoder._full.encode(text, add_special_tokens=False).ids)
    completion = Completion((*ids, encoder.end_of_turn_id), (-1.0,) * (len(ids) + 1), finished=True)
    assert recognizer.read(completion) == (text, wanted)
    asked = prompts.recognize(turns("Ana: we won"))
    assert encoder.decode(asked, show_special=True).endswith("<think>\n")


def test_supervised_answers_stand_behind_a_closed_block(own_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    shutil.copytree(own_dir, target)
    (target / "chat_template.jinja").write_text(TEMPLATES["always"])
    encoder = ChatEncoder(target)
    prompts = PromptBuilder(encoder, LABELS, 2, 64, True, encoder.opens_thinking).without_thinking()
    taught = (*prompts.recognize(turns("Ana: we won")), *prompts.answer_ids(["joy"]))
    assert encoder.decode(taught, show_special=True).endswith(f"{TURN}{CLOSED}joy<|im_end|>")
    assert encoder.decode(prompts.respond(turns("Ana: we won"), "Bo", ["joy"]), show_special=True).endswith(
        CLOSED
    )


@pytest.mark.parametrize("name", OTHER_BLOCKS)
def test_a_block_of_another_name_is_closed_and_never_read(own_dir: Path, tmp_path: Path, name: str) -> None:
    target = Path(shutil.copytree(own_dir, tmp_path / "model"))
    (target / "chat_template.jinja").write_text(BODY + f"{{{{- '<{name}>\\n' }}}}{{%- endif %}}")
    encoder = ChatEncoder(target)
    shown = encoder.decode(encoder.encode_prompt(QUESTION), show_special=True)
    assert shown.endswith(f"{TURN}<{name}>\n\n</{name}>\n\n")
    with pytest.raises(UserError, match=rf"opens <{name}>, and answers are read behind </think> alone"):
        encoder.encode_prompt(QUESTION, thinking=True)


def test_a_template_that_neither_switches_nor_opens_is_refused(own_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    shutil.copytree(own_dir, target)
    (target / "chat_template.jinja").write_text(BODY + "{%- endif %}")
    with pytest.raises(UserError, match="knows no enable_thinking"):
        ChatEncoder(target).encode_prompt(QUESTION, thinking=True)
