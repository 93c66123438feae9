"""Provide the tokenizer directories that token tests share: the project's own, and one in the
manner of Llama 3.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from selfemo.tokens.training import WORD_PATTERN, save_tokenizer, train_tokenizer

TEXTS = (
    "You came! I can't believe it.",
    "Why would I not come, Joey?",
    "It's 3 o'clock and I am so happy, joy, joy.",
    "neutral, surprise",
) * 20

LLAMA_TEMPLATE = (
    "{{- bos_token }}{%- if not date_string is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if loop.first %}{{- 'Today: ' + date_string + '\\n\\n' }}{%- endif %}"
    "{{- m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)


@pytest.fixture(scope="session")
def own_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the project's own tokenizer, trained on a few lines."""
    directory = tmp_path_factory.mktemp("own")
    save_tokenizer(train_tokenizer(TEXTS, 400), directory, max_length=512)
    return directory


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tokenizer as Llama 3's.

    It has special tokens outside the BPE vocabulary, ignore_merges, a post-processor that adds
    <|begin_of_text|>, and a dated template.
    """
    directory = tmp_path_factory.mktemp("llama")
    base = json.loads(train_tokenizer(TEXTS, 400).to_str())["model"]
    skipped = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    names = sorted((name for name in base["vocab"] if name not in skipped), key=base["vocab"].__getitem__)
    merges = [tuple(pair) for pair in base["merges"]]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        chat_template=LLAMA_TEMPLATE,
    ).save_pretrained(directory)
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [tokenizer.token_to_id("<|end_of_text|>")]})
    )
    return directory
