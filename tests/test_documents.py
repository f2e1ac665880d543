"""Command output in documents is what the commands print.

``pytest --promote`` writes what they print now; read the difference before you
commit it.
"""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvmarch.cli.commands import cli

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```console\n\$ (kvmarch [^\n]*)\n(.*?)```", re.DOTALL)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
CASES = [
    pytest.param(path, found[1], found[2], id=f"{path.name}: {found[1]}")
    for path in DOCUMENTS
    for found in BLOCK.finditer(path.read_text("utf-8"))
]


@pytest.mark.parametrize(("path", "command", "printed"), CASES)
def test_output_in_documents_is_current(path, command, printed, request):
    result = CliRunner().invoke(cli, shlex.split(command)[1:], prog_name="kvmarch")

    if request.config.getoption("--promote") and result.output != printed:
        text = path.read_text("utf-8")
        old = f"```console\n$ {command}\n{printed}```"
        new = f"```console\n$ {command}\n{result.output}```"
        path.write_text(text.replace(old, new), "utf-8")
        pytest.skip("promoted")
    assert result.output == printed


def test_documents_show_commands():
    assert {"README.md"} <= {case.values[0].name for case in CASES}
