"""Scenario files collected as tests."""

import pytest

from kvmarch.scenarios.file import find


def scenario(name):
    return find(name).read_text("utf-8")


def expecting(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


def test_a_file_is_an_item_per_architecture_with_expectations(project):
    project.write("one.kvmarch.toml", scenario("aging"))
    ran = project.pytest("-v", "--kvmarch-kernel=v6.12")

    assert ran.status == 0, ran.text
    for name in ("arm64", "mips", "ppc", "x86"):
        assert f"one.kvmarch.toml::{name} PASSED" in ran.text


def test_verdicts_are_items_of_their_kernels(project):
    project.write("race.kvmarch.toml", scenario("change_pte_delete"))
    ran = project.pytest("-v", "--kvmarch-arch=arm64", "--kvmarch-kernel=v6.3")

    assert ran.status == 0, ran.text
    assert "race.kvmarch.toml::arm64-v6.3 PASSED" in ran.text
    assert "x86" not in ran.text


def test_a_verdict_that_is_not_met_shows_the_schedule(project):
    text = scenario("change_pte_delete")
    project.write(
        "race.kvmarch.toml", text.replace('verdict = "sometimes"', 'verdict = "never"')
    )
    ran = project.pytest("--kvmarch-arch=arm64", "--kvmarch-kernel=v6.3")

    assert ran.status == 1
    assert "never was expected" in ran.text
    assert "not sometimes" in ran.text
    assert "shortest schedule" in ran.text
    assert "Traceback" not in ran.text


def test_an_expectation_that_is_not_met_shows_the_run(project):
    text = scenario("change_pte")
    project.write(
        "one.kvmarch.toml", expecting(text, 'effect = "installed"', 'effect = "none"')
    )
    ran = project.pytest("--kvmarch-arch=arm64", "--kvmarch-kernel=v6.9")

    assert ran.status == 1
    assert "arm64 v6.9: effect is 'installed', expected 'none'" in ran.text
    assert "one on arm64 v6.9 (" in ran.text
    assert "Traceback" not in ran.text


def test_an_architecture_that_is_not_installed_is_skipped(project):
    text = scenario("change_pte_delete")
    project.write("race.kvmarch.toml", text.replace('"arm64"', '"vax"'))
    ran = project.pytest("-rs", "--kvmarch-arch=vax")

    assert ran.status == 0, ran.text
    assert "architecture vax is not installed" in ran.text
    assert "passed" not in ran.counts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("title = ", "not TOML", id="torn"),
        pytest.param(
            'title = "x"\n[[task]]\nname = "a"\nsteps = ["no_such_verb"]\n',
            "no_such_verb",
            id="verb",
        ),
        pytest.param(None, "expects nothing", id="nothing"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(project, text, message):
    if text is None:
        text = scenario("tour")
    project.write("bad.kvmarch.toml", text)
    ran = project.pytest()

    assert ran.status == 2
    assert "bad.kvmarch.toml" in ran.text
    assert message in ran.text
    assert "Traceback" not in ran.text
