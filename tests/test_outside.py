"""The core and its own plugins know nothing of the distributions in contrib."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OUTSIDE = [
    folder.name.removeprefix("kvmarch-") for folder in (ROOT / "contrib").iterdir()
]
KINDS = {".c", ".css", ".h", ".html", ".js", ".py", ".toml"}
FILES = [
    path
    for folder in ("kvmarch", "plugins", "pytest_kvmarch")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in KINDS
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_word_of_an_outside_architecture(name):
    told = [path for path in FILES if name in path.read_text("utf-8").lower()]

    assert len(FILES) > 300
    assert told == []
