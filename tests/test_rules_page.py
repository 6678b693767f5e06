"""docs/rules.md: each example is read, and the tests that stand beside its rules are run."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from deliver import config, replay
from deliver.replay import Settings, run_test
from deliver.rules import conditions, load, placeholders
from deliver.settings import Config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rules.md"


class Example(NamedTuple):
    """A fenced block of TOML: its heading, its kind ("user" for an owner's file) and its text."""

    heading: str
    kind: str
    text: str


def examples() -> Iterator[Example]:
    heading = ""
    for found in re.finditer(r"^#+ (.*)$|^```toml *(.*)\n((?s:.*?))^```$", PAGE.read_text(), re.MULTILINE):
        heading = found[1] or heading
        if found[3]:
            yield Example(heading, found[2], found[3])


@pytest.mark.parametrize("example", [one for one in examples() if one.kind != "wrong"], ids=lambda one: one.heading)
def test_the_tests_of_an_example_pass(example: Example, tmp_path: Path) -> None:
    path = tmp_path / "mailfilter.toml"
    path.write_text(example.text)
    document, problems = config._toml(example.text.encode())
    assert document is not None
    assert problems == []
    own = example.kind == "user"
    settings = Settings(Config(), user_file=str(path)) if own else Settings(config.load(str(path)))
    for _, index, test in replay.tests_of(document):
        assert asyncio.run(run_test(test, settings, str(tmp_path))) == (), test.get("name", index)


def test_every_recipe_of_the_cookbook_has_a_test() -> None:
    recipes = [one for one in examples() if re.match(r"\d+\. ", one.heading)]
    assert len(recipes) >= 20
    assert [one.heading for one in recipes if "[[rule.test]]" not in one.text] == []


def test_every_action_has_an_example() -> None:
    used = {key for one in examples() for key in load._ACTIONS if re.search(rf"(?m)^{key} = |^\[rule\.{key}\]", one.text)}
    assert load._ACTIONS - used <= {"quarantine"}


def test_every_condition_has_an_example_below_its_name() -> None:
    shown = {
        name
        for one in examples()
        for name in re.findall(r"`([a-z-]+)`", one.heading)
        if re.search(rf"(?m)(?:^|[{{ ]){name} = ", one.text)
    }
    assert shown >= conditions.NAMES


def test_every_placeholder_is_explained_and_no_other() -> None:
    section = PAGE.read_text().partition("\n### Placeholders\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`\{([a-z-]+)\}`", section)) == set(placeholders.VALUES)
