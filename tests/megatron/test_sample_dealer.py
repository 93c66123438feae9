"""Test samples dealt over gloo ranks: each rank trains on the same ones, whichever engines made them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from selfemo.common.errors import UserError
from selfemo.config.layout import Layout
from selfemo.config.schema import AlgorithmConfig, ParallelConfig, RunConfig, SelfPlayConfig, TrainConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import LossConfig
from selfemo.megatron.batch import DealtBatch, batch_counts, batch_of, samples_to_write, whole_batch
from selfemo.megatron.parallel import RankLayout
from selfemo.megatron.sample_dealer import SampleDealer
from selfemo.process.engine_ranks import EngineRanks
from selfemo.run.guards import dump_batch
from tests.helpers.parity import learner
from tests.helpers.tiny_model import save_tiny

CPU = torch.device("cpu")
EPISODES = 11
VOCAB_SIZE = 64
MAX_TOKENS = 120
WORLDS = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 2, 2), (4, 1, 2), (4, 2, 2), (4, 2, 1), (4, 4, 1)]
"""(ranks, ranks per engine, tensor-parallel ranks of the trainer)."""


def made(episodes: range = range(EPISODES), longest: int = 30) -> list[TrainingSample]:
    """Make the samples of episodes: groups of four of very different lengths, some of them of weight 0."""
    found = []
    for episode in episodes:
        rng = random.Random(episode)
        for _ in range(rng.choice((1, 2, 3))):
            prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.choice((3, 9, longest))))
            weight = rng.choice((0.0, 0.5, 1.0))
            for _ in range(4):
                completion = tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.choice((1, 2, 7, 20))))
                logprobs = tuple(rng.uniform(-6, -3) for _ in completion)
                found.append(TrainingSample(prompt, completion, logprobs, rng.gauss(0, 1), weight, episode))
    return found


def config(updates: int = 1, share_prompts: bool = True) -> RunConfig:
    return RunConfig(
        selfplay=SelfPlayConfig(seeds_per_iteration=EPISODES),
        algorithm=AlgorithmConfig(updates_per_rollout=updates),
        train=TrainConfig(max_tokens_per_microbatch=MAX_TOKENS, share_prompts=share_prompts),
    )


def layout_of_rank(rank: int, ranks: int, tensor: int) -> RankLayout:
    return RankLayout(Layout(1, ranks, tensor), rank, rank % tensor, 0, 0, rank // tensor)


def _dealt(size: int, tensor: int, settings: RunConfig, longest: int = 30) -> list[DealtBatch] | str:
    ranks, rank = dist.get_world_size(), dist.get_rank()
    engine = EngineRanks.join(size)
    episodes = engine.of_engine(range(EPISODES))
    layout, updates = layout_of_rank(rank, ranks, tensor), settings.algorithm.updates_per_rollout
    dealer = SampleDealer(settings.train, updates, EPISODES, layout, engine, CPU)
    try:
        return dealer.deal(made(episodes, longest), engine.own(episodes))
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(("updates", "share_prompts"), [(1, True), (3, False)])
@pytest.mark.parametrize(("ranks", "size", "tensor"), WORLDS)
def test_every_sample_is_trained_on_once_and_is_the_one_that_was_made(
    distributed, ranks: int, size: int, tensor: int, updates: int, share_prompts: bool
) -> None:
    whole, settings = made(), config(updates, share_prompts)
    found = distributed(ranks, _dealt, size, tensor, settings)
    groups = [list(members) for _, members in groupby(whole, lambda sample: sample.prompt_ids)]
    for update in range(updates):
        mine = [s for number, group in enumerate(groups) if number % updates == update for s in group]
        trained = [sample for sample in mine if sample.weight != 0]
        batches = [found[rank][update] for rank in range(ranks)]
        for rank, batch in enumerate(batches):
            assert batch.counts == batch_counts(mine)
            assert (batch.trained_samples, batch.trained_tokens) == (
                len(trained),
                sum(len(sample.completion_ids) for sample in trained),
            )
            assert batch == replace(batches[rank - rank % tensor], moved_bytes=batch.moved_bytes)
            assert batch.samples == {index: trained[index] for index in batch.samples}
            assert sorted(batch.samples) == sorted(i for places in batch.micro_batches for i in places)
        indices = [i for batch in batches[::tensor] for places in batch.micro_batches for i in places]
        assert sorted(indices) == list(range(len(trained)))
        written = [
            index
            for rank, batch in enumerate(batches)
            for index in samples_to_write(batch, layout_of_rank(rank, ranks, tensor))
        ]
        assert sorted(written) == sorted(indices), "one rank writes each sample of a batch that is kept"
        assert len({len(batch.micro_batches) for batch in batches}) == 1
        for batch in batches:
            for places in batch.micro_batches:
                prompts = {trained[i].prompt_ids for i in places} if share_prompts else places
                read = sum(len(p if share_prompts else trained[p].prompt_ids) for p in prompts)  # type: ignore[arg-type, index]
                assert read + sum(len(trained[i].completion_ids) for i in places) <= MAX_TOKENS


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_the_batch_does_not_depend_on_the_engines(distributed, tensor: int) -> None:
    """Engines of every size, and for a single data-parallel rank the batch that one process would pack."""
    by_size = [distributed(4, _dealt, size, tensor, config()) for size in (1, 2, 4)]
    unmoved = [[replace(b, moved_samples=0, moved_bytes=0) for (b,) in found] for found in by_size]
    assert unmoved[0] == unmoved[1] == unmoved[2]
    if tensor == 4:
        trained = [sample for sample in made() if sample.weight != 0]
        alone = whole_batch(trained, config().train, layout_of_rank(0, 1, 1))
        assert unmoved[0][0].micro_batches == alone.micro_batches
        assert unmoved[0][0].samples == alone.samples


def test_samples_stay_with_the_engine_whose_ranks_train_on_them(distributed) -> None:
    """Only what evens out the ranks moves if engines and trainer have one layout; much more if not."""
    trained = [sample for sample in made() if sample.weight != 0]
    for size in (1, 2):
        (batch, *_), *_ = distributed(4, _dealt, size, size, config())
        assert 0 < batch.moved_samples < len(trained) / 3
        assert batch.moved_bytes > 4 * batch.moved_samples
    (batch,), *_ = distributed(4, _dealt, 4, 4, config())
    assert (batch.moved_samples, batch.moved_bytes) == (0, 0), "its own ranks have everything"
    (batch,), *_ = distributed(4, _dealt, 1, 4, config())
    assert batch.moved_samples == len(trained)


def alike() -> list[TrainingSample]:
    """Make two groups of four for each episode, all of one length."""
    prompts = [(episode, role) for episode in range(EPISODES) for role in (0, 1)]
    return [TrainingSample(p, (1, 2), (-1.0, -2.0), 1.0, 1.0, p[0]) for p in prompts for _ in range(4)]


def _moved(updates: int, part: slice) -> int:
    """Return the samples that move if each rank is an engine."""
    engine = EngineRanks.join(1)
    episodes = engine.of_engine(range(EPISODES))
    layout = layout_of_rank(dist.get_rank(), dist.get_world_size(), 1)
    held = [sample for sample in alike()[part] if sample.episode in episodes]
    dealer = SampleDealer(config().train, updates, EPISODES, layout, engine, CPU)
    dealt = dealer.deal(held, engine.own(episodes))
    return sum(batch.moved_samples for batch in dealt)


def test_every_batch_of_an_iteration_draws_on_every_engine(distributed) -> None:
    """Of 88 samples none moves. If each batch were a half of the iteration, 36 would."""
    half = len(alike()) // 2
    contiguous = [distributed(2, _moved, 1, part)[0] for part in (slice(half), slice(half, None))]
    assert contiguous == [16, 20]
    assert distributed(2, _moved, 2, slice(None)) == [0, 0]


@pytest.mark.parametrize("updates", range(1, 9))
def test_groups_of_both_roles_fall_to_every_batch_in_equal_shares(updates: int) -> None:
    batches = [[n for n in range(updates * 6) if batch_of(n, updates) == batch] for batch in range(updates)]
    assert {len(numbers) for numbers in batches} == {6}
    assert {sum(number % 2 for number in numbers) for numbers in batches} == {3}


def test_more_batches_than_groups_are_dealt_sample_by_sample(distributed) -> None:
    (found,) = distributed(1, _dealt, 1, 1, config(updates=60))
    assert min(batch.counts.sequences for batch in found) > 0


def test_a_sample_that_is_too_long_is_named_on_every_rank(distributed) -> None:
    found = distributed(2, _dealt, 1, 1, config(), MAX_TOKENS)
    assert found == [found[0]] * 2
    first = next(
        i for i, s in enumerate(s for s in made(longest=MAX_TOKENS) if s.weight) if s.length_tokens > 120
    )
    assert f"sample {first} has" in found[0]
    assert "raise it, or lower" in found[0]


def _kept(directory: str) -> None:
    (batch,) = _dealt(1, 1, config())
    assert isinstance(batch, DealtBatch)
    layout = layout_of_rank(dist.get_rank(), dist.get_world_size(), 1)
    dump_batch(Path(directory) / "bad_batch", "loss nan", samples_to_write(batch, layout))


def test_the_ranks_write_a_bad_batch_together_under_the_indices_of_the_whole(distributed, tmp_path) -> None:
    distributed(2, _kept, str(tmp_path))
    trained = [sample for sample in made() if sample.weight != 0]
    found: dict[int, list[int]] = {}
    for path in sorted((tmp_path / "bad_batch").glob("samples*.safetensors")):
        for name, ids in load_file(path).items():
            if name.endswith("completion_ids"):
                found[int(name.partition(".")[0])] = ids.tolist()
    assert found == {index: list(sample.completion_ids) for index, sample in enumerate(trained)}
    rows = [json.loads(path.read_text())["samples"] for path in (tmp_path / "bad_batch").glob("batch*.json")]
    weights = {row["sample"]: float(row["weight"]) for part in rows for row in part}
    assert weights == {index: sample.weight for index, sample in enumerate(trained)}


Step = tuple[float, float, int, list[torch.Tensor]]


def _step(hf_dir: str, size: int, parallel: ParallelConfig, whole: bool) -> Step:
    """Take one step; returns loss, norm, the token with the largest gap, and the weights."""
    with learner(hf_dir, parallel) as model:
        model.train = config().train
        engine = EngineRanks.join(size)
        episodes = engine.of_engine(range(EPISODES))
        dealer = SampleDealer(model.train, 1, EPISODES, model.layout, engine, CPU)
        (dealt,) = dealer.deal(made(episodes), engine.own(episodes))
        batch = [sample for sample in made() if sample.weight != 0] if whole else dealt
        loss = LossConfig.preset("self_grpo", kl_beta=0.0, entropy_weight=0.01)
        stats = model.policy_step(batch, model.plan(batch), loss, 1e-2, counts=dealt.counts)
        at = stats.largest_gap
        trained = [sample for sample in made() if sample.weight != 0]
        assert at.token == trained[at.sample].completion_ids[at.place]
        assert at.engine == pytest.approx(trained[at.sample].rollout_logprobs[at.place])
        return stats.step.loss, stats.step.grad_norm, at.sample, model.snapshot()


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("dealt") / "model", "qwen3", True, layers=2))


def _equal(one: Step, other: Step) -> bool:
    return one[:3] == other[:3] and all(a.equal(b) for a, b in zip(one[3], other[3], strict=True))


def test_a_step_on_a_dealt_batch_is_the_step_on_the_whole_one_to_the_bit(distributed, hf_dir) -> None:
    parallel = ParallelConfig(tensor=2)
    whole = distributed(2, _step, hf_dir, 1, parallel, True, timeout_s=240)
    for size in (1, 2):
        dealt = distributed(2, _step, hf_dir, size, parallel, False, timeout_s=240)
        assert all(map(_equal, whole, dealt))


def test_a_data_parallel_step_does_not_depend_on_the_engines(distributed, hf_dir) -> None:
    one, two = (distributed(2, _step, hf_dir, n, ParallelConfig(), False, timeout_s=240) for n in (1, 2))
    whole = distributed(2, _step, hf_dir, 1, ParallelConfig(), True, timeout_s=240)
    assert all(map(_equal, one, two))
    assert one[0][0] == pytest.approx(whole[0][0], abs=1e-6)
    assert one[0][2] == whole[0][2]
    for a, b in zip(one[0][3], whole[0][3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
