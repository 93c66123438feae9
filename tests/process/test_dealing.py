"""Test work dealt over ranks.

Every rank has every result in order, an error on one rank is raised on all. Rewards are the same to
the bit as on one rank.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch.distributed as dist

from selfemo.common.errors import UserError
from selfemo.config.schema import AlgorithmConfig, FlywheelConfig, RewardConfig, RunConfig
from selfemo.flywheel.flywheel import Flywheel
from selfemo.flywheel.store import Filter, FlywheelStore
from selfemo.grpo.advantages import training_samples, with_advantages
from selfemo.process.dealing import Deal, one_by_one, over_group
from selfemo.rewards.scoring import Rewards
from selfemo.run.iteration import component_means, episode_records, groups_without_ranking, role_figures
from selfemo.selfplay.episode import SelfPlay
from selfemo.selfplay.openings import OpeningPool
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.transitions import TransitionPrior
from tests.flywheel.test_flywheel import CONFIG, CORPUS, TRAIN, speak
from tests.helpers.scripted import LABELS, CharEncoder, ScriptedGenerator
from tests.helpers.watched import calls_told

ITERATIONS = 3
ALL_RANKS = over_group(None)


def _pairs(count: int) -> tuple[list[tuple[int, int]], int]:
    """Return (item, rank that computed it), and how many items this rank computed."""
    mine: list[int] = []

    def compute(item: int) -> tuple[int, int]:
        mine.append(item)
        return item, dist.get_rank()

    return ALL_RANKS(compute, range(count)), len(mine)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_rank_has_every_result_in_order_and_computes_its_share(
    distributed, ranks: int, count: int
) -> None:
    found = distributed(ranks, _pairs, count)
    results = [results for results, _ in found]
    assert all(answer == results[0] for answer in results)
    assert [item for item, _ in results[0]] == list(range(count))
    assert [n for _, n in found] == [sum(rank == me for _, rank in results[0]) for me in range(ranks)]
    assert max(n for _, n in found) <= -(-count // ranks)


def _raising(bad: Sequence[int]) -> str:
    def compute(item: int) -> int:
        if item in bad:
            raise UserError(f"item {item} is bad")
        return item

    try:
        ALL_RANKS(compute, range(10))
    except UserError as error:
        assert ALL_RANKS(abs, [-1, -2]) == [1, 2]  # the ranks are still in step
        return str(error)
    return ""


def test_what_one_rank_raises_all_raise(distributed) -> None:
    assert distributed(2, _raising, [7]) == ["item 7 is bad"] * 2
    assert distributed(2, _raising, [7, 2]) == ["item 2 is bad"] * 2  # the error of the first rank
    assert distributed(2, _raising, []) == ["", ""]


def _reading_dealt() -> list[str]:
    def _reading(item: int) -> int:
        return item

    with calls_told() as told:
        ALL_RANKS(_reading, [1, 2, 3])
    return told


def test_dealt_work_is_named_while_it_lasts(distributed) -> None:
    told = distributed(1, _reading_dealt)[0]
    assert told == ["reading of 3 items over the ranks", ""]


def _self_play(deal: Deal = ALL_RANKS) -> list[str]:
    """Run iterations as the trainer does up to the training samples.

    Returns everything that depends on rewards, floats written out in full.
    """
    config = RunConfig(selfplay=CONFIG, algorithm=AlgorithmConfig(weight_by_frequency=True))
    rewards = Rewards(RewardConfig(), TRAIN, LABELS)
    prompts = PromptBuilder(CharEncoder(), LABELS, 3, 80)
    selfplay = SelfPlay(
        ScriptedGenerator(speak), prompts, rewards.score, TransitionPrior.estimate(TRAIN), CONFIG, 5, deal
    )
    pool, found = OpeningPool(CORPUS, CONFIG, 5, 3), []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "flywheel.sqlite"
        flywheel = Flywheel(FlywheelConfig(), CORPUS, rewards, path, is_writer=True)
        for iteration in range(ITERATIONS):
            episodes = selfplay.play(pool.draw(iteration, flywheel.kept_dialogues(iteration)), iteration)
            groups = rewards.score_groups([group for episode in episodes for group in episode.groups], deal)
            found += map(repr, flywheel.offer(groups, iteration + 1))
            groups = with_advantages(groups, config.algorithm)
            samples = training_samples(groups)
            found += [repr((group.names, astuple(replace(group, components=())))) for group in groups] + [
                repr(samples),
                repr(component_means(groups)),
                repr(role_figures(groups)),
            ]
            found += map(repr, episode_records(iteration, episodes, groups, len(episodes)))
            found.append(f"{groups_without_ranking(groups)} {flywheel.outcomes(iteration)}")
        flywheel.close()
        found += map(repr, FlywheelStore(path).find(Filter()))
    return found


def test_rewards_scored_in_shares_are_those_of_one_rank_to_the_bit(distributed) -> None:
    """Compare advantages, flywheel decisions and openings, and the iteration's records."""
    alone = _self_play(one_by_one)
    assert len(alone) > 50
    assert distributed(1, _self_play) == [alone]
    assert distributed(2, _self_play) == [alone, alone]
