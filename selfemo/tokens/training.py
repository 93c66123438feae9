"""Train a byte-level BPE tokenizer on a corpus, with Qwen3's markers, splitting of words and chat format.

A small vocabulary makes a run on two cores quick: with Qwen's 151,936 entries the output layer
alone would be larger than the rest of a 4-layer model many times over. Everything else equals Qwen3
so that the same code path serves both: `<think>` and `</think>` are added tokens that are not
special, the chat format is ChatML, and with thinking off the prompt ends in an empty thinking
block, as Qwen3's does (four tokens a prompt, so that the CPU run exercises the same path as a
Qwen3-8B run). Qwen normalises to NFC; this tokenizer does not, so that every text comes back from
its ids unchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from selfemo.common.errors import UserError

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Tokens of ids 0, 1, 2; never shown in decoded text."""
THINK_TOKENS = ("<think>", "</think>")
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS) + len(THINK_TOKENS)
"""Smallest vocabulary: every byte, and the markers."""

WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's and Qwen3's pre-tokeniser: contractions, words with the character before them, single
digits, punctuation, blanks."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""
"""ChatML as Qwen3 writes plain conversations; tools and kept thinking are left out."""

_FORMAT_TEXTS = ("system\n", "user\n", "assistant\n", "\n\n") * 1000
"""Text that every prompt holds and few corpora do. It is repeated, so that each role and the empty
thinking block's blank lines become one token each."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer of at most `vocab_size` entries, fewer if the texts hold fewer pairs worth
    merging; deterministic.

    Raises:
        UserError: `vocab_size` is below MIN_VOCAB_SIZE.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"model.vocab_size={vocab_size}: expected at least {MIN_VOCAB_SIZE} "
            "(256 bytes and the markers): raise it"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(THINK_TOKENS),
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(_FORMAT_TEXTS, texts), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Write the files that transformers' AutoTokenizer and vLLM load, chat template included, into
    an existing directory."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)
