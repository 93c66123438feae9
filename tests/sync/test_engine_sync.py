"""Load weights into live vLLM engines: every Megatron layout, engines of one and two ranks,
replicas, both paths.

There are three proofs: live parameters equal the trainer's by checksum, the greedy continuations of
the two paths are equal, and they agree with transformers': in fp32 token for token, in bf16 within
rounding of the best token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfemo.common.errors import UserError
from selfemo.config.layout import EngineLayout
from selfemo.config.schema import ModelConfig, ParallelConfig, SyncConfig
from selfemo.sync.checksums import WeightMismatch, verify_transfer
from selfemo.sync.sync import SyncError, SyncReport, WeightSync
from selfemo.sync.transfer import choose_transfer
from selfemo.tokens.init_model import init_model
from selfemo.weights.convert import hf_to_megatron, megatron_to_hf
from selfemo.weights.hf_directory import HfDirectory
from selfemo.weights.load import load_hf_weights
from tests.helpers.distributed import DistributedRunner
from tests.helpers.greedy import greedy_choices, worst_shortfall
from tests.helpers.megatron_rank import megatron_chunks, weight_groups
from tests.helpers.parity import Dtype, Options, learner
from tests.helpers.sync_engine import PROMPTS, VOCAB_SIZE, Tokens, engine_for
from tests.helpers.tiny_model import save_tiny

BUCKET_BYTES = 30_000
BF16_SHORTFALL = 0.25
"""Logits that bf16 rounding may cost a greedy token against fp32 transformers."""
TIMEOUT_S = 600
"""Seconds for a call: on a busy machine importing vLLM takes minutes."""


def _sync(
    hf_dir: str, parallel: ParallelConfig, engine_tensor: int, mode: str, dtype: Dtype
) -> tuple[str, int, int, int, Tokens]:
    """Sync the weights into the engine.

    Returns path taken, tensors compared, bytes moved, least bytes possible, greedy continuations.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    engine = engine_for(hf_dir, engine_tensor, dtype)
    with megatron_chunks(Path(hf_dir), parallel, getattr(torch, dtype)) as (chunks, architecture, layout):
        load_hf_weights(chunks, hf_dir, architecture, layout.tensor_rank, layout.sizes.tensor)
        trainer = layout.sizes.trainer
        engines = EngineLayout(engine_tensor, world // engine_tensor)
        transfer = choose_transfer(
            mode, architecture, trainer, engines, weight_groups(layout), engine, rank, BUCKET_BYTES
        )
        report = transfer.send(chunks, engine, version=1)
        compared = verify_transfer(chunks, engine, architecture, trainer, engines, rank)
        return report.path, compared, report.received_bytes, report.lower_bound_bytes, engine.greedy()


@dataclass(frozen=True)
class _Ranks:
    """Processes with vLLM in them, and how many of them make an engine."""

    runner: DistributedRunner
    processes: int
    engine_tensor: int

    def __call__(self, function: Callable[..., Any], *args: object) -> list[Any]:
        return self.runner(self.processes, function, *args, timeout_s=TIMEOUT_S)


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest) -> Iterator[_Ranks]:
    """Start ranks of their own, so that no other test shares a process with vLLM."""
    runner = DistributedRunner()
    yield _Ranks(runner, *request.param)
    runner.close()


ALONE, ACROSS, REPLICAS = (2, 1), (2, 2), (4, 2)
TP2, PP2, DP2 = ParallelConfig(tensor=2), ParallelConfig(pipeline=2), ParallelConfig()
LAYOUTS = {2: (TP2, PP2, DP2), 4: (TP2, PP2, ParallelConfig(tensor=2, pipeline=2))}
"""Megatron layouts by the number of processes; the rest of four is data parallel."""


ENGINES = {"engine-per-rank": ALONE, "engine-over-two-ranks": ACROSS, "two-engines-over-two-ranks": REPLICAS}


def per_combination(*slow: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for every kind of engine and every layout; names kinds and layouts that are slow.

    The engines live from one layout to the next.
    """

    def named(values: dict[str, Any]) -> list[Any]:
        return [
            pytest.param(value, id=name, marks=pytest.mark.slow if name in slow else ())
            for name, value in values.items()
        ]

    def parametrized(test: Callable[..., None]) -> Callable[..., None]:
        test = pytest.mark.parametrize("layout", named({"tp2": 0, "pp2": 1, "dp2-or-tp2pp2": 2}))(test)
        return pytest.mark.parametrize("ranks", named(ENGINES), indirect=True)(test)

    return parametrized


per_rank = pytest.mark.parametrize("ranks", [ALONE], ids=["engine-per-rank"], indirect=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write two models of one shape, whose weights are exact in bf16."""
    root = tmp_path_factory.mktemp("models")
    first, second = (
        save_tiny(
            root / str(seed), "qwen3", True, torch.bfloat16, seed=seed, vocab_size=VOCAB_SIZE, head_dim=32
        )
        for seed in (1, 2)
    )
    return first, second


@per_combination("dp2-or-tp2pp2")
def test_both_paths_bring_the_same_right_weights(
    models: tuple[Path, Path], ranks: _Ranks, layout: int
) -> None:
    parallel = LAYOUTS[ranks.processes][layout]
    first, second = models
    tensors = len(HfDirectory(first).tensors)
    by_checkpoint = ranks(_sync, str(first), parallel, ranks.engine_tensor, "checkpoint", "bfloat16")
    other = ranks(_sync, str(second), parallel, ranks.engine_tensor, "direct", "bfloat16")
    by_plan = ranks(_sync, str(first), parallel, ranks.engine_tensor, "auto", "bfloat16")
    assert other[0][4] != by_plan[0][4]
    for (path, _, gathered_bytes, _, tokens), (
        other_path,
        compared,
        moved_bytes,
        least_bytes,
        same_tokens,
    ) in zip(by_checkpoint, by_plan):
        assert (path, other_path, compared) == ("checkpoint", "direct", tensors)
        assert same_tokens == tokens == by_plan[0][4]
        assert moved_bytes == least_bytes <= gathered_bytes
        assert (moved_bytes == 0) == (parallel.pipeline == 1 and parallel.tensor in (1, ranks.engine_tensor))
    right, wrong = (worst_shortfall(model, PROMPTS, by_plan[0][4]) for model in (first, second))
    assert right <= BF16_SHORTFALL < wrong


@per_combination("pp2", "dp2-or-tp2pp2", "two-engines-over-two-ranks")
def test_an_fp32_engine_on_cpu_takes_checkpoint_tensors_and_equals_transformers(
    models: tuple[Path, Path], ranks: _Ranks, layout: int
) -> None:
    """Compare greedy answers, since the checksums of prepacked matrices cannot be read."""
    parallel = LAYOUTS[ranks.processes][layout]
    for model in models:
        for path, compared, _, _, tokens in ranks(
            _sync, str(model), parallel, ranks.engine_tensor, "auto", "float32"
        ):
            assert path == "checkpoint"
            assert 0 < compared < len(HfDirectory(model).tensors)
            assert tokens == greedy_choices(model, PROMPTS, tokens)
    assert all(
        "sync.mode=direct: the engine holds" in text
        for text in ranks(_refuses_direct, str(models[0]), parallel, ranks.engine_tensor)
    )


def _refuses_direct(hf_dir: str, parallel: ParallelConfig, engine_tensor: int) -> str:
    with pytest.raises(UserError) as refused:
        _sync(hf_dir, parallel, engine_tensor, "direct", "float32")
    return str(refused.value)


def _weight_sync(
    hf_dir: str, parallel: ParallelConfig, dtype: Dtype, damaged: str, damaged_rank: int
) -> tuple[list[tuple[bool, bool]], str]:
    """Return (probed, checksummed) of four syncs, then the error of a fifth whose stream is damaged
    on one rank.
    """
    cadence = SyncConfig(verify_every=3, checksum_every=2)
    engine = engine_for(hf_dir, 1, dtype)
    with learner(hf_dir, parallel, Options(dtype=dtype)) as model:
        weight_sync = WeightSync(model, engine, hf_dir, cadence, dtype, PROMPTS)
        reports = [weight_sync.sync(version) for version in range(1, 5)]
        engine.damaged = damaged if dist.get_rank() == damaged_rank else ""
        try:
            with pytest.raises((SyncError, WeightMismatch)) as mismatch:
                weight_sync.sync(5, verify=True)
        finally:
            engine.damaged = ""
        return [
            (report.probed, report.checksummed_tensors > 0) for report in reports
        ], f"{mismatch.type.__name__}: {mismatch.value}"


CADENCE = [(True, True), (False, False), (False, True), (True, False)]
"""The first sync is always probed; then every third, and every second is checksummed."""


@per_rank
def test_a_wrong_tensor_in_one_engine_stops_every_rank_and_is_named(
    models: tuple[Path, Path], ranks: _Ranks
) -> None:
    for cadence, text in ranks(_weight_sync, str(models[0]), PP2, "bfloat16", "layers.1.mlp.down_proj", 1):
        assert cadence == CADENCE
        assert text.startswith(
            "WeightMismatch: tensor model.layers.1.mlp.down_proj.weight "
            "differs between the trainer and the engine on rank 1"
        )


@per_rank
def test_a_wrong_tensor_that_no_checksum_can_read_fails_the_greedy_probe(
    models: tuple[Path, Path], ranks: _Ranks
) -> None:
    for cadence, text in ranks(_weight_sync, str(models[0]), TP2, "float32", "layers.1.mlp.down_proj", 1):
        assert cadence == CADENCE
        assert text.startswith("SyncError: weight sync 5: probe 0 on rank 1: token")


def _frozen_syncs(hf_dir: str, dtype: Dtype) -> tuple[list[SyncReport], list[Tokens]]:
    """Sync, train what is not frozen by hand, sync again, and then everything; all of it probed and checked.

    The stream is damaged where it holds a frozen tensor.
    """
    options = Options(dtype=dtype, frozen_layers=1)
    cadence = SyncConfig(verify_every=1, checksum_every=1)
    engine = engine_for(hf_dir, 1, dtype)
    engine.weight_version = -1
    with learner(hf_dir, PP2, options) as model:
        weight_sync = WeightSync(model, engine, hf_dir, cadence, dtype, PROMPTS)
        reports, tokens = [weight_sync.sync(1)], [engine.greedy()]
        torch.manual_seed(3)
        for parameter in model.chunks[0].parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
        engine.damaged = "layers.0."
        try:
            reports.append(weight_sync.sync(2))
        finally:
            engine.damaged = ""
        tokens.append(engine.greedy())
        reports.append(weight_sync.sync(3, verify=True))
        return reports, [*tokens, engine.greedy()]


@per_rank
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_frozen_weights_are_sent_once_and_trained_ones_every_time(
    models: tuple[Path, Path], ranks: _Ranks, dtype: Dtype
) -> None:
    for (first, later, whole), (before, after, same) in ranks(_frozen_syncs, str(models[0]), dtype):
        assert [report.only_trained for report in (first, later, whole)] == [False, True, False]
        assert before != after == same
        assert 0 < later.received_bytes < first.received_bytes == whole.received_bytes
        assert 0 < later.checksummed_tensors < first.checksummed_tensors
        assert first.probed
        assert later.probed


def _sleep_and_wake(hf_dir: str) -> list[str]:
    """Collect the refusals of an engine that sleeps, then of one that woke without weights."""
    engine, refusals = engine_for(hf_dir, 1), []
    engine._can_sleep = True  # as on a GPU; vLLM's CPU worker accepts the calls and keeps its memory
    engine.sleep()
    for refused in (engine.greedy, lambda: engine.receive_checkpoint_tensors([], 9)):
        with pytest.raises(RuntimeError) as message:
            refused()
        refusals.append(str(message.value))
    engine.wake_up()
    engine._can_sleep = False
    with pytest.raises(RuntimeError) as message:
        engine.greedy()
    return [*refusals, str(message.value)]


@per_rank
def test_an_engine_that_sleeps_or_woke_without_weights_refuses(
    models: tuple[Path, Path], ranks: _Ranks
) -> None:
    for generating, receiving, woken in ranks(_sleep_and_wake, str(models[0])):
        assert "asleep: wake it up and send weights" in generating
        assert "asleep and cannot receive weights" in receiving
        assert "has received no weights" in woken
    assert ranks(_sync, str(models[0]), DP2, 1, "direct", "bfloat16")[0][0] == "direct"


QUESTION = [{"role": "user", "content": "how do you feel about the quick brown fox?"}]


def _serve(hf_dir: str) -> tuple[list[int], list[int]]:
    """Return prompt and greedy answer of vLLM, which gets nothing but the directory."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=hf_dir,
        distributed_executor_backend="external_launcher",
        kv_cache_memory_bytes=1 << 24,
        max_num_seqs=8,
        enforce_eager=True,
    )
    (answer,) = llm.chat(
        QUESTION, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True), use_tqdm=False
    )
    return list(answer.prompt_token_ids), list(answer.outputs[0].token_ids)


@per_rank
def test_an_exported_directory_loads_as_it_is(tmp_path: Path, ranks: _Ranks) -> None:
    """Load tokenizer, chat template and generation config too, in vLLM and in transformers."""
    shape = ModelConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        max_length=128,
    )
    source = init_model(
        tmp_path / "source",
        shape,
        ["the quick brown fox jumps over the lazy dog, how do you feel?"] * 4,
        seed=5,
    )
    hf_to_megatron(source, tmp_path / "megatron", lambda _name, _bytes: None)
    exported = tmp_path / "exported"
    megatron_to_hf(tmp_path / "megatron", exported, lambda _name, _bytes: None)
    assert {path.name for path in source.iterdir()} == {path.name for path in exported.iterdir()}
    assert (exported / "generation_config.json").read_bytes() == (
        source / "generation_config.json"
    ).read_bytes()
    tokenizer, model = (
        AutoTokenizer.from_pretrained(exported),
        AutoModelForCausalLM.from_pretrained(exported, dtype="auto"),
    )
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    assert (
        prompt.tolist()
        == AutoTokenizer.from_pretrained(source).apply_chat_template([QUESTION], add_generation_prompt=True)[
            "input_ids"
        ]
    )
    want = model.generate(prompt, do_sample=False, min_new_tokens=8, max_new_tokens=8)[
        0, prompt.shape[1] :
    ].tolist()
    assert ranks(_serve, str(exported)) == [(prompt[0].tolist(), want)] * 2
