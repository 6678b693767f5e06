"""Every message that we have goes through every condition: whatever it is like, an answer comes and no exception."""

import hashlib
from pathlib import Path

import corpora
import every_condition
import pytest

from deliver.rules.conditions import CONDITIONS

RULES = every_condition.rules()
SAMPLE = 12
"""One message in so many is asked about in `make test`."""


def in_sample(path: Path) -> bool:
    return hashlib.sha256(path.name.encode()).digest()[0] % SAMPLE == 0


def ask_all(paths: list[Path]) -> None:
    assert paths
    for path in paths:
        known = every_condition.facts(path.read_bytes())
        for name, rules in RULES.items():
            try:
                every_condition.ask(rules, known)
            except Exception as error:
                raise AssertionError(f"{name} of {path}") from error


def test_every_condition_is_asked_about() -> None:
    assert set(RULES) == set(CONDITIONS)


def test_some_messages_go_through_every_condition() -> None:
    ask_all([path for path in corpora.messages() if in_sample(path)])


@pytest.mark.faults
def test_all_messages_go_through_every_condition() -> None:
    ask_all(list(corpora.messages()))
