"""Test the settings that name views: which are taken, and what is refused in one line."""

from __future__ import annotations

import pytest

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.config.schema import RunConfig, SelfPlayConfig, SftConfig
from selfemo.selfplay.views import VIEWS, parse_views, unknown_views, view_names

SEVERAL = SelfPlayConfig(views=("plain", "labels", "anonymous"))


def test_sft_takes_the_views_of_self_play_unless_it_has_its_own() -> None:
    assert RunConfig(selfplay=SEVERAL).sft_views == SEVERAL.views
    assert RunConfig(selfplay=SEVERAL, sft=SftConfig(views=("plain",))).sft_views == ("plain",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selfplay.views=[]", "selfplay.views is empty"),
        ("selfplay.views=[short, plain, short]", "selfplay.views names 'short' twice"),
        ("sft.views=[labels, labels]", "sft.views names 'labels' twice"),
        ("selfplay.consensus=other_views", "needs two views"),
    ],
)
def test_lists_that_cannot_be_dealt_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_more_views_than_samples_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 views, more than selfplay\.recognizer_group_size=2 samples"):
        load_config(None, ["selfplay.views=[plain, short, labels]", "selfplay.recognizer_group_size=2"])


def test_an_unknown_view_is_named_with_the_nearest_known_one() -> None:
    config = load_config(None, ["selfplay.views=[plain, anonymus]", "sft.views=[tall]"])
    assert [problem.partition(":")[0] for problem in unknown_views(config.selfplay, config.sft)] == [
        "selfplay.views names 'anonymus'",
        "sft.views names 'tall'",
    ]
    assert "did you mean 'anonymous'?" in next(iter(unknown_views(config.selfplay, config.sft)))
    assert list(unknown_views(SEVERAL, SftConfig())) == []


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "0",
        "99",
        pytest.param("2" * 5000, id="5000 digits"),
        "plain",
        "plain,tall",
        "plain,short,plain",
        "plain,",
    ],
)
def test_views_that_a_command_cannot_use(text: str) -> None:
    with pytest.raises(UserError, match=r"^--views "):
        parse_views(text, "--views")


def test_views_as_a_command_names_them() -> None:
    assert parse_views("", "--views") == ()
    assert parse_views("3", "--views") == view_names()[:3]
    assert parse_views("short, labels", "--views") == ("short", "labels")
    assert len(set(view_names())) == len(VIEWS)
