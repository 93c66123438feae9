"""Hashes what a run reads by its content: the files of a model directory, and the dialogues of a corpus."""

from __future__ import annotations

import hashlib
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.common.json_file import MAX_JSON_BYTES, read_json_object
from selfemo.corpora.conversation import Corpus
from selfemo.models.architecture import CONFIG_NAME, INDEX_NAME, SINGLE_NAME
from selfemo.records.manifest import digest_of

MODEL_FILES = (
    CONFIG_NAME,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""Files of a model directory, besides its weights, that a run obeys."""
BLOCKS, BLOCK_BYTES = 16, 4096
"""Blocks of a weight file's data that are hashed, at even distances, besides its header and its size: another
training of the same model differs in them, and the whole of a large model would take minutes to read."""


def model_digests(directory: Path) -> dict[str, str]:
    """Hash the files of a model directory: config and tokenizer whole, weights by header, size and blocks.

    Raises:
        UserError: a file cannot be read.
    """
    index = directory / INDEX_NAME
    shards = {SINGLE_NAME}
    if index.is_file():
        weight_map = read_json_object(index).get("weight_map")
        shards = {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else set()
    found = {}
    for name in (*MODEL_FILES, *sorted(shards)):
        path = directory / name
        try:
            if path.is_file():
                found[name] = _weights_digest(path) if name in shards else _digest(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}): make it readable") from None
    return found


def corpus_digest(corpus: Corpus) -> str:
    """Hash every label, turn and split of a corpus as the run sees them: without hidden labels."""
    found = hashlib.blake2b(repr((corpus.name, corpus.labels)).encode(), digest_size=16)
    for conversation in (*corpus.conversations, *corpus.revealed):
        found.update(repr((conversation.key, conversation.turns)).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def corpus_digests(corpus: Corpus) -> dict[str, str]:
    """Hash the dialogues of a corpus, and the texts of others that it bars."""
    return {"dialogues": corpus_digest(corpus), "held-out texts": digest_of(list(corpus.barred_texts))}


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _weights_digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        parts = [b"%d " % size, start, file.read(min(int.from_bytes(start, "little"), MAX_JSON_BYTES))]
        data = file.tell()
        for block in range(BLOCKS):
            file.seek(data + (size - data) * block // BLOCKS)
            parts.append(file.read(BLOCK_BYTES))
    return _digest(*parts)
