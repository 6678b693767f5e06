"""What Sieve answers, our rules answer: the assertions of Dovecot's own test suite, each translated to one rule."""

import json
from typing import Any

import corpora
import pytest
import sieve

from deliver.message import Message, Source, read_framing
from deliver.rules.load import load
from deliver.rules.model import Facts, View
from deliver.values import Envelope

TRIPLES = corpora.ROOT / "sieve-triples" / "triples.jsonl"


def triples() -> list[dict[str, Any]]:
    """One for each line: a message, a Sieve test, and whether it holds."""
    return [json.loads(line) for line in TRIPLES.read_text().splitlines()] if TRIPLES.exists() else []


def answer(triple: dict[str, Any], when: dict[str, Any]) -> str:
    """What one of our rules says, in Sieve's words."""
    (rule,), problems = load([{"file": "MATCH", "when": when}], "sieve", user=True)
    assert not [problem for problem in problems if not problem.warning]
    source = Source.of(triple["message"].encode())
    said = triple["envelope"]
    envelope = Envelope(said.get("envelope.from", ""), said.get("envelope.to", ""), "/nowhere")
    facts = Facts(Message(source, read_framing(source.head)), envelope, None, spam=False, viruses=())
    return "MATCH" if rule.condition.matches(View(facts)) else "NOMATCH"


@pytest.mark.parametrize("triple", triples(), ids=lambda triple: triple["cond"][:70])
def test_a_rule_answers_as_sieve_does(triple: dict[str, Any]) -> None:
    try:
        when = sieve.conditions(triple["cond"])
    except sieve.NoCounterpart as reason:
        pytest.skip(f"our rules cannot say this: {reason}")
    assert answer(triple, when) == triple["expect"], when


def test_the_triples_are_there() -> None:
    corpora.needs("sieve-triples")
    assert len(triples()) > 90


def test_the_translator_reads_all_of_a_test() -> None:
    text = 'allof (not exists ["a", "b"], anyof (size :over 2K, header :contains ["x"] "q\\"q"), true)'
    assert sieve.conditions(text) == {
        "all": [
            {"not": {"header": {"a": "*", "b": "*"}}},
            {"any": [{"size": "> 2048"}, {"any": [{"header": {"x": {"contains": ['q"q']}}}]}]},
            {"size": ">= 0"},
        ]
    }
