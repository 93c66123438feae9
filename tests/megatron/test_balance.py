"""Test the evening out of data-parallel ranks, and the way of samples between them, without any rank."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from selfemo.grpo.samples import TrainingSample
from selfemo.grpo.wire import decode, encode
from selfemo.megatron.balance import given_away, home, places_of

UNITS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), max_size=60)


def even_out(lengths: list[int], homes: list[int], parts: int) -> list[int]:
    """Return the rank of each unit, as ranks agree on it that know their own units."""
    found, kept = list(homes), [0] * parts
    for length, part in zip(lengths, homes, strict=True):
        kept[part] += length
    mean = math.ceil(sum(lengths) / parts)
    given = []
    for part, load in enumerate(list(kept)):
        mine = [unit for unit, home in enumerate(homes) if home == part]
        lengths_of_part = torch.tensor([lengths[unit] for unit in mine], dtype=torch.int64)
        chosen = [mine[place] for place in given_away(lengths_of_part, load - mean)]
        kept[part] -= sum(lengths[unit] for unit in chosen)
        given += chosen
    length_G = torch.tensor([lengths[unit] for unit in given], dtype=torch.int64)
    part_G = places_of(length_G, torch.tensor(given, dtype=torch.int64), kept)
    for unit, place in zip(given, part_G.tolist(), strict=True):
        found[unit] = place
    return found


def loads(lengths: list[int], parts: list[int]) -> list[int]:
    return [sum(n for n, part in zip(lengths, parts, strict=True) if part == wanted) for wanted in range(4)]


@given(UNITS)
def test_no_more_tokens_move_than_lie_above_the_mean_and_no_rank_gets_heavier_than_the_heaviest(units):
    lengths, homes = [length for length, _ in units], [part for _, part in units]
    parts = even_out(lengths, homes, 4)
    before, after = loads(lengths, homes), loads(lengths, parts)
    mean = math.ceil(sum(lengths) / 4)
    moved = sum(n for n, old, new in zip(lengths, homes, parts, strict=True) if old != new)
    assert moved <= sum(max(0, load - mean) for load in before)
    assert max(after) <= max(before)
    assert max(after) <= mean + max(lengths, default=0)


def test_equal_ranks_keep_everything_and_a_single_heavy_one_gives_half_away():
    assert even_out([5, 3, 3, 5], [0, 0, 1, 1], 2) == [0, 0, 1, 1]
    assert even_out([4] * 6, [1] * 6, 2).count(0) == 3


@given(st.integers(1, 40), st.integers(1, 9))
def test_homes_are_contiguous_equal_shares_as_engines_play_them(episodes, parts):
    """`EngineRanks.of_engine` cuts openings in the same way."""
    found = [home(episode, episodes, parts) for episode in range(episodes)]
    bounds = [episodes * part // parts for part in range(parts + 1)]
    assert found == [part for part in range(parts) for _ in range(bounds[part], bounds[part + 1])]


IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6).map(tuple)
FLOATS = st.floats(allow_nan=False)


@st.composite
def _units(draw: st.DrawFn) -> list[list[TrainingSample]]:
    units = []
    for _ in range(draw(st.integers(0, 4))):
        prompt, episode, unit = draw(IDS), draw(st.integers(0, 99)), []
        for _ in range(draw(st.integers(1, 3))):
            completion = draw(IDS)
            logprobs = tuple(draw(FLOATS) for _ in completion)
            unit.append(TrainingSample(prompt, completion, logprobs, draw(FLOATS), draw(FLOATS), episode))
        units.append(unit)
    return units


@given(_units())
def test_samples_come_back_from_integers_to_the_bit(units):
    assert repr(decode(encode(units), [len(unit) for unit in units])) == repr(units)
