"""Builds the parts of a run: corpus, model directory, tokenizer, learner, engine.

The trainer uses no other parts.

The order is fixed. The process group comes first: a file that one rank alone cannot read then ends every
rank, with one line that names it. The user's input is read and checked before anything is built from it.
Megatron's model is built before the engine, which takes its weights from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from selfemo.common.errors import UserError, on_all_ranks
from selfemo.config.checks import run_violations
from selfemo.config.layout import layout_of
from selfemo.config.schema import RunConfig
from selfemo.corpora.conversation import Corpus
from selfemo.megatron.device import Device, select_device
from selfemo.megatron.learner import Learner
from selfemo.megatron.parallel import Layout, init_distributed, init_parallel
from selfemo.models.architecture import Architecture, read_architecture
from selfemo.models.hub import fetch, hub_name, local_directory
from selfemo.process import watchdog
from selfemo.process.collectives import all_or_none, on_rank0
from selfemo.records.directory import RunDirectory
from selfemo.rollout.api import Engine, check_room
from selfemo.rollout.replicas import ReplicatedGenerator
from selfemo.rollout.vllm_engine import RolloutEngine
from selfemo.selfplay.prompts import PromptBuilder, recognizer_text, responder_text
from selfemo.selfplay.room import longest_requests
from selfemo.sync.sync import WeightSync
from selfemo.tokens.encoder import ChatEncoder

INITIAL_MODEL = "model-initial"
PROBE_PROMPTS = 4
"""Dialogue openings whose greedy continuations are compared with transformers after a sync."""


@dataclass(frozen=True)
class World:
    """The process group, and the place of this process in it."""

    device: Device
    layout: Layout


@dataclass(frozen=True)
class System:
    """Everything that a run computes with."""

    world: World
    corpus: Corpus
    model_dir: Path
    """Directory of tokenizer and config: the user's model, or the model initialised for this run."""
    encoder: ChatEncoder
    prompts: PromptBuilder
    learner: Learner
    engine: Engine
    generator: ReplicatedGenerator
    weight_sync: WeightSync


def join_world(config: RunConfig) -> World:
    """Enter torchrun's process group and Megatron's layout, and tell the watchdog the other ranks.

    The default group's timeout is the long one, because its collectives also serve rare, long phases. The
    watchdog ends the short ones in time.
    """
    import torch.distributed as dist

    device = select_device()
    init_distributed(device, config.startup_timeout_s)
    processes = [watchdog.this_process()] * dist.get_world_size()
    dist.all_gather_object(processes, watchdog.this_process())
    watchdog.set_peers(process for rank, process in enumerate(processes) if rank != dist.get_rank())
    return World(device, init_parallel(config.parallel, device, config.seed, config.timeout_s))


def with_fetched_model(config: RunConfig) -> RunConfig:
    """Fetch a model of the hub on one rank of each node, at the commit that rank 0 pinned. Collective.

    Raises:
        UserError: a node cannot fetch it.
    """
    path, is_name = on_rank0(lambda: (config.model.path, hub_name(config.model.path) is not None))
    if is_name:
        with watchdog.doing(f"fetching {path}"):
            all_or_none(lambda: fetch(path) if os.environ.get("LOCAL_RANK", "0") == "0" else None)
    return replace(config, model=replace(config.model, path=path))


def build_system(config: RunConfig, world: World, run: RunDirectory, corpus: Corpus) -> System:
    """Build the model, the engine and the parts that connect them.

    Collective. The engine holds no weights until the first sync.
    """
    model_dir = model_directory(config, run, corpus)
    encoder, prompts, probes, architecture = all_or_none(lambda: _read_model(model_dir, config, corpus))
    violations = list(run_violations(config, layout_of(config, 1, world.layout.world_size), architecture))
    if violations:  # of a model that came from the hub: others were checked before the ranks met
        raise on_all_ranks(UserError("; ".join(violations)))
    learner = Learner(architecture, config, world.layout, world.device)
    learner.load_hf(str(model_dir))
    engine = RolloutEngine(
        str(model_dir), config.rollout, config.model.max_length, encoder.end_of_turn_ids, world.device.kind
    )
    weight_sync = WeightSync(learner, engine, str(model_dir), config, probes)
    generator = ReplicatedGenerator(engine, config.rollout.tensor_parallel)
    return System(world, corpus, model_dir, encoder, prompts, learner, engine, generator, weight_sync)


def _read_model(
    model_dir: Path, config: RunConfig, corpus: Corpus
) -> tuple[ChatEncoder, PromptBuilder, list[tuple[int, ...]], Architecture]:
    """Read a model's config and tokenizer on this rank, and make the probe prompts.

    A chat template that cannot express the prompts is refused here, before any weights are read.
    """
    encoder = ChatEncoder(model_dir)
    prompts = PromptBuilder(
        encoder,
        corpus.labels,
        config.corpus.history_turns,
        config.corpus.max_turn_tokens,
        config.selfplay.thinking,
        encoder.opens_thinking,
    )
    starts = [c.turns[: config.corpus.history_turns + 1] for c in corpus.split("train")[:PROBE_PROMPTS]]
    shown = [*corpus.split("train"), *corpus.split(config.evaluation.split)]
    views = (*config.selfplay.views, *config.sft_views)
    check_room(longest_requests(prompts, shown, config.selfplay, views), config.model.max_length)
    return encoder, prompts, [prompts.recognize(turns) for turns in starts], read_architecture(model_dir)


def model_directory(config: RunConfig, run: RunDirectory, corpus: Corpus) -> Path:
    """Return the Hugging Face directory to start from.

    If the configuration names none, rank 0 initialises a small model.
    """
    if config.model.path:
        return local_directory(config.model.path)
    target = run.path(INITIAL_MODEL)

    def init() -> None:
        if not target.exists():
            from selfemo.tokens.init_model import init_model

            init_model(target, config.model, tokenizer_texts(corpus), config.seed)

    on_rank0(init)
    return target


def tokenizer_texts(corpus: Corpus) -> Iterator[str]:
    """Return the texts to train a tokenizer on.

    They are the prompts of both roles, and the answers and utterances of the training split.
    """
    for conversation in corpus.split("train"):
        for index, turn in enumerate(conversation.turns):
            yield turn.text
            if turn.labels:
                yield recognizer_text(conversation.turns[max(0, index - 1) : index + 1], corpus.labels)
                yield responder_text(
                    conversation.turns[max(0, index - 1) : index + 1], turn.speaker, turn.labels
                )
