"""From statements that go on to rules of which the first that places a message ends the walk: nothing goes elsewhere."""

import random
from pathlib import Path

import converting
import pytest

from deliver.convert.flow import Does, Flow, Statement
from deliver.convert.formulas import FALSE, TRUE, AnyOf, Formula, Guard, Leaf, all_of, any_of, negated, table
from deliver.convert.model import Conversion
from deliver.values import INBOX

FIELDS = ("X-A", "X-B", "X-C")


def holds(formula: Formula, fields: frozenset[str]) -> bool:
    """Whether a formula over fields that are there or not holds for a message with these."""
    if isinstance(formula, Leaf):
        return set(formula.value) <= fields
    if hasattr(formula, "part"):
        return not holds(formula.part, fields)
    return (any if isinstance(formula, AnyOf) else all)(holds(part, fields) for part in formula.parts)


def some_formula(chance: random.Random, depth: int = 2) -> Formula:
    if not depth or chance.random() < 0.5:
        leaf = Leaf("header", {chance.choice(FIELDS): "*"})
        return negated(leaf) if chance.random() < 0.3 else leaf
    parts = [some_formula(chance, depth - 1) for _ in range(chance.randint(1, 3))]
    whole = all_of(parts) if chance.random() < 0.5 else any_of(parts)
    return negated(whole) if chance.random() < 0.3 else whole


def some_program(chance: random.Random) -> list[Statement]:
    """Statements under nested conditions, with the ways that a `stop` leaves open for those behind it."""
    statements: list[Statement] = []
    stopped: list[Formula] = []

    def block(guard: Guard, depth: int) -> None:
        for _ in range(chance.randint(1, 4)):
            kind = chance.random()
            way = (*guard, *stopped)
            if kind < 0.4 and depth:
                test = some_formula(chance)
                block((*guard, test), depth - 1)
                if chance.random() < 0.4:
                    block((*guard, negated(test)), depth - 1)
            elif kind < 0.5:
                statements.append(Statement(Does.STOP, way, len(statements) + 1))
                stopped.append(negated(all_of(guard)))
            elif kind < 0.58:
                statements.append(Statement(Does.DROP, way, len(statements) + 1))
            else:
                does = chance.choice([Does.STORE, Does.STORE, Does.STORE, Does.SEND, Does.COPY])
                target = (
                    f"{chance.choice('xyz')}@example.org" if does is Does.SEND else chance.choice(["P", "Q", INBOX])
                )
                statements.append(Statement(does, way, len(statements) + 1, target))

    block((), 2)
    return statements


def wanted(statements: list[Statement], fields: frozenset[str]) -> converting.Fate:
    """Where the program itself puts a message: in the inbox unless a statement that it comes to says otherwise."""
    places, sent, kept = set(), set(), True
    for one in statements:
        if not all(holds(part, fields) for part in one.guard):
            continue
        if one.does is Does.STOP:
            break
        kept = kept and one.does is Does.COPY
        if one.does is Does.SEND:
            sent.add(one.target)
        elif one.does is not Does.DROP:
            places.add(one.target)
    if kept:
        places.add(INBOX)
    return converting.Fate(frozenset((place, frozenset()) for place in places), frozenset(sent))


MESSAGES = [
    frozenset(field for index, field in enumerate(FIELDS) if number >> index & 1) for number in range(2 ** len(FIELDS))
]


@pytest.mark.parametrize("seed", [*range(60), 1035])  # 1035: a way that nothing can come by
def test_every_program_of_statements_becomes_rules_that_place_alike(seed: int, tmp_path: Path) -> None:
    statements = some_program(random.Random(seed))
    said = converting.rules_of(Conversion(Flow(statements).rules))
    ours = converting.Ours(tmp_path, said)
    for fields in MESSAGES:
        message = "".join(f"{field}: yes\n" for field in sorted(fields)).encode() + b"Subject: x\n\nHello.\n"
        assert ours.fate(message) == wanted(statements, fields), f"{sorted(fields)}\n{statements}\n{said}"


def test_what_was_placed_above_is_not_said_again() -> None:
    a, b = Leaf("subject", "*a*"), Leaf("subject", "*b*")
    rules = Flow(
        [
            Statement(Does.STORE, (a,), 1, "A"),
            Statement(Does.STORE, (negated(a), b), 2, "B"),
            Statement(Does.STORE, (negated(a), negated(b)), 3, "C"),
        ]
    ).rules
    assert [rule.table.get("when") for rule in rules] == [{"subject": "*a*"}, {"subject": "*b*"}, None]


def test_what_cannot_always_be_told_is_said_again_before_mail_is_deleted() -> None:
    body = Leaf("body", "*keep me*")
    rules = Flow([Statement(Does.STORE, (body,), 1, INBOX), Statement(Does.DROP, (negated(body),), 2)]).rules
    assert rules[-1].table == {"sees": "all", "discard": True, "when": {"not": {"body": "*keep me*"}}}


def test_what_cannot_always_be_told_is_no_ground_for_its_contrary() -> None:
    body = Leaf("body", "*keep me*")
    rules = Flow([Statement(Does.STORE, (body,), 1, "A"), Statement(Does.STORE, (negated(body),), 2, "B")]).rules
    assert rules[-1].table == {"sees": "all", "file": "B", "when": {"not": {"body": "*keep me*"}}}


def test_there_is_no_rule_for_what_is_placed_already() -> None:
    a = Leaf("subject", "*a*")
    stop = [Statement(Does.STORE, (a,), 1, "A"), Statement(Does.STORE, (a,), 2, "B"), Statement(Does.STOP, (a,), 3)]
    rules = Flow([*stop, Statement(Does.STORE, (negated(a),), 4, "C")]).rules
    assert [rule.table for rule in rules] == [
        {"sees": "all", "copy": "A", "file": "B", "when": {"subject": "*a*"}},
        {"sees": "all", "file": "C"},
    ]


def test_conditions_of_one_kind_stand_in_one_line() -> None:
    header = [Leaf("header", {"X-A": "1"}), Leaf("header", {"X-B": "2"})]
    assert table(all_of(header)) == {"header": {"X-A": "1", "X-B": "2"}}
    assert table(any_of([Leaf("subject", "a"), Leaf("subject", ["b", "c"])])) == {"subject": ["a", "b", "c"]}
    assert table(negated(any_of(header))) == {"not": [{"header": {"X-A": "1"}}, {"header": {"X-B": "2"}}]}
    assert all_of([header[0], negated(header[0])]) == FALSE
    assert any_of([header[0], negated(header[0])]) == TRUE
