"""The code in the guides is cut from files whose tests pass."""

import re
from pathlib import Path

import pytest

from kvmarch.hookspecs import TIERS
from kvmarch.kit.write import Geometry, files_of
from kvmarch.testing.contract.rules import RULES

TOP = Path(__file__).parent.parent.parent
GUIDE = TOP / "docs" / "add-an-architecture.md"
REGRESSION = TOP / "docs" / "how-to" / "regression-test.md"
DOWNSTREAM = TOP / "tests" / "third_party" / "downstream" / "tests"
SAMPLE = re.compile(r"```(?:python|toml)\n(.*?)```", re.DOTALL)


def samples(path):
    return [
        pytest.param(sample, id=f"{path.stem}-{number}")
        for number, sample in enumerate(SAMPLE.findall(path.read_text("utf-8")))
    ]


@pytest.mark.parametrize("sample", samples(GUIDE))
def test_samples_of_the_guide_are_what_new_arch_writes(sample):
    texts = files_of("demo", Geometry(), 5)

    assert any(sample in text for text in texts.values()), sample


@pytest.mark.parametrize("sample", samples(REGRESSION))
def test_samples_of_regression_tests_are_of_the_project_downstream(sample):
    texts = [p.read_text("utf-8") for p in DOWNSTREAM.iterdir() if p.is_file()]

    assert any(sample in text for text in texts), sample


def test_the_guide_names_every_hook_of_every_tier():
    text = GUIDE.read_text("utf-8")
    parts = re.split(r"\n## Tier (\d): ", text)
    by_tier = dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))

    for tier, names in TIERS.items():
        for name in names:
            assert f"`kvmarch_{name}`" in by_tier[tier], name


@pytest.mark.parametrize("rule", RULES)
def test_the_guide_names_every_rule_from_which_one_may_deviate(rule):
    assert f"| `{rule}` | {RULES[rule]} |" in GUIDE.read_text("utf-8")
