"""Builds the parts of a run: corpus, model directory, tokenizer, learner, engine.

The trainer uses no other parts.

The order is fixed. The process group comes first: a file that one rank alone cannot read then ends every
rank, with one line that names it. The user's input is read and checked before anything is built from it.
Megatron's model is built before the engine, which takes its weights from it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from selfemo.common.errors import UserError, on_all_ranks
from selfemo.config.checks import run_violations
from selfemo.config.layout import layout_of
from selfemo.config.prompt_settings import prompt_settings
from selfemo.config.schema import RunConfig
from selfemo.corpora.conversation import Corpus
from selfemo.megatron.device import Device, select_device
from selfemo.megatron.learner import Learner
from selfemo.megatron.parallel import RankLayout, init_distributed, init_parallel
from selfemo.models.architecture import Architecture, read_architecture
from selfemo.models.hub import fetch, hub_name, local_directory
from selfemo.process import watchdog
from selfemo.process.collectives import all_or_none, on_rank0
from selfemo.records.directory import INITIAL_MODEL_NAME, RunDirectory
from selfemo.rollout.api import Engine
from selfemo.rollout.vllm_engine import RolloutEngine
from selfemo.selfplay.launch_checks import checked_prompts
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.tokenizer_texts import tokenizer_texts
from selfemo.sync.sync import WeightSync
from selfemo.tokens.encoder import ChatEncoder

PROBE_PROMPTS = 4
"""Dialogue openings whose greedy continuations are compared with transformers after a sync."""


@dataclass(frozen=True)
class World:
    """The process group, and the place of this process in it."""

    device: Device
    layout: RankLayout


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
    sizes = layout_of(config, 1, dist.get_world_size())  # as one node: only plans ask where nodes end
    return World(device, init_parallel(sizes, device, config.seed, config.timeout_s))


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
    on_cpu = not world.device.is_cuda
    violations = list(run_violations(config, world.layout.sizes, architecture, on_cpu))
    if violations:  # of a model that came from the hub: others were checked before the ranks met
        raise on_all_ranks(UserError("; ".join(violations)))
    learner = Learner(
        architecture,
        config.train,
        world.layout,
        world.device,
        max_length=config.model.max_length,
        temperature=config.selfplay.temperature,
    )
    learner.load_hf(str(model_dir))
    engine = RolloutEngine(
        str(model_dir), config.rollout, config.model.max_length, encoder.end_of_turn_ids, world.device.kind
    )
    weight_sync = WeightSync(learner, engine, str(model_dir), config.sync, config.rollout.dtype, probes)
    return System(world, corpus, model_dir, encoder, prompts, learner, engine, weight_sync)


def _read_model(
    model_dir: Path, config: RunConfig, corpus: Corpus
) -> tuple[ChatEncoder, PromptBuilder, list[tuple[int, ...]], Architecture]:
    """Read a model's config and tokenizer on this rank, and make the probe prompts.

    What cannot be trained or generated with is refused here, before any weights are read.
    """
    encoder, prompts = checked_prompts(model_dir, prompt_settings(config), corpus)
    starts = [c.turns[: config.corpus.history_turns + 1] for c in corpus.split("train")[:PROBE_PROMPTS]]
    return encoder, prompts, [prompts.recognize(turns) for turns in starts], read_architecture(model_dir)


def model_directory(config: RunConfig, run: RunDirectory, corpus: Corpus) -> Path:
    """Return the Hugging Face directory to start from.

    If the configuration names none, rank 0 initialises a small model.
    """
    if config.model.path:
        return local_directory(config.model.path)
    target = run.path(INITIAL_MODEL_NAME)

    def init() -> None:
        if not target.exists():
            from selfemo.tokens.init_model import init_model

            init_model(target, config.model, tokenizer_texts(corpus), config.seed)

    on_rank0(init)
    return target
