"""Test the whole plan: memory by hand in one case, phases, suggestions, the command, its speed
without torch.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfemo.common.errors import UserError
from selfemo.config.checks import (
    initialised_architecture,
    layout_violations,
    planned_architecture,
    run_violations,
)
from selfemo.config.layout import Layout, layout_of
from selfemo.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    ParallelConfig,
    RolloutConfig,
    RunConfig,
    SelfPlayConfig,
    TrainConfig,
)
from selfemo.kernels.config import PRESETS, LossConfig
from selfemo.kernels.fused_linear import DEFAULT_CHUNK_TOKENS
from selfemo.models.architecture import architecture_by_name
from selfemo.planning.generation import Engine
from selfemo.planning.hardware import GIB, GPUS, gpu_by_name
from selfemo.planning.memory import (
    FUSED_CHUNK_TOKENS,
    activation_bytes,
    logits_bytes,
    plan_memory,
    rank_memory,
)
from selfemo.planning.plan import best_layouts, make_plan
from selfemo.planning.published import fitted_rates
from selfemo.planning.steptime import busiest_head_tokens, pass_seconds, passes
from selfemo.planning.trainer_bytes import checkpoint_bytes, trainer_bytes
from selfemo.planning.workload import workload_of

QWEN = architecture_by_name("qwen3-8b")
H100 = GPUS["h100-80g"]
CONFIG = RunConfig(
    parallel=ParallelConfig(tensor=2, sequence_parallel=True, distributed_optimizer=True),
    rollout=RolloutConfig(dtype="bfloat16", kv_cache_bytes=20 * GIB),
    train=TrainConfig(dtype="bfloat16", max_tokens_per_microbatch=8192),
    selfplay=SelfPlayConfig(seeds_per_iteration=256),
)
WORKLOAD = workload_of(CONFIG)
ENGINE = Engine(QWEN, 1, "bfloat16", 20 * GIB, 128)


def test_a_layers_activations_by_hand() -> None:
    """Add up the bytes that the backward pass of one Qwen3-8B layer needs per token.

    h=4096, q=4096, kv=1024, mlp=12288, 32 heads, bf16.
    """
    hand = 2 * (4 * 4096 + (2 * 4096 + 2 * 1024) + (4096 + 1024) + 3 * 12_288) + 4 * 32
    assert activation_bytes(QWEN, Layout(), 1000, 0, 1, "bfloat16") == 1000 * 36 * hand
    assert activation_bytes(QWEN, Layout(recompute=True), 1000, 0, 1, "bfloat16") == 1000 * (
        36 * 2 * 4096 + hand
    )
    split = 2 * (4 * 4096) + (hand - 2 * 4 * 4096) // 2
    assert activation_bytes(QWEN, Layout(1, 2, tensor=2), 1000, 0, 1, "bfloat16") == 1000 * 36 * split
    assert (
        activation_bytes(QWEN, Layout(1, 2, tensor=2, sequence_parallel=True), 1000, 0, 1, "bfloat16")
        == 1000 * 36 * hand // 2
    )


def test_the_first_pipeline_stage_keeps_one_micro_batch_per_stage() -> None:
    layout = Layout(1, 4, pipeline=4)
    kept = [activation_bytes(QWEN, layout, 1000, stage, 32, "bfloat16") for stage in range(4)]
    assert kept == [4 * kept[3], 3 * kept[3], 2 * kept[3], kept[3]]
    assert activation_bytes(QWEN, layout, 1000, 0, 2, "bfloat16") == 2 * kept[3]  # never more than there are
    interleaved = activation_bytes(QWEN, replace(layout, virtual_pipeline=3), 1000, 0, 32, "bfloat16")
    assert kept[0] < interleaved < 2 * kept[0]


def test_frozen_layers_keep_no_activations_and_take_no_backward_pass() -> None:
    """Qwen3-8B has 36 layers and an output layer of its own."""
    layer = activation_bytes(QWEN, Layout(), 1000, 0, 1, "bfloat16") // 36

    def kept(stage: int, **sizes: int) -> float:
        return activation_bytes(QWEN, Layout(1, 4, **sizes), 1000, stage, 32, "bfloat16") / layer

    assert kept(0, frozen_layers=30) == 6
    assert [kept(stage, pipeline=2, frozen_layers=30) for stage in (0, 1)] == [
        1,
        6,
    ]  # one while it is computed
    assert [kept(stage, pipeline=2, frozen_layers=12) for stage in (0, 1)] == [2 * 6, 18]
    assert kept(1, pipeline=2, virtual_pipeline=3, frozen_layers=35) == pytest.approx(
        5 / 3
    )  # five chunks in flight
    rates, batch = fitted_rates(), passes(WORKLOAD, Layout())[0]

    def seconds(frozen_layers: int, with_backward: bool, recompute: bool = False) -> float:
        layout = Layout(frozen_layers=frozen_layers, recompute=recompute)
        return pass_seconds(QWEN, layout, batch, with_backward, H100, rates)

    forward = seconds(0, False)
    assert seconds(30, False) == forward
    assert seconds(0, True, recompute=True) == pytest.approx(4 * forward, rel=0.1)
    for recompute in (False, True):
        whole, some, most = (seconds(frozen, True, recompute) for frozen in (0, 18, 35))
        assert forward < most < some < whole
        assert some == pytest.approx((whole + seconds(36, True, recompute)) / 2)


def test_only_trained_weights_have_gradients_and_moments() -> None:
    """By hand from Qwen3-8B's parameters: 36 layers alike, embedding and output layer of 151,936 x 4,096."""
    matrix, norm = 151_936 * 4096, 4096
    layer = (8_190_735_360 - 2 * matrix - norm) // 36
    held = trainer_bytes(QWEN, Layout(frozen_layers=30), 0, 0, "bfloat16")
    assert held.weights == held.reference == 2 * 8_190_735_360
    assert held.gradients == 4 * (6 * layer + norm + matrix)
    assert held.optimizer == 12 * (6 * layer + norm + matrix)
    assert checkpoint_bytes(QWEN, "bfloat16", 30) == held.weights + held.optimizer
    tied = replace(QWEN, tie_word_embeddings=True)
    assert trainer_bytes(tied, Layout(frozen_layers=30), 0, 0, "bfloat16").gradients == 4 * (6 * layer + norm)
    layout, train = Layout(frozen_layers=1), TrainConfig(dtype="bfloat16")
    assert logits_bytes(tied, layout, 1000, train) == 1000 * 151_936 * 2
    assert logits_bytes(QWEN, layout, 1000, train) == (1000 + 4096) * 151_936 * 2


def test_freezing_every_layer_is_refused() -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, frozen_layers=36))
    (violation,) = run_violations(config, Layout(1, 2, tensor=2), QWEN)
    assert "train.frozen_layers=36 leaves no layer to train: the model has 36, freeze at most 35" in violation
    config = replace(CONFIG, train=replace(CONFIG.train, frozen_layers=35))
    assert not list(run_violations(config, Layout(1, 2, tensor=2), QWEN))


def test_logits_are_those_of_completions_on_one_shard() -> None:
    """Count logits, and autograd's gradient of the output weight, 4,096 wide.

    Fused, only 512 tokens' logits exist.
    """
    bf16, columns, layout = TrainConfig(dtype="bfloat16"), 151_936 // 4, Layout(1, 4, tensor=4)
    assert logits_bytes(QWEN, layout, 1000, bf16) == (1000 + 4096) * columns * 2
    assert logits_bytes(QWEN, layout, 1000, replace(bf16, fuse_output_layer="on")) == 512 * columns * 2
    assert logits_bytes(QWEN, layout, 100, replace(bf16, fuse_output_layer="on")) == 100 * columns * 2
    stages = plan_memory(QWEN, Layout(1, 4, pipeline=4), CONFIG, WORKLOAD, ENGINE)
    assert [stage.phases["train"].logits > 0 for stage in stages] == [False, False, False, True]


def test_logits_above_one_gib_are_not_made() -> None:
    """Decide as the trainer does.

    It looks at each micro-batch of long completions, the plan at the mean one.
    """
    train, layout = TrainConfig(dtype="bfloat16"), Layout(1, 2, tensor=2)
    last = GIB // (151_936 // 2 * 2)  # the most completion tokens whose logits fit in one GiB
    assert logits_bytes(QWEN, layout, last, train) > GIB
    assert logits_bytes(QWEN, layout, last + 1, train) == 512 * 151_936
    assert logits_bytes(QWEN, layout, last + 1, replace(train, fuse_output_layer="off")) > GIB
    assert FUSED_CHUNK_TOKENS == DEFAULT_CHUNK_TOKENS


def test_phases_hold_what_is_alive_in_them() -> None:
    layout = Layout(1, 8, tensor=2, distributed_optimizer=True)
    phases = rank_memory(QWEN, layout, CONFIG, WORKLOAD, ENGINE, rank=5)
    held = trainer_bytes(QWEN, layout, 0, 2, "bfloat16")
    for memory in phases.values():
        assert (memory.weights, memory.gradients, memory.optimizer) == (
            held.weights,
            held.gradients,
            held.optimizer,
        )
    assert list(phases) == ["train", "wake-up", "sync", "rollout", "checkpoint"]
    assert phases["train"].engine_weights == phases["train"].kv_cache == phases["rollout"].activations == 0
    assert phases["wake-up"] == phases["rollout"]  # vLLM takes weights and cache at once
    assert phases["sync"].total == phases["rollout"].total + CONFIG.sync.bucket_bytes
    resident = replace(CONFIG, rollout=replace(CONFIG.rollout, sleep=False))
    assert rank_memory(QWEN, layout, resident, WORKLOAD, ENGINE, 5)["train"].kv_cache == 20 * GIB
    offloaded = replace(CONFIG, train=replace(CONFIG.train, offload_during_rollout=True))
    assert rank_memory(QWEN, layout, offloaded, WORKLOAD, ENGINE, 5)["rollout"].optimizer == 0
    keeping = replace(CONFIG, train=replace(CONFIG.train, frozen_layers=1, frozen_cache_bytes=3 * GIB))
    assert {
        name: memory.total - phases[name].total
        for name, memory in rank_memory(QWEN, layout, keeping, WORKLOAD, ENGINE, 5).items()
    } == dict.fromkeys(phases, 3 * GIB)
    assert rank_memory(QWEN, layout, offloaded, WORKLOAD, ENGINE, 5)["checkpoint"].optimizer == held.optimizer


def test_every_rank_stands_in_one_stage() -> None:
    layout = Layout(2, 8, tensor=2, pipeline=4, distributed_optimizer=True)
    stages = plan_memory(QWEN, layout, CONFIG, WORKLOAD, ENGINE)
    assert sorted(rank for stage in stages for rank in stage.ranks) == list(range(16))
    for stage in stages:
        for rank in stage.ranks:
            assert (
                rank_memory(QWEN, layout, CONFIG, WORKLOAD, ENGINE, rank)["rollout"].total
                <= stage.phases["rollout"].total
            )


def test_a_bf16_checkpoint_takes_fourteen_bytes_per_parameter() -> None:
    assert checkpoint_bytes(QWEN, "bfloat16") == 14 * (8_190_735_360)
    assert checkpoint_bytes(QWEN, "float32") == 12 * 8_190_735_360


def test_a_checkpoint_blocks_training_while_a_first_copy_gathers_its_optimizer() -> None:
    """Twelve bytes per parameter of a rank, by the assumed rate; a whole optimizer is not gathered."""
    config = replace(CONFIG, parallel=replace(CONFIG.parallel, tensor=4))
    seconds = make_plan(config, QWEN, layout_of(config, 1, 8), WORKLOAD, H100).checkpoint_blocks_s
    assert seconds == pytest.approx(8_190_735_360 / 4 * 12 / fitted_rates().gather_rate, rel=1e-3)
    whole = replace(layout_of(config, 1, 8), distributed_optimizer=False)
    assert make_plan(config, QWEN, whole, WORKLOAD, H100).checkpoint_blocks_s == 0


def test_an_awake_engine_holds_its_samplers_tables() -> None:
    """A count and a bit for each of 128 sequences and 151,936 entries."""
    phases = rank_memory(QWEN, Layout(1, 2, tensor=2), CONFIG, WORKLOAD, ENGINE, 0)
    assert phases["rollout"].engine_tables == 4 * 128 * (151_936 + 151_936 // 32)
    assert phases["train"].engine_tables == 0


def test_suggestions_fit_are_ordered_and_differ() -> None:
    suggestions = best_layouts(CONFIG, QWEN, WORKLOAD, 2, 8, H100)
    assert suggestions
    seconds = [s.plan.step.total for s in suggestions]
    assert seconds == sorted(seconds)
    assert all(s.plan.fits and not list(layout_violations(s.plan.layout, QWEN)) for s in suggestions)
    assert len({(s.plan.layout.tensor, s.plan.layout.pipeline) for s in suggestions}) == len(suggestions)
    assert suggestions[0].reason.startswith("fastest that fits")
    given = make_plan(CONFIG, QWEN, layout_of(CONFIG, 2, 8), WORKLOAD, H100)
    assert suggestions[0].plan.step.total <= given.step.total


def test_nothing_is_suggested_where_nothing_fits() -> None:
    assert best_layouts(CONFIG, QWEN, WORKLOAD, 1, 1, GPUS["a100-40g"]) == []


def test_more_gpus_never_make_the_best_step_slower() -> None:
    seconds = [
        best_layouts(CONFIG, QWEN, WORKLOAD, nodes, 8, H100, 1)[0].plan.step.total for nodes in (1, 2, 4, 8)
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_context_parallelism_asks_for_bf16_and_a_loss_that_takes_tokens_one_by_one() -> None:
    """Refuse the presets whose ratio is of a whole sequence."""
    split, whole = Layout(1, 2, context=2), Layout(1, 2)
    for name, preset in PRESETS.items():
        config = replace(
            CONFIG, algorithm=AlgorithmConfig(loss=name), train=replace(CONFIG.train, dtype="bfloat16")
        )
        sequence_level = (
            LossConfig.preset(name, **({"max_length": 8} if preset.needs_max_length else {})).ratio_level
            == "sequence"
        )
        assert (
            any("one ratio per sequence" in violation for violation in run_violations(config, split, QWEN))
            == sequence_level
        )
        assert not list(run_violations(config, whole, QWEN))
    config = replace(CONFIG, train=replace(CONFIG.train, dtype="float32"))
    (violation,) = run_violations(config, split, QWEN)
    assert violation.endswith("but train.dtype=float32: set train.dtype=bfloat16, or parallel.context=1")
    assert not list(run_violations(config, whole, QWEN))


def test_context_ranks_share_activations_and_not_always_logits() -> None:
    """Give one rank the last piece of every sequence: a micro-batch's completions, but no more than
    its share.
    """
    whole, halves = (
        plan_memory(QWEN, Layout(1, 2, context=size), CONFIG, WORKLOAD, ENGINE)[0].phases["train"]
        for size in (1, 2)
    )
    assert halves.activations == whole.activations // 2
    assert halves.logits == whole.logits
    assert busiest_head_tokens(Layout(1, 2, context=2), 1000, 700) == 500


def test_the_cache_must_hold_one_sequence() -> None:
    """Compute by hand: Qwen3-8B keeps 2 * 36 layers * 1024 * 2 bytes per token."""
    token_bytes = 2 * 36 * 1024 * 2
    config = replace(CONFIG, model=ModelConfig(path="qwen3-8b", max_length=1024))

    def found(cache_bytes: int) -> list[str]:
        return list(
            run_violations(
                replace(config, rollout=replace(CONFIG.rollout, kv_cache_bytes=cache_bytes)),
                Layout(1, 2, 2),
                QWEN,
            )
        )

    blocks_and_vllms_own = (1024 // 32 + 1) * 32 * token_bytes
    assert found(blocks_and_vllms_own) == []
    (told,) = found(blocks_and_vllms_own - 1)
    assert "holds 1055 tokens" in told
    assert told.endswith(f"at least {blocks_and_vllms_own}")


def test_names_are_checked() -> None:
    with pytest.raises(UserError, match="did you mean 'h100-80g'"):
        gpu_by_name("h100-80gb")
    with pytest.raises(UserError, match="qwen3-8b"):
        planned_architecture(ModelConfig(path="qwen3-88b"))


def test_without_a_model_the_initialised_one_is_planned() -> None:
    assert planned_architecture(ModelConfig()) == initialised_architecture(ModelConfig())
