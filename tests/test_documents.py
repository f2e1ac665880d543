"""Command output in documents is what the commands print.

``pytest --promote`` writes what they print now; read the difference before you
commit it.
"""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvmarch.cli import command_line

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```console\n\$ (kvmarch [^\n]*)\n(.*?)```", re.DOTALL)
TABLE = re.compile(r"<!-- (kvmarch [^\n]*) -->\n(.*?)<!-- end -->", re.DOTALL)
"""A Markdown table that a command prints."""
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
CASES = [
    pytest.param(path, found[1], found[2], id=f"{path.name}: {found[1]}")
    for path in DOCUMENTS
    for form in (BLOCK, TABLE)
    for found in form.finditer(path.read_text("utf-8"))
]


@pytest.mark.parametrize(("path", "command", "printed"), CASES)
def test_output_in_documents_is_current(path, command, printed, request):
    result = CliRunner().invoke(
        command_line(), shlex.split(command)[1:], prog_name="kvmarch"
    )

    if request.config.getoption("--promote") and result.output != printed:
        text = path.read_text("utf-8")
        for head, end in ((f"$ {command}\n", "```"), (f"{command} -->\n", "<!-- end")):
            text = text.replace(head + printed + end, head + result.output + end)
        path.write_text(text, "utf-8")
        pytest.skip("promoted")
    assert result.output == printed


def test_documents_show_commands():
    assert {"README.md"} <= {case.values[0].name for case in CASES}
