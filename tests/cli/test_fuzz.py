"""``kvmarch lab fuzz``: two kernels of the model, and one line for bad input."""

import pytest
from click.testing import CliRunner

from kvmarch.cli import command_line


def fuzz(*args):
    """Run the command; return its status and its output."""
    words = ["lab", "fuzz", "--arch", "x86", *map(str, args)]
    result = CliRunner().invoke(command_line(), words, prog_name="kvmarch")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


MODEL = ("--kernel", "v6.1", "--against", "model", "--seed", 1)


def test_the_same_kernel_agrees_with_itself():
    status, output = fuzz(*MODEL, "--steps", 80)

    assert status == 0
    assert "80 steps in 4 VMs of 2 processes, 0 differences" in output


def test_a_change_that_is_taken_away_is_found_and_kept(tmp_path):
    where = ("--steps", 4000, "--save", tmp_path)
    status, output = fuzz(*MODEL, "--without", "dirty-clear-tail", *where)

    assert status == 1
    assert "dirty_clear" in output
    assert [path.suffix for path in tmp_path.iterdir()] == [".toml"]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ((*MODEL, "--save", "/nowhere"), "--save /nowhere: no such folder"),
        ((*MODEL, "--model", "v9.9"), "unknown release 'v9.9'"),
        ((*MODEL, "--without", "nothing"), "unknown change 'nothing'"),
        ((*MODEL, "--set", "mmu"), "--set mmu: wanted OPTION=VALUE"),
        (("--kernel", "x", "--against", "model", "--seed", 1), "unknown release 'x'"),
    ],
)
def test_bad_input_is_one_line(args, why):
    status, output = fuzz(*args)

    assert status == 2
    assert output.startswith(f"kvmarch: {why}")
    assert output.count("\n") == 1
