"""Command output in documents is what the commands print.

``pytest --promote`` writes what they print now; read the difference before you
commit it.
"""

import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvmarch.cli import command_line

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```console\n\$ (kvmarch [^\n]*)\n(.*?)```", re.DOTALL)
TABLE = re.compile(r"<!-- (kvmarch [^\n]*) -->\n(.*?)<!-- end -->", re.DOTALL)
"""A Markdown table that a command prints."""
OUTSIDE = "<!-- with the distributions in contrib -->\n"
"""Stands before a block for which those must be installed; for others none may be."""
INSTALLED = {point.name for point in entry_points(group="kvmarch")}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def needs(outside):
    """Return what skips a block whose architectures are not those that are there."""
    extra = {"riscv", "loongarch", "s390"}
    there = extra <= INSTALLED if outside else not extra & INSTALLED
    which = "all" if outside else "none"
    return pytest.mark.skipif(
        not there, reason=f"shows {which} of the distributions in contrib"
    )


CASES = [
    pytest.param(
        path,
        found[1],
        found[2],
        id=f"{path.name}: {found[1]}",
        marks=needs(found.string[: found.start()].endswith(OUTSIDE)),
    )
    for path in DOCUMENTS
    for form in (BLOCK, TABLE)
    for found in form.finditer(path.read_text("utf-8"))
]


def steady(text):
    """Return output without the times that a command has measured."""
    if "seconds" not in text:
        return text
    return re.sub(r"[ -]+", " ", re.sub(r"\b\d+\.\d+\b", "0.000", text))


@pytest.mark.parametrize(("path", "command", "printed"), CASES)
def test_output_in_documents_is_current(path, command, printed, request):
    result = CliRunner().invoke(
        command_line(), shlex.split(command)[1:], prog_name="kvmarch"
    )

    if request.config.getoption("--promote") and steady(result.output) != steady(
        printed
    ):
        text = path.read_text("utf-8")
        for head, end in ((f"$ {command}\n", "```"), (f"{command} -->\n", "<!-- end")):
            text = text.replace(head + printed + end, head + result.output + end)
        path.write_text(text, "utf-8")
        pytest.skip("promoted")
    assert steady(result.output) == steady(printed)


def test_the_readme_shows_what_kvmarch_is_asked():
    shown = {case.values[1] for case in CASES if case.values[0].name == "README.md"}

    assert "kvmarch posts --format markdown" in shown
    assert {"compare", "explore", "conform"} <= {line.split()[1] for line in shown}


def test_the_readme_has_the_test_command_of_ci():
    readme = (ROOT / "README.md").read_text("utf-8")

    assert ".venv/bin/pip install '.[test]' && .venv/bin/python -m pytest" in readme


def test_the_files_of_the_guide_to_scenarios_do_what_it_says(tmp_path):
    text = (ROOT / "docs" / "how-to" / "scenario.md").read_text("utf-8")
    once, race, expected = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    mine = tmp_path / "mine.toml"

    for content, command in (
        (once, ["compare", str(mine), "--kernel", "v6.1"]),
        (f"{once}\n{expected}", ["compare", str(mine), "--kernel", "v6.1"]),
        (race, ["explore", str(mine)]),
    ):
        mine.write_text(content, "utf-8")
        result = CliRunner().invoke(command_line(), command, prog_name="kvmarch")
        assert (result.exit_code, result.stderr) == (0, ""), result.output

    mine.write_text(f"{once}\n{expected.replace('0x0', '0x1')}", "utf-8")
    result = CliRunner().invoke(
        command_line(), ["compare", str(mine), "--kernel", "v6.1"], prog_name="kvmarch"
    )
    assert result.exit_code == 1


SCHEDULE = re.compile(r"\b([\w-]+)@\w+-v[\d.]+[^\s:`]*:[a-z\d~]+")


def test_schedules_in_documents_are_of_today():
    found = {
        schedule[0]: schedule[1]
        for path in DOCUMENTS
        for schedule in SCHEDULE.finditer(path.read_text("utf-8"))
    }

    assert found
    for schedule, scenario in found.items():
        result = CliRunner().invoke(
            command_line(), ["explore", scenario, "--replay", schedule]
        )
        assert (result.exit_code, result.stderr) == (0, ""), schedule
        assert "LOST" in result.stdout, schedule
