"""The conditions of [rule.when]: one function and one line of CONDITIONS each.

A compile function takes the condition's name, what stands behind it in the file, and the Place where that is. It
returns the Condition, or raises ValueError with a sentence that says what was expected. Whoever calls it tells that to
the Place and goes on with a stand-in, so that every error of a file is found at once.
"""

from collections.abc import Callable, Iterable

from deliver.rules import contents, fields, moments, proofs
from deliver.rules.logic import EVERY_MESSAGE, every, leaf, none, some, truth
from deliver.rules.matching import Place, closest, kind, number_test, parse_number, quoted, show_text, text_test
from deliver.rules.model import Condition, Text, View
from deliver.units import parse_size, parse_span

DEEPEST = 16
"""Levels of `all`, `any` and `not` in each other."""

Compile = Callable[[str, object, Place], Condition]


def compile_when(table: object, place: Place, rule_keys: Iterable[str]) -> Condition:
    """The condition that a [rule.when] table makes: all of its keys. What is wrong with it goes to ``place``.

    ``rule_keys`` are keys that belong to the rule itself, to recognise them when they slip in here.
    """
    return place.attempt(lambda: _table(table, place, frozenset(rule_keys), 0), EVERY_MESSAGE)


def _table(table: object, place: Place, rule_keys: frozenset[str], depth: int) -> Condition:
    if not isinstance(table, dict):
        raise ValueError(f"expected a table of conditions, not {kind(table)}")
    if not table:
        raise ValueError("there is no condition in it; a rule for every message has none of these at all")
    if depth > DEEPEST:
        raise ValueError(f"conditions lie in each other more than {DEEPEST} deep")

    def compiled(name: str) -> Condition:
        below = place.at(name)
        return below.attempt(lambda: _condition(name, table[name], below, rule_keys, depth), EVERY_MESSAGE)

    return every([compiled(name) for name in table])


def _condition(name: str, value: object, place: Place, rule_keys: frozenset[str], depth: int) -> Condition:
    if name in CONDITIONS:
        return CONDITIONS[name](name, value, place)
    if name in _COMBINATIONS:
        return _combination(name, value, place, rule_keys, depth + 1)
    if name in rule_keys:
        raise ValueError(f'"{name}" belongs to the rule, above [rule.when]')
    hint = closest(_OTHER_WORDS.get(name.lower(), name), NAMES)
    if not hint and "-" in name:
        hint = f'; a header field is written header = {{ "{name}" = ... }}'
    raise ValueError(f'unknown condition "{name}"{hint}')


def _combination(name: str, value: object, place: Place, rule_keys: frozenset[str], depth: int) -> Condition:
    if isinstance(value, dict) and name == "not":
        return none([_table(value, place, rule_keys, depth)])
    if not isinstance(value, list):
        single = f"{name} = {{ ... }} or " if name == "not" else ""
        raise ValueError(f"expected {single}{name} = [{{ ... }}, {{ ... }}], not {kind(value)}")
    if not value:
        raise ValueError("the array is empty")

    def compiled(index: int) -> Condition:
        below = place.at(index)
        return below.attempt(lambda: _table(value[index], below, rule_keys, depth), EVERY_MESSAGE)

    return _COMBINATIONS[name]([compiled(index) for index in range(len(value))])


_COMBINATIONS = {"all": every, "any": some, "not": none}

_OTHER_WORDS = {"and": "all", "allof": "all", "or": "any", "anyof": "any", "none": "not", "unless": "not"}
"""What Sieve (RFC 5228) and people call these."""


def _size(name: str, value: object, place: Place) -> Condition:
    test = number_test(value, place, parse_size, "> 10 MiB")
    return leaf(name, test, lambda view: [view.facts.content.size], lambda size: f"{size:,}")


def _score(name: str, value: object, place: Place) -> Condition:
    test = number_test(value, place, parse_number, ">= 5")
    items = value if isinstance(value, list) else [value]
    above = any(isinstance(item, str) and item.lstrip().startswith(">") for item in items)

    def values(view: View) -> list[float]:
        return [] if view.score is None else [view.score]

    return leaf(name, test, values, lambda score: f"{score:g}", for_spam=above)


def _spam(name: str, value: object, _place: Place) -> Condition:
    return truth(name, value, lambda view: view.spam, for_spam=value is True)


def _virus(name: str, value: object, place: Place) -> Condition:
    if isinstance(value, bool):
        return truth(name, value, lambda view: bool(view.facts.viruses))
    return leaf(name, text_test(value, place), lambda view: [Text.of(one) for one in view.facts.viruses], show_text)


def _duplicate(name: str, value: object, _place: Place) -> Condition:
    """``value`` is true, false, or how far back "the same Message-ID" goes."""
    span, wanted = DUPLICATE_SPAN, value
    if isinstance(value, str):
        span, wanted = parse_span(value), True
        if span > LONGEST_DUPLICATE_SPAN:
            raise ValueError(f"expected at most 30 d, not {quoted(value)}: so long are Message-IDs remembered")

    def holds(view: View) -> bool:
        last = view.once(moments.seen_at)
        return last is not None and view.facts.now - last <= span

    condition = truth(name, wanted, holds)
    words = f"{name} within {value}" if isinstance(value, str) else condition.words
    return condition._replace(words=words, remembers=True)


DUPLICATE_SPAN = 7 * 86400.0
"""Seconds back that `duplicate = true` means: mail servers try for five days (RFC 5321 section 4.5.4.1)."""

LONGEST_DUPLICATE_SPAN = 30 * 86400.0
"""Seconds for which Message-IDs are remembered."""


def _moment(name: str, value: object, place: Place) -> Condition:
    return moments.compile_moment(name, value, place, leaf)


CONDITIONS: dict[str, Compile] = {
    "from": fields.addresses,
    "to": fields.addresses,
    "cc": fields.addresses,
    "reply-to": fields.addresses,
    "subject": fields.subject,
    "list-id": fields.list_id,
    "message-id": fields.field,
    "header": fields.header,
    "sender": fields.envelope_address,
    "recipient": fields.envelope_address,
    "extension": fields.extension,
    "size": _size,
    "score": _score,
    "spam": _spam,
    "virus": _virus,
    "attachment": contents.attachment,
    "body": contents.body,
    "encrypted": contents.encrypted,
    "is-list": fields.is_list,
    "is-bounce": contents.is_bounce,
    "duplicate": _duplicate,
    "date": _moment,
    "time": _moment,
    "weekday": _moment,
    "dkim": proofs.dkim,
    "auth": proofs.auth,
    "in": fields.in_list,
    "recipients": fields.recipients,
    "header-count": fields.header_count,
}

NAMES = frozenset({*CONDITIONS, *_COMBINATIONS})
"""All that can stand in [rule.when]."""
