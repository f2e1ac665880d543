"""The documentation site builds without a warning, and manual pages are current."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOW = "it comes with the extra: pip install 'kvmarch[docs]'"


def test_the_site_builds_and_no_link_is_broken(tmp_path):
    pytest.importorskip("mkdocs", reason=HOW)
    pytest.importorskip("mkdocs_click", reason=HOW)
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet")
    done = subprocess.run(
        (*command, "--config-file", ROOT / "mkdocs.yml", "--site-dir", tmp_path),
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    made = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("index.html")}
    assert {"tutorial/index.html", "posts/gpc/index.html"} <= made
    verbs = (tmp_path / "reference/verbs/index.html").read_text("utf-8")
    assert 'id="dontneed"' in verbs
    scenarios = (tmp_path / "reference/scenarios/index.html").read_text("utf-8")
    assert "how often an event came" in scenarios
    contract = (tmp_path / "reference/contract/index.html").read_text("utf-8")
    assert "kvmarch_unmap_gfn_range" in contract
    commands = (tmp_path / "reference/commands/index.html").read_text("utf-8")
    assert "--symmetry" in commands
    # Reading it fetches nothing: every script, style and picture is its own.
    for page in tmp_path.rglob("*.html"):
        text = page.read_text("utf-8")
        assert 'src="http' not in text, page
        assert 'rel="stylesheet" href="http' not in text, page
        # Marks of the makers of the reference that nobody should see.
        assert "Sentinel" not in text, page
        assert not re.search(r":[a-zA-Z]+:(?:<code>| \w)", text), page


@pytest.mark.filterwarnings("ignore:.*make_default_short_help:DeprecationWarning")
def test_manual_pages_are_current(tmp_path, request):
    pytest.importorskip("click_man", reason=HOW)
    path = ROOT / "docs" / "man.py"
    spec = importlib.util.spec_from_file_location("man", path)
    man = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(man)
    if request.config.getoption("--promote"):
        for page in man.FOLDER.glob("*.1"):
            page.unlink()
        man.write(man.FOLDER)
    man.write(tmp_path)

    pages = {page.name: page.read_text("utf-8") for page in tmp_path.glob("*.1")}
    kept = {page.name: page.read_text("utf-8") for page in man.FOLDER.glob("*.1")}

    assert pages == kept
