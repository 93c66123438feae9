"""Check a configuration: its fields against each other, and against the model and the world it is to run on.

All violations are reported together, so that one edit fixes a configuration, not one edit per
launch.
"""

from __future__ import annotations

from collections.abc import Iterator

from selfemo.common.errors import nearest
from selfemo.common.printable import quote
from selfemo.config.engine_checks import engine_violations
from selfemo.config.layout import Layout
from selfemo.config.schema import ModelConfig, RunConfig
from selfemo.corpora.registry import corpus_names
from selfemo.kernels.config import PRESETS
from selfemo.models.architecture import Architecture, architecture_by_name, read_architecture
from selfemo.models.hub import local_directory, published_name


def run_violations(
    config: RunConfig, layout: Layout, architecture: Architecture, on_cpu: bool = False
) -> Iterator[str]:
    """Find every way in which a configuration does not fit its world or its model, one sentence each.

    Args:
        on_cpu: the run is to compute on CPUs.
    """
    yield from layout_violations(layout, architecture)
    preset = PRESETS.get(config.algorithm.loss)
    if layout.context > 1 and preset is not None and preset.ratio_level == "sequence":
        yield (
            f"algorithm.loss={config.algorithm.loss} takes one ratio per sequence, "
            f"and parallel.context={layout.context} leaves each rank "
            "a part of it: set parallel.context=1, or another algorithm.loss"
        )
    if layout.context > 1 and config.train.dtype == "float32":
        yield (
            f"parallel.context={layout.context} needs Transformer Engine's attention over split sequences, "
            "on a GPU and in bf16, but train.dtype=float32: set train.dtype=bfloat16, or parallel.context=1"
        )
    if config.train.frozen_layers >= architecture.num_layers:
        yield (
            f"train.frozen_layers={config.train.frozen_layers} leaves no layer to train: "
            f"the model has {architecture.num_layers}, freeze at most {architecture.num_layers - 1}"
        )
    if config.train.frozen_cache_bytes and config.train.frozen_layers == 0:
        yield (
            f"train.frozen_cache_bytes={config.train.frozen_cache_bytes} has no frozen layer to serve: set "
            "train.frozen_layers, or train.frozen_cache_bytes=0"
        )
    if config.train.frozen_cache_dir and not config.train.frozen_cache_bytes:
        yield (
            f"train.frozen_cache_dir={config.train.frozen_cache_dir} stands beside a cache in memory, but "
            "train.frozen_cache_bytes=0: set train.frozen_cache_bytes, or train.frozen_cache_dir="
        )
    if config.train.frozen_cache_dir and layout.tensor > 1:  # one would wait in an all-reduce alone
        yield (
            f"train.frozen_cache_dir={config.train.frozen_cache_dir} is searched by every rank for itself, "
            f"but the ranks of parallel.tensor={layout.tensor} compute together: set parallel.tensor=1, or "
            "train.frozen_cache_dir="
        )
    if config.train.frozen_cache_bytes and (
        layout.pipeline > 1 or layout.context > 1 or layout.sequence_parallel
    ):
        yield (
            f"train.frozen_cache_bytes={config.train.frozen_cache_bytes} keeps whole sequences of whole "
            "models: set parallel.pipeline=1, parallel.context=1 and parallel.sequence_parallel=false"
        )
    if on_cpu and layout.context > 1:
        yield (
            f"parallel.context={layout.context} needs Transformer Engine's attention, so a GPU: set "
            "parallel.context=1"
        )
    yield from engine_violations(config, layout, architecture, on_cpu)


def violations(config: RunConfig) -> Iterator[str]:
    """Find every name that no registry holds and every combination of fields that cannot work, one
    sentence each."""
    for field, name, known in (
        ("corpus.name", config.corpus.name, corpus_names()),
        ("algorithm.loss", config.algorithm.loss, PRESETS),
    ):
        if name not in known:
            yield f"{field}={quote(name)}: expected one of {', '.join(known)}{nearest(name, known)}"
    model, play = config.model, config.selfplay
    if not config.output_dir.strip() or "://" in config.output_dir:
        yield (
            f"output_dir={quote(config.output_dir)}: expected a directory of this machine, such as "
            "runs/first (a mounted one for a bucket): name one"
        )
    if config.corpus.labelled_share == 0:
        yield "corpus.labelled_share=0 leaves no labelled turn to learn from: set it above 0"
    if config.corpus.reveal_hidden and config.corpus.labelled_share == 1:
        yield "corpus.reveal_hidden=true has nothing to reveal: set corpus.labelled_share below 1"
    if config.reward.consistency_low > config.reward.consistency_high:
        yield (
            f"reward.consistency_low={config.reward.consistency_low} is above "
            f"reward.consistency_high={config.reward.consistency_high}"
        )
    if config.flywheel.keep_low > config.flywheel.keep_high:
        yield (
            f"flywheel.keep_low={config.flywheel.keep_low} is above "
            f"flywheel.keep_high={config.flywheel.keep_high}"
        )
    if play.min_utterance_words > play.max_utterance_words:
        yield (
            f"selfplay.min_utterance_words={play.min_utterance_words} is above "
            f"selfplay.max_utterance_words={play.max_utterance_words}"
        )
    yield from _view_violations(config)
    yield from _teacher_violations(config)
    longest = max(play.max_recognizer_tokens, play.max_utterance_tokens)
    if longest >= model.max_length:
        yield (
            f"a completion of {longest} tokens leaves no room for a prompt in "
            f"model.max_length={model.max_length}"
        )
    if play.thinking and not model.path:
        yield (
            "selfplay.thinking=true needs a model that can think: set model.path to one (Qwen3), "
            "a model initialised here does not learn to think"
        )
    if config.train.offload_during_rollout and config.train.dtype == "float32":
        yield (
            "train.offload_during_rollout=true would move the fp32 weights themselves: "
            "set train.dtype=bfloat16"
        )
    if config.train.max_tokens_per_microbatch < model.max_length:
        yield (
            f"train.max_tokens_per_microbatch={config.train.max_tokens_per_microbatch} cannot hold "
            f"model.max_length={model.max_length}"
        )
    if not model.path and model.num_heads % model.num_kv_heads:
        yield f"model.num_kv_heads={model.num_kv_heads} does not divide model.num_heads={model.num_heads}"


def _view_violations(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for every list of views that cannot be dealt.

    selfemo.selfplay.views.unknown_views checks their names.
    """
    play = config.selfplay
    for field, views in (("selfplay.views", play.views), ("sft.views", config.sft.views)):
        if views == ():
            yield f"{field} is empty: name at least one view, such as plain"
        for name in {name: None for name in views or () if (views or ()).count(name) > 1}:
            yield f"{field} names {quote(name)} twice: name each view once"
    if len(play.views) > play.recognizer_group_size:
        yield (
            f"selfplay.views names {len(play.views)} views, more than selfplay.recognizer_group_size="
            f"{play.recognizer_group_size} samples: name fewer, or raise the size"
        )
    if play.consensus == "other_views" and len(play.views) == 1:
        yield "selfplay.consensus=other_views needs two views: name them in selfplay.views, or set it to all"


def _teacher_violations(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for every setting of teacher and supervised examples that can have no effect."""
    play, flywheel = config.selfplay, config.flywheel
    if config.iterations and play.rounds > config.iterations:
        yield f"selfplay.rounds={play.rounds} is above iterations={config.iterations}"
    if play.teacher != "policy" and not flywheel.enabled:
        yield (
            f"selfplay.teacher={play.teacher} keeps its readings in the flywheel: set flywheel.enabled=true, "
            "or selfplay.teacher=policy"
        )
    if play.align_consensus and play.teacher == "policy":
        yield "selfplay.align_consensus=true needs a teacher: set selfplay.teacher=round_start"
    if play.teacher_votes != "answers" and play.teacher == "policy":
        yield (
            f"selfplay.teacher_votes={play.teacher_votes} needs a teacher: set selfplay.teacher=round_start, "
            "or selfplay.teacher_votes=answers"
        )
    if play.teacher_words and play.teacher_votes != "probabilities":
        yield (
            f"selfplay.teacher_words={play.teacher_words} weighs probabilities: set "
            "selfplay.teacher_votes=probabilities, or selfplay.teacher_words=0"
        )
    if play.align_strength != 1 and not play.align_consensus:
        yield (
            f"selfplay.align_strength={play.align_strength} has nothing to weigh: set "
            "selfplay.align_consensus=true, or selfplay.align_strength=1"
        )
    if play.teacher_votes == "probabilities" and play.thinking:
        yield (
            "selfplay.teacher_votes=probabilities reads them off the completion's first token, where a model "
            "with selfplay.thinking=true has not thought yet: set selfplay.teacher_votes=answers"
        )
    if flywheel.teach_labels > 1 and play.teacher_votes != "probabilities":
        yield (
            f"flywheel.teach_labels={flywheel.teach_labels} divides a turn by probabilities: set "
            "selfplay.teacher_votes=probabilities, or flywheel.teach_labels=1"
        )
    if flywheel.teach_share and not (flywheel.enabled and config.algorithm.supervised_weight):
        yield (
            f"flywheel.teach_share={flywheel.teach_share} needs flywheel.enabled=true and "
            "algorithm.supervised_weight above 0"
        )


def layout_violations(layout: Layout, architecture: Architecture) -> Iterator[str]:
    """Find every way in which the layout does not divide the world or the model, one sentence each."""
    model_parallel = layout.tensor * layout.pipeline * layout.context
    if layout.world_size % model_parallel:
        yield (
            f"parallel.tensor={layout.tensor} x parallel.pipeline={layout.pipeline} x "
            f"parallel.context={layout.context} = {model_parallel} "
            f"does not divide the world of {layout.world_size} processes"
        )
    if layout.world_size % layout.engine_tensor:
        yield (
            f"rollout.tensor_parallel={layout.engine_tensor} does not divide the world of "
            f"{layout.world_size} processes"
        )
    for name, size in (
        ("attention heads", architecture.num_heads),
        ("key-value heads", architecture.num_kv_heads),
    ):
        if size % layout.tensor:
            yield f"parallel.tensor={layout.tensor} does not divide the model's {size} {name}"
    if architecture.intermediate_size % layout.tensor:
        yield (
            f"parallel.tensor={layout.tensor} does not divide the model's intermediate size "
            f"{architecture.intermediate_size}"
        )
    if architecture.num_heads % layout.engine_tensor:
        yield (
            f"rollout.tensor_parallel={layout.engine_tensor} does not divide the model's "
            f"{architecture.num_heads} attention heads"
        )
    kv_heads, engine = architecture.num_kv_heads, layout.engine_tensor
    if max(kv_heads, engine) % min(kv_heads, engine):
        yield (
            f"rollout.tensor_parallel={engine} is neither a divisor nor a multiple of the model's "
            f"{kv_heads} key-value heads"
        )
    if architecture.intermediate_size % layout.engine_tensor:
        yield (
            f"rollout.tensor_parallel={engine} does not divide the model's intermediate size "
            f"{architecture.intermediate_size}"
        )
    stages = layout.pipeline * layout.virtual_pipeline
    if architecture.num_layers % stages:
        yield (
            f"parallel.pipeline x parallel.virtual_pipeline = {stages} does not divide the model's "
            f"{architecture.num_layers} layers"
        )
    if layout.virtual_pipeline > 1 and layout.pipeline == 1:
        yield f"parallel.virtual_pipeline={layout.virtual_pipeline} needs parallel.pipeline > 1"
    if layout.sequence_parallel and layout.tensor == 1:
        yield "parallel.sequence_parallel=true needs parallel.tensor > 1"


def planned_architecture(model: ModelConfig) -> Architecture:
    """Find the model to plan for: the directory, hub name or published name in `model.path`, or the
    shape a run would initialise. Nothing is fetched.

    Raises:
        UserError: the name or the directory is not known.
    """
    if not model.path:
        return initialised_architecture(model)
    directory = local_directory(model.path)
    if directory.is_dir():
        return read_architecture(directory)
    return architecture_by_name(published_name(model.path))


def initialised_architecture(model: ModelConfig) -> Architecture:
    """Describe the small Qwen3 that a run without model.path initialises."""
    return Architecture(
        family="qwen3",
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_word_embeddings=model.tie_word_embeddings,
        qk_norm=True,
        qkv_bias=False,
        max_position_embeddings=model.max_length,
        dtype="float32",
    )
