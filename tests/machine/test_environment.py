"""What the surroundings of the machine decide."""

import pytest

from kvmarch.machine.environment import Environment, turn


def state_of(environment):
    return environment.choice, environment.short, environment.no_tables


def test_the_environment_begins_with_the_first_page_and_plenty_of_memory():
    environment = Environment()

    assert state_of(environment) == (0, 0, 0)


@pytest.mark.parametrize(
    ("turns", "state"),
    [
        pytest.param(["next"], (1, 0, 0), id="next"),
        pytest.param(["next", "next"], (2, 0, 0), id="next-again"),
        pytest.param(["short"], (0, 1, 0), id="short"),
        pytest.param(["no_tables"], (0, 0, 1), id="no-tables"),
        pytest.param(["short", "no_tables"], (0, 1, 1), id="both"),
        pytest.param(["short", "no_tables", "plenty"], (0, 0, 0), id="plenty"),
    ],
)
def test_a_turn_changes_one_choice(turns, state):
    environment = Environment()

    for what in turns:
        turn.fn(environment, what)

    assert state_of(environment) == state
