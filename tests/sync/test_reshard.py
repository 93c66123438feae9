"""Test the reshard plan: exact for every pair of layouts, with the least bytes possible.

Its own check detects a wrong plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.config.layout import EngineLayout, TrainerLayout
from selfemo.models.architecture import Architecture, architecture_by_name
from selfemo.models.geometry import region
from selfemo.models.parameters import hf_tensor_list, model_parameters
from selfemo.sync.reshard import Move, ReshardPlan, buckets, build_plan, check_plan, traffic


def _architecture(family: str, tied: bool, kv_heads: int = 4) -> Architecture:
    return Architecture(
        family=family,
        vocab_size=131,
        hidden_size=16,
        intermediate_size=16,
        num_layers=4,
        num_heads=8,
        num_kv_heads=kv_heads,
        head_dim=4,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2",
        max_position_embeddings=64,
        dtype="float32",
    )


Case = tuple[Architecture, TrainerLayout, EngineLayout]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.sampled_from([2, 4, 8]))
    architecture = _architecture(
        draw(st.sampled_from(["qwen3", "qwen2", "llama"])), draw(st.booleans()), kv_heads
    )
    trainer = TrainerLayout(
        tensor=draw(st.sampled_from([1, 2, 4])),
        pipeline=draw(st.sampled_from([1, 2, 4])),
        virtual_pipeline=draw(st.sampled_from([1, 2])),
        data=draw(st.sampled_from([1, 2])),
    )
    engine_tensor = draw(st.sampled_from([1, 2, 4, 8]))
    assume(trainer.world_size % engine_tensor == 0)
    assume(architecture.num_kv_heads % trainer.tensor == 0)
    assume(architecture.num_layers % (trainer.pipeline * trainer.virtual_pipeline) == 0)
    return architecture, trainer, EngineLayout(engine_tensor, trainer.world_size // engine_tensor)


@settings(max_examples=60, deadline=None)
@given(_cases())
def test_executing_the_moves_fills_every_live_parameter_with_the_right_elements(case: Case) -> None:
    """Move numbered elements by brute force, which shares nothing with the plan's own check."""
    plan = build_plan(*case)
    check_plan(plan)
    first = 1
    numbered: dict[str, torch.Tensor] = {}
    for tensor in hf_tensor_list(plan.architecture):
        numbered[tensor.name] = torch.arange(first, first + tensor.elements).view(tensor.shape)
        first += tensor.elements
    parameters = {parameter.name: parameter for parameter in model_parameters(plan.architecture)}
    trainer = plan.trainer

    def local(placement_of: Callable[..., object], rank: int, size: int) -> torch.Tensor:
        placement = placement_of(rank, size)
        tensor = torch.zeros(placement.shape, dtype=torch.long)  # type: ignore[attr-defined]
        for box in placement.boxes:  # type: ignore[attr-defined]
            tensor[region(box.local_start, box.shape)] = numbered[box.tensor][region(box.start, box.shape)]
        return tensor

    shards = {
        (name, rank): local(parameters[name].megatron, rank, trainer.tensor)
        for name in parameters
        for rank in range(trainer.tensor)
    }
    for rank in plan.targets:
        for parameter in parameters.values():
            if parameter.is_tied_copy:
                continue
            want = local(parameter.vllm, rank % plan.engine.tensor, plan.engine.tensor)
            got = torch.zeros_like(want)
            for move in plan.moves:
                if (move.target_rank, move.target) == (rank, parameter.vllm_name):
                    source = shards[move.source, trainer.coordinates(move.source_rank)[0]]
                    got[region(move.target_start, move.shape)] += source[
                        region(move.source_start, move.shape)
                    ]
            assert torch.equal(got, want), (rank, parameter.vllm_name)


@settings(max_examples=60, deadline=None)
@given(_cases())
def test_no_plan_could_receive_less_and_gathering_receives_more(case: Case) -> None:
    plan = build_plan(*case)
    moved = traffic(plan)
    assert moved.direct == moved.lower_bound
    assert moved.direct <= moved.checkpoint


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(_cases(), st.data())
def test_a_plan_without_frozen_layers_is_the_rest_of_the_whole_plan(case: Case, data: st.DataObject) -> None:
    whole = build_plan(*case)
    frozen = data.draw(st.integers(1, whole.architecture.num_layers - 1))
    plan = build_plan(*case, frozen_layers=frozen)
    check_plan(plan)
    still = {f"model.layers.{layer}." for layer in range(frozen)} | {"model.embed_tokens."}
    assert plan.moves == tuple(
        move for move in whole.moves if not any(move.target.startswith(prefix) for prefix in still)
    )
    assert traffic(plan).direct == traffic(plan).lower_bound <= traffic(whole).lower_bound
    with pytest.raises(ValueError, match="not filled exactly once"):
        check_plan(dataclasses.replace(plan, frozen_layers=frozen - 1))


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(_cases(), st.integers(16, 4000))
def test_buckets_keep_order_and_elements_and_respect_the_limit_on_every_rank(case: Case, limit: int) -> None:
    plan = build_plan(*case)
    runs = list(buckets(plan, limit))
    assert sum(move.elements for run in runs for move in run) == sum(move.elements for move in plan.moves)
    check_plan(dataclasses.replace(plan, moves=tuple(move for run in runs for move in run)))
    row = max(move.elements // move.shape[0] for move in plan.moves)
    for run in runs:
        crossing = [move for move in run if move.crosses]
        for rank in plan.targets:
            load = sum(move.elements for move in crossing if rank in (move.source_rank, move.target_rank))
            assert load <= max(limit, row)


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("data", [1, 2, 8])
@pytest.mark.parametrize("name", ["qwen3-4b", "qwen3-8b"])
def test_equal_tensor_parallelism_without_a_pipeline_moves_nothing(name: str, tensor: int, data: int) -> None:
    plan = build_plan(
        architecture_by_name(name), TrainerLayout(tensor=tensor, data=data), EngineLayout(tensor, data)
    )
    assert not any(move.crosses for move in plan.moves)


def test_with_a_pipeline_each_rank_receives_the_other_stages_once() -> None:
    architecture = dataclasses.replace(_architecture("qwen3", tied=False), vocab_size=128)
    moved = traffic(build_plan(architecture, TrainerLayout(tensor=2, pipeline=2), EngineLayout(2, 2)))
    norms = 4 * (2 * 16 + 2 * 4) + 16
    split = sum(tensor.elements for tensor in hf_tensor_list(architecture)) - norms
    # There are two engines of two ranks: each lacks half of the split tensors twice; norms are
    # whole on both.
    assert moved.direct == split + norms * 2


def test_ranks_exchange_weights_within_their_own_replica() -> None:
    trainer = TrainerLayout(tensor=2, pipeline=2, data=2)
    for move in build_plan(_architecture("qwen3", tied=True), trainer, EngineLayout(1, 8)).moves:
        assert move.source_rank in trainer.replica_of(move.target_rank)


def _corrupt(plan: ReshardPlan, change: Callable[[list[Move]], object]) -> ReshardPlan:
    moves = list(plan.moves)
    change(moves)
    return dataclasses.replace(plan, moves=tuple(moves))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda moves: moves.pop(),
            r"model.layers.3.self_attn.k_norm.weight on rank 1 is not filled|is not filled exactly once",
        ),
        (lambda moves: moves.append(moves[-1]), "is not filled exactly once"),
        (
            lambda moves: moves.__setitem__(0, dataclasses.replace(moves[0], source_start=(1, 0))),
            "would receive other elements",
        ),
        (
            lambda moves: moves.__setitem__(0, dataclasses.replace(moves[0], source_rank=1)),
            "which does not hold embedding",
        ),
    ],
    ids=["missing", "twice", "shifted", "wrong rank"],
)
def test_the_check_catches_a_wrong_plan(change: Callable[[list[Move]], object], message: str) -> None:
    plan = build_plan(_architecture("qwen3", tied=False), TrainerLayout(pipeline=2), EngineLayout(1, 2))
    with pytest.raises(ValueError, match=message):
        check_plan(_corrupt(plan, change))


def test_two_sources_for_one_element_are_caught_even_when_the_count_is_right() -> None:
    plan = build_plan(_architecture("qwen3", tied=False), TrainerLayout(), EngineLayout())
    up = next(
        i
        for i, move in enumerate(plan.moves)
        if move.target == "model.layers.0.mlp.gate_up_proj.weight" and move.target_start[0]
    )
    overlapping = dataclasses.replace(plan.moves[up], target_start=(0, 0), source_start=(0, 0))
    with pytest.raises(
        ValueError, match=r"element of model.layers.0.mlp.gate_up_proj.weight on rank 0 has two sources"
    ):
        check_plan(_corrupt(plan, lambda moves: moves.__setitem__(up, overlapping)))


def test_layouts_of_different_worlds_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"rollout.tensor_parallel=2 x 1 replicas is not Megatron's world of 4 ranks"
    ):
        build_plan(_architecture("qwen3", tied=False), TrainerLayout(tensor=2, data=2), EngineLayout(2, 1))
    with pytest.raises(
        UserError,
        match=r"parallel.pipeline=3 x parallel.virtual_pipeline=1 does not divide the model's 4 layers",
    ):
        build_plan(_architecture("qwen3", tied=False), TrainerLayout(pipeline=3), EngineLayout(1, 3))
