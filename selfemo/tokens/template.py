"""Split a chat template into control tokens, fixed text, and one slot per message.

The template is rendered once per sequence of roles with a placeholder for each content, and the
rendering is cut into parts. Contents are never in the rendered string, so none of their text can be
taken for a part of the template, and thousands of prompts of one shape cost one rendering.

Some templates end a prompt inside a thinking block: Qwen3-Thinking-2507's, QwQ's and those of R1's
distilled models always, others if thinking is on. Without thinking the block is closed here, as
Qwen3's template does itself: an answer inside it would be a thought. A few call their block otherwise.
"""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfemo.common.errors import UserError
from selfemo.emotions.answer import THINK_CLOSE, THINK_OPEN

DAY = datetime.datetime(2024, 7, 26)
"""The day of every prompt: a run that went on after midnight would otherwise write other prompts."""
TEMPLATE_SETTINGS = {
    "enable_thinking": False,
    "thinking": False,  # its name in Hermes 4's and others
    "date_string": "26 Jul 2024",
    "strftime_now": DAY.strftime,
}
"""Variables given to every template: Qwen3's thinking off, and a fixed day, which Llama 3's and others
would otherwise take from the clock."""
THINKING_SETTINGS = {**TEMPLATE_SETTINGS, "enable_thinking": True, "thinking": True}
"""The same with thinking on: Qwen3's template then leaves the thinking block to the model and does
not write an empty one."""
OTHER_BLOCKS = ("thinking", "thought", "reasoning")
"""Other names of a thinking block; answers are not read behind one."""


@dataclass(frozen=True)
class Control:
    """A control token that the template itself writes."""

    token_id: int


@dataclass(frozen=True)
class FixedText:
    """Fixed text of the template, without control tokens."""

    text: str


@dataclass(frozen=True)
class Slot:
    """Place for the content of message number `index`."""

    index: int


Part = Control | FixedText | Slot


def split_template(
    tokenizer: Any, roles: Sequence[str], add_generation_prompt: bool, thinking: bool = False
) -> tuple[Part, ...]:
    """Render the template for messages with these roles, and cut it into parts.

    Args:
        tokenizer: a fast Hugging Face tokenizer with a chat template.
        add_generation_prompt: end with the opening of an assistant turn.
        thinking: leave that turn open for a thinking block, or inside one.

    Raises:
        UserError: the template refuses the roles, or does not write every content exactly once; or
            thinking changes nothing in it, and it opens no block, or one of another name.
    """
    pieces = _pieces(tokenizer, roles, add_generation_prompt, thinking)
    if not thinking:
        pieces[-1] = closed(pieces[-1])
    elif opened(pieces[-1]) in OTHER_BLOCKS:
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template opens <{opened(pieces[-1])}>, and answers are read "
            f"behind {THINK_CLOSE} alone: set selfplay.thinking=false, which closes the block"
        )
    elif not is_open(pieces[-1]) and pieces == _pieces(tokenizer, roles, add_generation_prompt, False):
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template knows no enable_thinking, "
            "so the model cannot be asked to think: "
            "set selfplay.thinking=false, or use a model that switches it (Qwen3)"
        )
    parts: list[Part] = []
    for i, piece in enumerate(pieces):
        parts += [Slot(int(piece))] if i % 2 else _split_controls(tokenizer, piece)
    return tuple(parts)


def opened(text: str) -> str:
    """Return the name of the thinking block that template text ends inside, such as "think"; "" if none."""
    names = (THINK_OPEN.strip("<>"), *OTHER_BLOCKS)
    return next((name for name in names if text.rfind(f"<{name}>") > text.rfind(f"</{name}>")), "")


def is_open(text: str) -> bool:
    """Tell whether template text ends inside a thinking block behind which answers are read."""
    return text.rfind(THINK_OPEN) > text.rfind(THINK_CLOSE)


def closed(text: str) -> str:
    """Close the thinking block that template text ends in; other text stays."""
    if not (name := opened(text)):
        return text
    return text + ("" if text.endswith("\n") else "\n") + f"\n</{name}>\n\n"


def opens_thinking(tokenizer: Any) -> bool:
    """Tell whether a prompt with thinking ends inside a block that the template opened."""
    return is_open(_pieces(tokenizer, ("user",), add_generation_prompt=True, thinking=True)[-1])


def _pieces(tokenizer: Any, roles: Sequence[str], add_generation_prompt: bool, thinking: bool) -> list[str]:
    """Render the template; returns literal, message number, literal, number, ..., literal."""
    # random, so that no template's own text holds it; letters, so that trimming keeps it
    mark = f"slot{secrets.token_hex(8)}n"
    messages = [{"role": role, "content": f"{mark}{i}e"} for i, role in enumerate(roles)]
    rendered = _render(tokenizer, messages, add_generation_prompt, thinking)
    pieces = re.split(rf"{mark}(\d+)e", rendered)
    slots = [int(number) for number in pieces[1::2]]
    if sorted(slots) != list(range(len(roles))):
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template writes the messages {slots} of "
            f"{', '.join(roles)}, expected each exactly once: "
            "use a model whose template does"
        )
    return pieces


@contextmanager
def told_as(directory: str | Path, what: str, remedy: str) -> Iterator[None]:
    """Turn any error raised inside into a UserError.

    A tokenizer library or a template raises errors of any type if it meets a damaged file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{directory}: {what} ({reason}): {remedy}") from error


def _render(
    tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool, thinking: bool
) -> str:
    settings = THINKING_SETTINGS if thinking else TEMPLATE_SETTINGS
    roles = ", ".join(message["role"] for message in messages)
    with told_as(
        tokenizer.name_or_path,
        f"its chat template refuses the roles {roles}",
        "use a model whose template takes them",
    ):
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **settings
            )
        )


def _split_controls(tokenizer: Any, text: str) -> list[Part]:
    """Cut template text at the control tokens that the tokenizer finds in it."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    controls = tokenizer.added_tokens_decoder
    parts: list[Part] = []
    position = 0
    for token_id, (start, end) in zip(encoding.ids, encoding.offsets):
        if token_id in controls:
            parts += [FixedText(text[position:start])] if start > position else []
            parts.append(Control(token_id))
            position = end
    return parts + ([FixedText(text[position:])] if position < len(text) else [])
