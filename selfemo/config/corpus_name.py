"""Decide which corpus `auto` means for corpus.name.

It is settled as a configuration is loaded, so that a run's config.yaml names the corpus that the run trained
on, and `eval` and `chat` read the same one, whatever data directory they see.
"""

from __future__ import annotations

from dataclasses import replace

from selfemo.common.errors import UserError
from selfemo.config.schema import RunConfig
from selfemo.corpora.registry import AUTO, resolve_corpus


def with_corpus(config: RunConfig) -> RunConfig:
    """Put the corpus's name in place of `auto`.

    If there is none, `auto` stays: reading the corpus tells why.
    """
    if config.corpus.name != AUTO:
        return config
    try:
        found, _ = resolve_corpus(AUTO, config.corpus.path)
    except UserError:
        return config
    return replace(config, corpus=replace(config.corpus, name=found.name))
