from kvmarch.page.runs import Run, runs_of


def test_neighbours_that_say_the_same_are_one_run():
    numbered = [(0, "a"), (1, "a"), (2, "b"), (5, "b"), (6, "b")]

    found = list(runs_of(numbered))

    assert found == [(Run(0, 1), "a"), (Run(2, 2), "b"), (Run(5, 6), "b")]


def test_nothing_has_no_runs():
    assert list(runs_of([])) == []


def test_values_that_are_false_are_runs_too():
    assert list(runs_of([(0, 0), (1, 0)])) == [(Run(0, 1), 0)]


def test_a_run_is_shown_as_a_range():
    assert [str(Run(16, 16)), str(Run(16, 31))] == ["0x10", "0x10-0x1f"]
