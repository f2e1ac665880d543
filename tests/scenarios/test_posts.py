"""The five posts: each has its scenarios, and can be asked for alone."""

import pytest

from kvmarch.errors import UnknownNameError
from kvmarch.plugins import load
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.posts import POSTS, posts_table


@pytest.fixture(scope="module")
def plugins():
    return load()


@pytest.mark.parametrize("number", range(1, len(POSTS) + 1))
def test_every_post_is_answered_by_more_than_one_scenario(plugins, number):
    table = posts_table(plugins, Choose(), [number])

    assert {row["post"] for row in table.rows} == {str(number)}
    assert len({row["scenario"] for row in table.rows}) > 1
    # Each has what loses a property, and what does not.
    answers = {row["answer"] for row in table.rows}
    assert "nothing lost" in answers
    assert any(answer.endswith("sometimes") for answer in answers)
    assert table.title == POSTS[f"post-{number}"]


def test_all_posts_are_answered_at_once(plugins):
    rows = posts_table(plugins, Choose()).rows

    assert [row["post"] for row in rows] == sorted(row["post"] for row in rows)
    assert {row["post"] for row in rows} == {"1", "2", "3", "4", "5"}


def test_a_post_that_there_is_not_is_refused(plugins):
    with pytest.raises(UnknownNameError, match="unknown post '6'; there is 1, 2, 3, 4"):
        posts_table(plugins, Choose(), [6])
