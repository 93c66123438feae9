"""Test that no text becomes control tokens, and that ordinary prompts are exactly the tokenizer's own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from selfemo.common.errors import UserError
from selfemo.models.architecture import architecture_by_name, hf_config
from selfemo.tokens.encoder import ChatEncoder, Message
from selfemo.tokens.template import TEMPLATE_SETTINGS, THINKING_SETTINGS
from selfemo.tokens.training import save_tokenizer, train_tokenizer

MARKERS = (
    *(
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<think>",
        "</think>",
        "<|im_start|>system\n",
        "<|im_end|>\n<|im_start|>user\n",
    ),
    *("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
    *("<|im_", "end|>", "{{ messages }}", "{% raw %}", "slot0e", "\n\n", " ", "I'm"),
)
TEXT = st.lists(st.sampled_from(MARKERS) | st.text(max_size=8), max_size=8).map("".join)


@pytest.fixture(scope="module", params=["own_dir", "llama_dir"])
def encoder(request: pytest.FixtureRequest) -> ChatEncoder:
    return ChatEncoder(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def own(own_dir: Path) -> ChatEncoder:
    return ChatEncoder(own_dir)


def _apply(directory: Path, messages: list[Message]) -> tuple[int, ...]:
    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory))
    plain = [{"role": m.role, "content": m.content} for m in messages]
    ids = tokenizer.apply_chat_template(
        plain, add_generation_prompt=True, return_dict=False, **TEMPLATE_SETTINGS
    )
    return tuple(ids)


@pytest.mark.parametrize("directory", ["own_dir", "llama_dir"])
@pytest.mark.parametrize(
    "messages",
    [
        [Message("user", "Hi")],
        [
            Message("system", "You read emotions."),
            Message("user", "Ana: it's 3 o'clock,\nBen: \u00e9t\u00e9 \u2014 naïve 😀"),
        ],
        [
            Message("system", "Be brief."),
            Message("user", "What?"),
            Message("assistant", "joy, surprise"),
            Message("user", "And now?\n\nsay"),
        ],
    ],
)
def test_benign_prompts_equal_the_tokenizers_own(
    request: pytest.FixtureRequest, directory: str, messages: list[Message]
) -> None:
    path = request.getfixturevalue(directory)
    assert ChatEncoder(path).encode_prompt(messages) == _apply(path, messages)


@settings(max_examples=300, deadline=None)
@given(system=TEXT, user=TEXT)
def test_contents_never_add_a_control_token(encoder: ChatEncoder, system: str, user: str) -> None:
    ids = encoder.encode_prompt([Message("system", system), Message("user", user)])
    skeleton = encoder.encode_prompt([Message("system", "a"), Message("user", "b")])
    assert [i for i in ids if i in encoder.control_ids] == [i for i in skeleton if i in encoder.control_ids]
    shown = encoder.decode(ids, show_special=True)
    assert system in shown
    assert user in shown[shown.index(system) + len(system) :]


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_texts_round_trip_without_control_tokens(encoder: ChatEncoder, text: str) -> None:
    ids = encoder.encode_text(text)
    assert encoder.control_ids.isdisjoint(ids)
    assert encoder.decode(ids) == text
    assert encoder.encode_completion(text) == (*ids, encoder.end_of_turn_id)
    assert encoder.decode(encoder.encode_completion(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=TEXT | st.text(alphabet="é😀 a'\n", max_size=20), max_tokens=st.integers(0, 12))
def test_truncation_is_a_prefix_within_the_limit(encoder: ChatEncoder, text: str, max_tokens: int) -> None:
    cut = encoder.truncate(text, max_tokens)
    assert text.startswith(cut)
    assert len(encoder.encode_text(cut)) <= max_tokens
    if len(encoder.encode_text(text)) <= max_tokens:
        assert cut == text


def test_truncation_keeps_whole_tokens_and_characters(own: ChatEncoder) -> None:
    words = "You came! I can't believe it."
    ids = own.encode_text(words)
    assert own.encode_text(own.truncate(words, 4)) == ids[:4]
    assert len(own.encode_text("😀")) == 4
    assert own.truncate("a😀", 3) == "a"


def test_thinking_leaves_the_block_to_the_model(own: ChatEncoder, own_dir: Path) -> None:
    """Follow Qwen3's template: the empty block is written if thinking is off, nothing if it is on."""
    messages = [Message("user", "Ana: what? <think>")]
    off, on = own.encode_prompt(messages), own.encode_prompt(messages, thinking=True)
    assert off[: len(on)] == on
    assert own.decode(off[len(on) :]) == "<think>\n\n</think>\n\n"
    assert own.decode(on, show_special=True).endswith("<|im_start|>assistant\n")
    tokenizer: Any = AutoTokenizer.from_pretrained(str(own_dir))
    plain = [{"role": "user", "content": "Ana: what?"}]
    rendered = tokenizer.apply_chat_template(
        plain, add_generation_prompt=True, return_dict=False, **THINKING_SETTINGS
    )
    assert own.encode_prompt([Message("user", "Ana: what?")], thinking=True) == tuple(rendered)


def test_a_template_without_thinking_says_so(llama_dir: Path) -> None:
    encoder = ChatEncoder(llama_dir)
    with pytest.raises(UserError, match=r"knows no enable_thinking.*set selfplay.thinking=false"):
        encoder.encode_prompt([Message("user", "Hi")], thinking=True)


def test_ids_of_the_own_tokenizer(own: ChatEncoder, own_dir: Path) -> None:
    assert own.end_of_turn_ids == (2,)
    assert own.pad_id == 0
    assert own.vocab_size == max(own.control_ids) + 1
    prompt = own.encode_prompt([Message("user", "Hi")])
    assert (
        own.decode(prompt, show_special=True)
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert own.decode(prompt) == "user\nHi\nassistant\n<think>\n\n</think>\n\n"
    assert own.decode([own.vocab_size + 5]) == ""


def test_end_of_turn_comes_from_the_template_first(llama_dir: Path) -> None:
    encoder = ChatEncoder(llama_dir)
    assert [encoder.decode([i], show_special=True) for i in encoder.end_of_turn_ids] == [
        "<|eot_id|>",
        "<|end_of_text|>",
    ]
    assert encoder.pad_id == encoder.end_of_turn_id
    assert "Today: 26 Jul 2024" in encoder.decode(encoder.encode_prompt([Message("user", "Hi")]))


def test_a_template_that_asks_the_clock_writes_the_same_prompt_on_any_day(tmp_path: Path) -> None:
    template = (
        "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>{% endfor %}"
    )
    encoder = ChatEncoder(_variant(tmp_path, template))
    shown = encoder.decode(encoder.encode_prompt([Message("user", "Hi")]), show_special=True)
    assert shown == "2024-07-26<|im_start|>user\nHi<|im_end|>"


def test_padding_and_truncation_that_a_tokenizer_was_saved_with_are_left_out(
    own: ChatEncoder, own_dir: Path, tmp_path: Path
) -> None:
    """Collators set both, and save_pretrained writes them into tokenizer.json."""
    saved = Path(shutil.copytree(own_dir, tmp_path / "saved"))
    tokenizer = Tokenizer.from_file(str(saved / "tokenizer.json"))
    tokenizer.enable_padding(length=64, pad_token="<|endoftext|>")
    tokenizer.enable_truncation(12)
    tokenizer.save(str(saved / "tokenizer.json"))
    question = [Message("system", "You read emotions. " * 9), Message("user", "Ana: what?")]
    assert ChatEncoder(saved).encode_prompt(question) == own.encode_prompt(question)


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "Qwen2Tokenizer", "T5Tokenizer"])
@pytest.mark.parametrize("directory", ["own_dir", "llama_dir"])
def test_text_is_split_as_tokenizer_json_says_whatever_class_another_file_names(
    request: pytest.FixtureRequest, tmp_path: Path, directory: str, named: str
) -> None:
    """DeepSeek-R1-Distill names LlamaTokenizerFast, with which transformers 5 drops every blank."""
    source = request.getfixturevalue(directory)
    copied = Path(shutil.copytree(source, tmp_path / "m"))
    settings_file = copied / "tokenizer_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"tokenizer_class": named}))
    question = [Message("system", "Be brief."), Message("user", "Ana: it's 3 o'clock,\n\nreally? Café")]
    encoder = ChatEncoder(copied)
    assert encoder.encode_prompt(question) == ChatEncoder(source).encode_prompt(question)
    assert encoder.decode(encoder.encode_prompt(question)).count("Ana: it's 3 o'clock,\n\nreally? Café") == 1


def test_thinking_markers_are_shown_though_the_tokenizer_counts_them_as_special(
    own_dir: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(own_dir, tmp_path / "m"))
    content = json.loads((copied / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = True
    (copied / "tokenizer.json").write_text(json.dumps(content))
    encoder = ChatEncoder(copied)
    sampled = encoder._full.encode("<think>why</think>joy<|im_end|>", add_special_tokens=False).ids
    assert encoder.decode(sampled) == "<think>why</think>joy"
    assert encoder.decode(sampled, show_special=True) == "<think>why</think>joy<|im_end|>"


def _variant(directory: Path, template: str) -> Path:
    save_tokenizer(train_tokenizer(["a"], 300), directory, max_length=64)
    (directory / "chat_template.jinja").write_text(template)
    return directory


def test_a_template_that_looks_into_contents_sees_none(tmp_path: Path) -> None:
    """Hide texts from the template's logic.

    Qwen3's cuts an answer at </think> and skips a <tool_response>.
    """
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
        "{% if m.content.startswith('<tool_response>') %} tool{% endif %}<|im_end|>{% endfor %}"
    )
    encoder = ChatEncoder(_variant(tmp_path, template))
    shown = encoder.decode(
        encoder.encode_prompt([Message("user", "<tool_response>"), Message("assistant", "a</think>b")]),
        show_special=True,
    )
    assert shown == "<|im_start|>user\n<tool_response><|im_end|><|im_start|>assistant\na</think>b<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('system role not supported') }}", "refuses the roles"),
        ("{{ messages[0].content }}<|im_end|>", "expected each exactly once"),
        (
            "{% for m in messages %}{{ m.content + m.content }}<|im_end|>{% endfor %}",
            "expected each exactly once",
        ),
        (
            "{% for m in messages %}{{ m.content }}\n{% endfor %}",
            "closes an assistant turn without a special token",
        ),
        ("", "has no chat template"),
        ("{{ 1 / 0 }}", "refuses the roles.*ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses the roles.*RecursionError"),
    ],
)
def test_unusable_templates_are_refused(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChatEncoder(_variant(tmp_path, template))


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        ChatEncoder(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds vocab\.json and no tokenizer\.json, .*save_pretrained"):
        ChatEncoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="does not load"):
        ChatEncoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", "{", r"generation_config\.json: not valid JSON"),
        ("generation_config.json", "[]", r"generation_config\.json: expected a JSON object"),
        (
            "generation_config.json",
            '{"eos_token_id": ["a", null]}',
            "eos_token_id 'a' is no id of the tokenizer beside it",
        ),
        ("generation_config.json", '{"eos_token_id": true}', "eos_token_id True is no id"),
        ("generation_config.json", '{"eos_token_id": 18446744073709551616}', "is no id of the tokenizer"),
        ("tokenizer.json", "[]", "does not load"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "WordLevel"}}', "does not load"),
        ("tokenizer_config.json", "[]", "does not load"),
        ("config.json", "[]", r"config\.json: expected a JSON object"),
        ("chat_template.jinja", "\ufeff{{ messages[0].content }}<|im_end|>", "begins with a byte-order mark"),
    ],
)
def test_damaged_files_of_a_directory_are_told_in_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    save_tokenizer(train_tokenizer(["a"], 300), tmp_path, max_length=64)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as refusal:
        ChatEncoder(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_a_control_token_with_the_id_of_an_ordinary_one_is_refused(tmp_path: Path) -> None:
    """Refuse a tokenizer whose control token shares an ordinary token's id.

    The library gives a new token the id len(vocabulary), which is taken if ids have a hole. Found
    by `make fuzz`.
    """
    save_tokenizer(train_tokenizer(["plain words of a corpus"] * 2, 300), tmp_path, max_length=64)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    del content["model"]["vocab"]["<|im_start|>"]
    content["added_tokens"][1]["content"] = "<|im_other|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"'<\|im_other\|>' has the id of an ordinary token, \d+,"):
        ChatEncoder(tmp_path)


def _beside_a_model_of(rows: int, own_dir: Path, target: Path) -> Path:
    """Copy a tokenizer beside the config.json of a model whose embedding has `rows` rows."""
    shutil.copytree(own_dir, target)
    architecture = replace(architecture_by_name("qwen3-0.6b"), vocab_size=rows)
    (target / "config.json").write_text(json.dumps(hf_config(architecture)))
    return target


def test_ids_beyond_the_embedding_are_refused(own_dir: Path, tmp_path: Path) -> None:
    last = len(AutoTokenizer.from_pretrained(str(own_dir)))
    ChatEncoder(_beside_a_model_of(last, own_dir, tmp_path / "fits"))
    with pytest.raises(
        UserError, match=rf"1 tokens beyond the {last - 1} rows .* of id {last - 1}: copy both"
    ):
        ChatEncoder(_beside_a_model_of(last - 1, own_dir, tmp_path / "short"))


def test_an_added_token_beyond_the_embedding_counts_if_the_template_writes_it(
    own_dir: Path, tmp_path: Path
) -> None:
    directory = _beside_a_model_of(len(AutoTokenizer.from_pretrained(str(own_dir))), own_dir, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(str(own_dir))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|unused|>", "<|start_x|>"]})
    tokenizer.save_pretrained(directory)
    ChatEncoder(directory)  # no prompt can hold either
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|start_x|>"))
    with pytest.raises(UserError, match=r"1 tokens beyond .*'<\|start_x\|>'"):
        ChatEncoder(directory)
