"""Encode prompts and completions as token ids, and keep text from becoming control tokens.

A chat template writes `<|im_start|>user`, text, `<|im_end|>`, and tokenizers turn such markers into
control tokens anywhere in a string. An utterance that holds a marker (from a corpus, or sampled and
fed back by self-play) could then end its own turn and open a system turn. Here only the template's
own text is searched for markers. Every other text goes through a second tokenizer that has the same
vocabulary and no added tokens, so that it cannot produce one.

Template text and contents between two control tokens are encoded as one string, as the model's own
tokenizer would do: a prompt without markers in its contents gets exactly the ids of
`apply_chat_template`. The constructor checks both promises on its tokenizer.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from selfemo.common.errors import UserError
from selfemo.common.json_file import read_json_object
from selfemo.common.printable import quote
from selfemo.emotions.answer import THINK_CLOSE, THINK_OPEN
from selfemo.models.architecture import CONFIG_NAME, read_architecture
from selfemo.tokens.line_cuts import LineCuts
from selfemo.tokens.template import (
    TEMPLATE_SETTINGS,
    Control,
    FixedText,
    Part,
    Slot,
    closed,
    opens_thinking,
    split_template,
    told_as,
)
from selfemo.tokens.transformers_config import check_transformers_config

CACHED_TEXTS = 65_536
"""Number of encoded lines that are cached: instructions and recent dialogue recur across an
iteration's prompts."""
CACHED_PROMPTS = 4096
"""Number of prompts that are cached without their last line: readings of a turn's replies share the rest."""
OLDER_FILES = ("tokenizer.model", "vocab.json")
"""Files of a tokenizer that is not read here."""
BYTE_ORDER_MARK = "\ufeff"
MAX_IDS = 1 << 31
"""Bound on token ids, above every vocabulary and within the range of the tokenizer's library."""


@dataclass(frozen=True)
class Message:
    """One message of a prompt, before it becomes token ids."""

    role: Literal["system", "user", "assistant"]
    content: str
    """Plain text; chat markers inside it have no effect."""


_PROBE = (Message("system", "Be brief."), Message("user", "Ana: it's 3 o'clock,\n\nreally?"))


class ChatEncoder:
    """Encodes for one Hugging Face model directory, whose fast tokenizer has a chat template.

    Thinking is off unless a prompt asks for it.
    """

    def __init__(self, tokenizer_dir: str | Path) -> None:
        """Load the tokenizer and check that it can be used safely.

        Raises:
            UserError: no tokenizer there or a damaged one, no chat template, no end of turn, ids
                beyond the embedding of the model beside it, or one of the two promises of this
                module fails.
        """
        self._dir = Path(tokenizer_dir)
        self._hf = _load_tokenizer(self._dir)
        with told_as(self._dir, "its tokenizer cannot be used", "copy it again"):
            self._prepare()
        if (self._dir / CONFIG_NAME).is_file():
            architecture = read_architecture(self._dir)
            check_transformers_config(self._dir, architecture)
            self._check_embedding(architecture.vocab_size)

    def _prepare(self) -> None:
        self._full: Tokenizer = self._hf.backend_tokenizer
        self._full.no_padding()  # tokenizer.json may keep what its last training run asked for
        self._full.no_truncation()
        self._plain = _without_added_tokens(self._full)
        self.control_ids = frozenset(self._hf.added_tokens_decoder)
        """Ids of all special and added tokens; none of them ever comes from text."""
        self._hidden_ids = frozenset(
            token_id
            for token_id, token in self._full.get_added_tokens_decoder().items()
            if token.special and token.content not in (THINK_OPEN, THINK_CLOSE)
        )
        self._cuts = LineCuts(self._plain)
        self._parts = functools.cache(self._split)
        self._shape = functools.cache(self._encode_shape)
        self._encode_line = functools.lru_cache(CACHED_TEXTS)(self._encode_plain)
        self._encode_lines_cached = functools.lru_cache(CACHED_PROMPTS)(self._encode_lines)
        self._decode_cached = functools.lru_cache(CACHED_TEXTS)(self._decode)
        self._truncate_cached = functools.lru_cache(CACHED_TEXTS)(self._truncate)
        self.vocab_size: int = len(self._hf)
        """Number of ids that have a token; a model's output may be wider (padding rows)."""
        self.end_of_turn_id: int = self._find_end_of_turn()
        """The control token that closes an assistant turn."""
        self.end_of_turn_ids: tuple[int, ...] = self._find_stop_ids()
        """Every id at which sampling stops, `end_of_turn_id` first."""
        self.pad_id: int = self._hf.pad_token_id if self._hf.pad_token_id is not None else self.end_of_turn_id
        """Id that fills batches; it is always masked."""
        self.opens_thinking: bool = opens_thinking(self._hf)
        """Whether a prompt with thinking ends inside a thinking block."""
        self._check()

    def encode_prompt(self, messages: Sequence[Message], thinking: bool = False) -> tuple[int, ...]:
        """Encode a prompt that ends at the start of the assistant's turn.

        Args:
            thinking: let the turn begin with a thinking block, or inside one (`opens_thinking`).
                Otherwise a block that the template opens is closed in the prompt.

        Raises:
            UserError: the chat template refuses this sequence of roles, or has no thinking to
                switch.
        """
        ids: list[int] = []
        for run in self._shape(tuple([message.role for message in messages]), thinking):
            if isinstance(run, tuple):
                ids += run
            else:
                texts = [part if isinstance(part, str) else messages[part.index].content for part in run]
                ids += self.encode_text("".join(texts))
        return tuple(ids)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Encode a text alone; markers in it become plain text."""
        head, last = self._cuts.before_last_line(text)
        return (self._encode_lines_cached(head) if head else ()) + self._encode_lines(last)

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Encode an assistant's answer with its end of turn, which supervised training learns to
        produce after a prompt."""
        return (*self.encode_text(text), self.end_of_turn_id)

    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        """Decode ids to text, without special tokens unless `show_special`.

        `<think>` and `</think>` are always shown, since answers are read behind them; some tokenizers count
        them as special, Qwen3's does not. An id without a token (a padding row
        of the model's vocabulary) yields nothing.
        """
        return self._decode_cached(tuple(ids), show_special)

    def truncate(self, text: str, max_tokens: int) -> str:
        """Cut `text` at a token border to the longest prefix whose own encoding has at most
        `max_tokens` tokens."""
        return self._truncate_cached(text, max_tokens)

    def _encode_lines(self, text: str) -> tuple[int, ...]:
        return tuple(chain.from_iterable(map(self._encode_line, self._cuts.lines(text))))

    def _decode(self, ids: tuple[int, ...], show_special: bool) -> str:
        shown = ids if show_special else [token_id for token_id in ids if token_id not in self._hidden_ids]
        return str(self._full.decode(shown, skip_special_tokens=False))

    def _truncate(self, text: str, max_tokens: int) -> str:
        if self._fits(text, max_tokens) or len(self._encode_plain(text)) <= max_tokens:
            return text
        encoding = self._plain.encode(text, add_special_tokens=False)
        for kept in range(max_tokens, 0, -1):
            # A character of several byte-level tokens spans them all: cut before it unless it is
            # complete.
            end = min(encoding.offsets[kept - 1][1], encoding.offsets[kept][0])
            if len(self._encode_plain(text[:end])) <= max_tokens:
                return text[:end]
        return ""

    def _fits(self, text: str, max_tokens: int) -> bool:
        """Tell whether a text surely fits, as nearly all do, without encoding it beside the prompt's line."""
        if text.isascii() and len(text) < max_tokens:
            return True  # of byte-level tokens, each has a byte of the text; a blank may be put before it
        if not self._cuts.at_blanks or not text.isprintable() or text[:1].isspace() or "  " in text:
            return False
        # after a colon and a blank its first word may be fewer tokens, but not fewer than one
        first_word = len(text.partition(" ")[0].encode())
        return len(self._encode_line(f" {text}")) - 1 + first_word <= max_tokens

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        """Encode one string; the batch call is the one that computes no offsets."""
        return tuple(self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids) if text else ()

    def _split(self, roles: tuple[str, ...], add_generation_prompt: bool, thinking: bool) -> tuple[Part, ...]:
        return split_template(self._hf, roles, add_generation_prompt, thinking)

    def _encode_shape(
        self, roles: tuple[str, ...], thinking: bool
    ) -> tuple[tuple[int, ...] | list[str | Slot], ...]:
        """Encode a prompt's template once: ids, and between them lists of texts and slots to fill.

        What a list holds is encoded as one string.
        """
        found: list[tuple[int, ...] | list[str | Slot]] = []
        run: list[str | Slot] = []

        def close(control_ids: tuple[int, ...]) -> None:
            fixed = not any(isinstance(part, Slot) for part in run)
            found.append(self._encode_plain("".join(map(str, run))) if fixed else list(run))
            found.append(control_ids)
            run.clear()

        for part in self._parts(roles, True, thinking):
            if isinstance(part, Control):
                close((part.token_id,))
            else:
                run.append(part.text if isinstance(part, FixedText) else part)
        close(())
        return tuple(found)

    def _find_end_of_turn(self) -> int:
        parts = self._parts(("user", "assistant"), False, False)
        after = parts[parts.index(Slot(1)) + 1 :]
        if after and isinstance(after[0], Control):
            return after[0].token_id
        raise UserError(
            f"{self._dir}: its chat template closes an assistant turn without a special token: "
            "use an instruction-tuned model"
        )

    def _find_stop_ids(self) -> tuple[int, ...]:
        path = self._dir / "generation_config.json"
        declared = read_json_object(path).get("eos_token_id") if path.is_file() else None
        declared_ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
        for token_id in declared_ids:
            if (
                type(token_id) is not int
                or not 0 <= token_id < MAX_IDS
                or self._full.id_to_token(token_id) is None
            ):
                raise UserError(
                    f"{path}: eos_token_id {quote(token_id)} is no id of the tokenizer beside it: "
                    "copy both files from one model"
                )
        own = [] if self._hf.eos_token_id is None else [self._hf.eos_token_id]
        return tuple(dict.fromkeys([self.end_of_turn_id, *declared_ids, *own]))

    def _check_embedding(self, rows: int) -> None:
        """Refuse ids that prompts, answers or padding may hold and that the embedding has no row for.

        Added tokens come from the template alone; one that it never writes may lie beyond.
        """
        written = [
            part.token_id
            for roles, opens in ((("system", "user"), True), (("user", "assistant"), False))
            for part in self._parts(roles, opens, False)
            if isinstance(part, Control)
        ]
        ordinary = self._full.get_vocab(with_added_tokens=False).values()
        beyond = {
            token_id
            for token_id in (*ordinary, *written, *self.end_of_turn_ids, self.pad_id)
            if token_id >= rows
        }
        if beyond:
            raise UserError(
                f"{self._dir}: its tokenizer has {len(beyond)} tokens beyond the {rows} rows of the "
                "embedding (config.json's vocab_size), such as "
                f"{quote(self._full.id_to_token(min(beyond)))} of id {min(beyond)}: copy both from one "
                "model, or enlarge the embedding (transformers' resize_token_embeddings)"
            )

    def _check(self) -> None:
        for token_id, token in self._hf.added_tokens_decoder.items():
            if self._plain.id_to_token(token_id) not in (None, token.content):
                raise UserError(
                    f"{self._dir}: {token.content!r} has the id of an ordinary token, {token_id}, "
                    "so text could not be kept apart from control"
                )
            if not self.control_ids.isdisjoint(self._encode_plain(token.content)):
                raise UserError(
                    f"{self._dir}: its vocabulary spells {token.content!r} in plain text, "
                    "so text could not be kept apart from control"
                )
        messages = [{"role": message.role, "content": message.content} for message in _PROBE]
        rendered = self._hf.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **TEMPLATE_SETTINGS
        )
        head, content, tail = rendered.rpartition(_PROBE[-1].content)
        rendered = head + content + closed(tail)
        if tuple(self._full.encode(rendered, add_special_tokens=False).ids) != self.encode_prompt(_PROBE):
            raise UserError(
                f"{self._dir}: its tokenizer reads a prompt differently in parts, "
                "expected a byte-level BPE (Qwen, Llama 3, SmolLM2)"
            )


def _load_tokenizer(directory: Path) -> Any:
    """Load tokenizer.json as it stands, with the template and the named tokens of the files beside it."""
    # Slow to import, and only this function needs it. AutoTokenizer would take the class that another file
    # names, which builds splitting and decoding anew: LlamaTokenizer, which DeepSeek-R1-Distill names beside
    # a byte-level BPE, loses every blank.
    from transformers import PreTrainedTokenizerFast

    if not (directory / "tokenizer.json").is_file():
        older = next((name for name in OLDER_FILES if (directory / name).is_file()), "")
        raise UserError(
            f"{directory}: holds {older} and no tokenizer.json, expected the fast tokenizer's file: have "
            "transformers write it (AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))"
            if older
            else f"{directory}: holds no tokenizer.json, expected a Hugging Face model directory: check "
            "model.path"
        )
    with told_as(directory, "its tokenizer does not load", "copy it again"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    if not tokenizer.chat_template:
        raise UserError(
            f"{directory}: its tokenizer has no chat template, expected an instruction-tuned model's"
        )
    if str(tokenizer.chat_template).startswith(BYTE_ORDER_MARK):
        raise UserError(
            f"{directory}: its chat template begins with a byte-order mark, which would stand in every "
            "prompt: save chat_template.jinja as UTF-8 without one"
        )
    return tokenizer


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer without added tokens, so that none is matched before the text is split.

    Vocabulary, normaliser and pre-tokeniser stay the same.
    """
    state = json.loads(tokenizer.to_str())
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(state))
