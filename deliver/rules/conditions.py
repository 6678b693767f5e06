"""The conditions of [rule.when]: one function and one line of CONDITIONS each.

A compile function takes the condition's name, what stands behind it in the file, and the Place where that is. It
returns the Condition, or raises ValueError with a sentence that says what was expected. Whoever calls it tells that to
the Place and goes on with a stand-in, so that every error of a file is found at once.
"""

import functools
import re
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from deliver.rules import moments
from deliver.rules.matching import (
    ANYTHING,
    LARGEST_BODY_REGEX,
    MATCHES,
    Place,
    Test,
    any_of,
    closest,
    each,
    kind,
    number_test,
    one_text_test,
    parse_number,
    quoted,
    show_text,
    text_test,
)
from deliver.rules.model import CannotTell, Condition, Signature, Text, View
from deliver.units import parse_size, parse_span

if TYPE_CHECKING:
    from deliver.attachments import Attached, File
    from deliver.authentication import Result
    from deliver.bodies import Body
    from deliver.bounces import Bounce

T = TypeVar("T")

DEEPEST = 16
"""Levels of `all`, `any` and `not` in each other."""

Compile = Callable[[str, object, Place], Condition]

EVERY_MESSAGE = Condition("every message", lambda _view: True, lambda _view: "it is for every message")
"""The condition of a rule without `when`, and the stand-in for one that cannot be compiled."""


def compile_when(table: object, place: Place, rule_keys: Iterable[str]) -> Condition:
    """The condition that a [rule.when] table makes: all of its keys. What is wrong with it goes to ``place``.

    ``rule_keys`` are keys that belong to the rule itself, to recognise them when they slip in here.
    """
    return place.attempt(lambda: _table(table, place, frozenset(rule_keys), 0), EVERY_MESSAGE)


# --- all, any, not -----------------------------------------------------------------------------------------------


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

    return _all([compiled(name) for name in table])


def _condition(name: str, value: object, place: Place, rule_keys: frozenset[str], depth: int) -> Condition:
    if name in CONDITIONS:
        return CONDITIONS[name](name, value, place)
    if name in _COMBINATIONS:
        return _combination(name, value, place, rule_keys, depth + 1)
    if name in rule_keys:
        raise ValueError(f'"{name}" belongs to the rule, above [rule.when]')
    hint = closest(name, NAMES)
    if not hint and "-" in name:
        hint = f'; a header field is written header = {{ "{name}" = ... }}'
    raise ValueError(f'unknown condition "{name}"{hint}')


def _combination(name: str, value: object, place: Place, rule_keys: frozenset[str], depth: int) -> Condition:
    if isinstance(value, dict) and name == "not":
        return _none([_table(value, place, rule_keys, depth)])
    if not isinstance(value, list):
        single = f"{name} = {{ ... }} or " if name == "not" else ""
        raise ValueError(f"expected {single}{name} = [{{ ... }}, {{ ... }}], not {kind(value)}")
    if not value:
        raise ValueError("the array is empty")

    def compiled(index: int) -> Condition:
        below = place.at(index)
        return below.attempt(lambda: _table(value[index], below, rule_keys, depth), EVERY_MESSAGE)

    return _COMBINATIONS[name]([compiled(index) for index in range(len(value))])


def _all(parts: Sequence[Condition]) -> Condition:
    if len(parts) == 1:
        return parts[0]

    def matches(view: View) -> bool | None:
        answer: bool | None = True
        for part in parts:
            one = part.matches(view)
            if one is False:
                return False
            if one is None:
                answer = None
        return answer

    def why(view: View) -> str:
        answers = [(part.matches(view), part) for part in parts]
        decided = [part for answer, part in answers if answer is False]
        decided += [part for answer, part in answers if answer is None]
        return decided[0].why(view) if decided else "; ".join(part.why(view) for part in parts)

    return _combined(f"({' and '.join(part.words for part in parts)})", matches, why, parts)


def _any(parts: Sequence[Condition]) -> Condition:
    if len(parts) == 1:
        return parts[0]

    def matches(view: View) -> bool | None:
        answer: bool | None = False
        for part in parts:
            one = part.matches(view)
            if one:
                return True
            if one is None:
                answer = None
        return answer

    def why(view: View) -> str:
        first = next((part for part in parts if part.matches(view)), None)
        return first.why(view) if first else "; ".join(part.why(view) for part in parts)

    return _combined(f"({' or '.join(part.words for part in parts)})", matches, why, parts)


def _none(parts: Sequence[Condition]) -> Condition:
    unwanted = _any(parts)

    def matches(view: View) -> bool | None:
        answer = unwanted.matches(view)
        return None if answer is None else not answer

    def why(view: View) -> str:
        return f"{unwanted.why(view)}, and `not` excludes it" if unwanted.matches(view) else unwanted.why(view)

    return _combined(f"not {unwanted.words}", matches, why, parts)._replace(for_spam=False)


def _combined(
    words: str, matches: Callable[[View], bool | None], why: Callable[[View], str], parts: Sequence[Condition]
) -> Condition:
    for_spam, remembers = (any(getattr(part, name) for part in parts) for name in ("for_spam", "remembers"))
    return Condition(words, matches, why, for_spam, remembers)


_COMBINATIONS = {"all": _all, "any": _any, "not": _none}


# --- what stands in a message ------------------------------------------------------------------------------------


def leaf(
    name: str,
    test: Test,
    values: Callable[[View], Sequence[T]],
    show: Callable[[T], str],
    *,
    for_spam: bool = False,
    unread: Callable[[View], str] | None = None,
) -> Condition:
    """The condition that any one of the message's ``values`` passes the test; ``show`` puts one in words.

    ``values`` may raise CannotTell. ``unread`` says why there may be more values than these, "" where there are not:
    where none of these passes, nobody can tell.
    """
    words, accepts = test

    def matches(view: View) -> bool | None:
        try:
            seen = values(view)
        except CannotTell:
            return None
        for value in seen:
            if accepts(value):
                return True
        return None if unread is not None and unread(view) else False

    def why(view: View) -> str:
        try:
            seen = values(view)
        except CannotTell as error:
            return f"{name} {words} cannot be told: {error}"
        first = next((value for value in seen if accepts(value)), None)
        if first is not None:
            return f"{name} is {show(first)}" + ("" if show(first) == words else f", {words}")
        doubt = unread(view) if unread is not None else ""
        doubt = doubt and f"; {doubt}, so that this cannot be told"
        if not seen:
            return f"there is no {name} (wanted: {words}){doubt}"
        more = f" and {len(seen) - 1} more" if seen[1:] else ""
        return f"{name} is {show(seen[0])}{more}, not {words}{doubt}"

    return Condition(f"{name} {words}", matches, why, for_spam)


# --- the conditions ----------------------------------------------------------------------------------------------

FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")
"""A header field's name (RFC 5322 section 3.6.8), short enough for a line of encoded words (RFC 2047 section 2)."""


def _addresses(name: str, value: object, place: Place) -> Condition:
    together = place._replace(together=place.budget.together(name))
    return _of_addresses(name, value, together, lambda view: view.addresses(name))


def _envelope_address(name: str, value: object, place: Place) -> Condition:
    return _of_addresses(name, value, place, lambda view: [Text.of(getattr(view.facts.envelope, name))])


def _of_addresses(name: str, value: object, place: Place, found: Callable[[View], list[Text]]) -> Condition:
    """A condition that any of some addresses is as wanted, or stands in a list."""
    tests: list[Test] = []
    lists: list[str] = []
    if value == []:
        raise ValueError("the array is empty: nothing would match")
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        where = place.at(index) if isinstance(value, list) else place
        if isinstance(item, dict) and "in" in item:
            lists += where.attempt(functools.partial(_list_names, item, where), [])
        else:
            tests.append(where.attempt(functools.partial(_address_test, item, where), ANYTHING))
    parts = [leaf(name, any_of(tests), found, show_text)] if tests else []
    parts += [_listed(name, one, found) for one in lists]
    return _any(parts) if parts else EVERY_MESSAGE


_PARTS = ("user", "detail", "domain")


def _address_test(value: object, place: Place) -> Test:
    if isinstance(value, str) and value.startswith("@"):
        place.warn(f'"{value}" matches no address; write "*{value}" for all addresses of that domain')
    if not isinstance(value, dict) or not set(_PARTS).intersection(value):
        return one_text_test(value, place, (*_PARTS, "in"))
    if other := next((key for key in value if key not in _PARTS), None):
        raise ValueError(f'"{other}" cannot stand beside {", ".join(_PARTS)}')

    def compiled(part: str) -> Test:
        below = place.at(part)._replace(together=None)
        if part == "domain" and isinstance(value[part], str) and value[part].startswith("@"):
            below.warn(f'a domain is written without the "@": "{value[part][1:]}"')
        return below.attempt(lambda: text_test(value[part], below), ANYTHING)

    tests = {part: compiled(part) for part in value}

    def accepts(address: Text) -> bool:
        known = _address(address.value)
        return all((text := getattr(known, part)) is not None and test.accepts(text) for part, test in tests.items())

    return Test(" and ".join(f"{part} {test.words}" for part, test in tests.items()), accepts)


class _Address(NamedTuple):
    user: Text
    detail: Text | None
    domain: Text


@functools.lru_cache(maxsize=1000)
def _address(value: str) -> _Address:
    """The parts of an address: in ``user+detail@domain`` "-" separates as well, whichever comes first."""
    local, _, domain = value.rpartition("@")
    user, separator, detail = re.fullmatch(r"(?s)([^+-]*)([+-]?)(.*)", local).groups()  # type: ignore[union-attr]
    return _Address(Text.of(user), Text.of(detail) if separator else None, Text.of(domain))


def _in(_name: str, value: object, place: Place) -> Condition:
    names = _list_names({"in": value}, place)
    return _any([_listed("from", one, lambda view: view.addresses("from")) for one in names])


def _list_names(table: dict[str, object], place: Place) -> list[str]:
    if len(table) > 1:
        raise ValueError('"in" stands alone in its table')
    value = table["in"]
    names: list[str] = []
    if value == []:
        raise ValueError("the array is empty: nothing would match")
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str):
            raise ValueError(f'expected in = "name", the name of a list in [lists], not {kind(name)}')
        if name not in place.lists:
            known = f"there are {', '.join(sorted(place.lists))}" if place.lists else "there are none"
            raise ValueError(f'there is no list "{name}" in [lists]{closest(name, place.lists)} ({known})')
        names.append(name)
    return names


def _listed(name: str, wanted: str, found: Callable[[View], list[Text]]) -> Condition:
    def values(view: View) -> list[tuple[Text, bool]]:
        entries = view.facts.outside.addresses(wanted)
        return [(one, _stands_in(one.value.lower(), entries)) for one in found(view)]

    test = Test(f"in the list {quoted(wanted)}", lambda pair: bool(pair[1]))
    return leaf(name, test, values, lambda pair: show_text(pair[0]))


def _stands_in(address: str, entries: Container[str]) -> bool:
    return address in entries or ("@" in address and address.rpartition("@")[2] in entries)


def _extension(name: str, value: object, place: Place) -> Condition:
    return leaf(name, text_test(value, place), lambda view: [Text.of(view.facts.envelope.extension)], show_text)


def _field(name: str, value: object, place: Place) -> Condition:
    field = name.lower()
    test = text_test(value, place._replace(together=place.budget.together(field)))
    return leaf(name, test, lambda view: view.texts(field), show_text)


def _subject(name: str, value: object, place: Place) -> Condition:
    test = _whole_text_test(name, value, place._replace(together=place.budget.together(name)))
    return leaf(name, test, lambda view: view.texts(name), show_text)


def _whole_text_test(name: str, value: object, place: Place) -> Test:
    """As ``text_test``, for texts of which rules name a part and seldom all."""

    def one(item: object, where: Place) -> Test:
        if isinstance(item, str) and item and not re.search(r"[*?]", re.sub(r"\\.", "", item)):
            where.warn(f'"{item}" matches only a {name} that is just this; write "*{item}*" if it may stand within one')
        return one_text_test(item, where)

    return each(value, place, one)


def _header(name: str, value: object, place: Place) -> Condition:
    if not isinstance(value, dict) or not value:
        raise ValueError(f'expected {name} = {{ "X-Name" = "*value*" }}')

    def compiled(field: str) -> Condition:
        below = place.at(field)
        return below.attempt(lambda: _named_field(field, value[field], below), EVERY_MESSAGE)

    return _all([compiled(field) for field in value])


def _named_field(field: str, value: object, place: Place) -> Condition:
    if not FIELD_NAME.fullmatch(field):
        raise ValueError(f'"{field}" is no header field\'s name: those are ASCII, without blanks and colons')
    return _field(field, value, place)


def _list_id(name: str, value: object, place: Place) -> Condition:
    test = text_test(value, place._replace(together=place.budget.together(name)))
    return leaf(name, test, lambda view: view.once(_list_ids), show_text)


def _list_ids(view: View) -> list[Text]:
    return [Text.of(_identifier(text.value)) for text in view.texts("list-id")]


def _identifier(value: str) -> str:
    """What stands in the last <> (RFC 2919 section 3: a phrase may stand before it), else the value."""
    _, opened, rest = value.rpartition("<")
    inner, closed, _ = rest.partition(">")
    return inner.strip() if opened and closed else value


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
    return _truth(name, value, lambda view: view.spam, for_spam=value is True)


def _virus(name: str, value: object, place: Place) -> Condition:
    if isinstance(value, bool):
        return _truth(name, value, lambda view: bool(view.facts.viruses))
    return leaf(name, text_test(value, place), lambda view: [Text.of(one) for one in view.facts.viruses], show_text)


def _truth(name: str, value: object, holds: Callable[[View], bool], *, for_spam: bool = False) -> Condition:
    if not isinstance(value, bool):
        raise ValueError(f"expected {name} = true or {name} = false, not {kind(value)}")
    words = str(value).lower()
    return leaf(
        name,
        Test(words, lambda found: found is value),
        lambda view: [holds(view)],
        lambda found: str(found).lower(),
        for_spam=for_spam,
    )


# --- conditions that read the body -------------------------------------------------------------------------------


def _body(name: str, value: object, place: Place) -> Condition:
    test = _whole_text_test(
        name, value, place._replace(together=place.budget.together(name), largest=LARGEST_BODY_REGEX)
    )
    return leaf(
        name,
        test,
        lambda view: view.once(_texts),
        lambda text: quoted(" ".join(text.value[:500].split())),
        unread=lambda view: view.once(_body_of).unread,
    )


def _body_of(view: View) -> "Body":
    from deliver import bodies

    return bodies.read(view.facts.content.chunks())


def _texts(view: View) -> list[Text]:
    return [Text(text) for text in view.once(_body_of).texts]


_FILE_KEYS: dict[str, Callable[["File"], Iterable[str]]] = {
    "name": lambda file: file.names,
    "extension": lambda file: file.extensions,
    "type": lambda file: [file.type] if file.type else [],
    "detected-type": lambda file: [file.detected] if file.detected else [],
}


def _attachment(name: str, value: object, place: Place) -> Condition:
    test = each(value, place, _file_test)
    return leaf(
        name,
        test,
        lambda view: view.once(_attached).files,
        _shown_file,
        unread=lambda view: view.once(_attached).unread,
    )


def _file_test(value: object, place: Place) -> Test:
    if not isinstance(value, dict) or set(value).intersection(MATCHES) or not value:
        test = one_text_test(value, place)
        return Test(test.words, lambda file: any(test.accepts(Text.of(one)) for one in file.names))
    if unknown := next((key for key in value if key not in _FILE_KEYS), None):
        known = (*_FILE_KEYS, *MATCHES)
        raise ValueError(f'unknown key "{unknown}"{closest(unknown, known)} (there are {", ".join(known)})')

    def compiled(key: str) -> Test:
        below = place.at(key)
        if key == "extension" and isinstance(value[key], str) and value[key].startswith("."):
            below.warn(f'an extension is written without its dot: "{value[key][1:]}"')
        return below.attempt(lambda: text_test(value[key], below), ANYTHING)

    tests = {key: compiled(key) for key in value}

    def accepts(file: "File") -> bool:
        return all(any(test.accepts(Text.of(one)) for one in _FILE_KEYS[key](file)) for key, test in tests.items())

    return Test(" and ".join(f"{key} {test.words}" for key, test in tests.items()), accepts)


def _shown_file(file: "File") -> str:
    said = quoted(file.names[0]) if file.names else f"a file without a name ({file.type or file.detected})"
    return f"{said} in {quoted(file.archive)}" if file.archive else said


def _attached(view: View) -> "Attached":
    from deliver import attachments

    return attachments.read(view.facts.content.chunks())


_WAYS = ("pgp", "smime", "zip")


def _encrypted(name: str, value: object, place: Place) -> Condition:
    def unread(view: View) -> str:
        return view.once(_attached).unread

    if isinstance(value, bool):
        truth = _truth(name, value, lambda view: bool(view.once(_attached).encrypted))

        def matches(view: View) -> bool | None:
            doubt = not view.once(_attached).encrypted and unread(view)
            return None if doubt else truth.matches(view)

        return truth._replace(matches=matches)
    test = each(value, place, lambda item, _place: _word(item, _WAYS))
    return leaf(name, test, lambda view: sorted(view.once(_attached).encrypted), quoted, unread=unread)


def _word(value: object, among: Sequence[str]) -> Test:
    """A test for one word out of a few."""
    if not isinstance(value, str) or value not in among:
        hint = closest(value, among) if isinstance(value, str) else ""
        said = quoted(value) if isinstance(value, str) else kind(value)
        raise ValueError(f"expected {' or '.join(map(quoted, among))}, not {said}{hint}")
    return Test(quoted(value), lambda found: bool(found == value))


# --- conditions that know kinds of mail --------------------------------------------------------------------------

# RFC 2369, RFC 2919, and what managers of lists wrote before these.
_LIST_FIELDS = (
    "list-id list-post list-help list-unsubscribe list-subscribe list-owner list-archive mailing-list x-mailing-list "
    "x-beenthere x-listname x-list-id"
).split()


def _is_list(name: str, value: object, _place: Place) -> Condition:
    def holds(view: View) -> bool:
        if any(view.texts(field) for field in _LIST_FIELDS):
            return True
        return any(text.folded == "list" for text in view.texts("precedence"))

    return _truth(name, value, holds)


_BOUNCES: tuple[str, ...] = ("permanent", "temporary")


def _is_bounce(name: str, value: object, place: Place) -> Condition:
    if isinstance(value, bool):
        return _truth(name, value, lambda view: any(view.once(_bounce)))
    if not isinstance(value, dict):
        test = each(value, place, lambda item, _place: _word(item, _BOUNCES))
        return leaf(name, test, lambda view: [one for one in _BOUNCES if getattr(view.once(_bounce), one)], quoted)
    if not value or (unknown := next((key for key in value if key not in ("kind", "address")), None)):
        wrong = f'unknown key "{unknown}"; ' if value else ""
        raise ValueError(
            f'{wrong}expected {name} = {{ kind = "permanent", address = "*@example.org" }}, or one of these'
        )
    kinds = _BOUNCES
    if "kind" in value:
        below = place.at("kind")
        wanted = below.attempt(lambda: each(value["kind"], below, lambda item, _place: _word(item, _BOUNCES)), ANYTHING)
        kinds = tuple(one for one in _BOUNCES if wanted.accepts(one))

    def failed(view: View) -> list[Text]:
        return [Text.of(address) for one in kinds for address in sorted(getattr(view.once(_bounce), one))]

    called = f"{name} {' or '.join(kinds)} address"
    return _of_addresses(called, value.get("address", "*"), place.at("address"), failed)


def _bounce(view: View) -> "Bounce":
    from deliver import bounces

    return bounces.read(view.facts.content.chunks())


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

    condition = _truth(name, wanted, holds)
    words = f"{name} within {value}" if isinstance(value, str) else condition.words
    return condition._replace(words=words, remembers=True)


DUPLICATE_SPAN = 7 * 86400.0
"""Seconds back that `duplicate = true` means: mail servers try for five days (RFC 5321 section 4.5.4.1)."""

LONGEST_DUPLICATE_SPAN = 30 * 86400.0
"""Seconds for which Message-IDs are remembered."""


# --- conditions that count ---------------------------------------------------------------------------------------


def _recipients(name: str, value: object, place: Place) -> Condition:
    test = number_test(value, place, parse_number, "> 20")
    return leaf(name, test, lambda view: [len(view.addresses("to")) + len(view.addresses("cc"))], str)


def _header_count(name: str, value: object, place: Place) -> Condition:
    if not isinstance(value, dict) or not value:
        raise ValueError(f'expected {name} = {{ Received = "> 30" }}')

    def compiled(field: str) -> Condition:
        if not FIELD_NAME.fullmatch(field):
            raise ValueError(f'"{field}" is no header field\'s name: those are ASCII, without blanks and colons')
        test = number_test(value[field], place.at(field), parse_number, "> 1")
        return leaf(f"{name} of {field}", test, lambda view: [len(view.facts.content.fields(field))], str)

    return _all([place.at(field).attempt(functools.partial(compiled, field), EVERY_MESSAGE) for field in value])


# --- conditions that prove a sender ------------------------------------------------------------------------------

_DKIM_RESULTS = ("pass", "fail", "none", "neutral", "policy", "temperror", "permerror")
_METHODS = ("dkim", "spf", "dmarc", "arc", "auth", "iprev", "sender-id", "domainkeys", "bimi")


def _dkim(name: str, value: object, place: Place) -> Condition:
    def result(item: object, where: Place) -> Test:
        return each(item, where, lambda one, _where: _word(one, _DKIM_RESULTS))

    test = _result_test(value, place, result)

    def unread(view: View) -> str:
        late = next((one for one in view.once(_signatures) if one.result == "temperror"), None)
        return late.detail if late else ""

    return leaf(name, test, lambda view: view.once(_signatures), _shown_result, unread=unread)


def _signatures(view: View) -> tuple[Signature, ...]:
    return view.facts.outside.signatures(view.facts.content) or (Signature("none", ""),)


def _shown_result(found: "Signature | Result") -> str:
    return f"{quoted(found.result)} for {quoted(found.domain)}" if found.domain else quoted(found.result)


def _result_test(value: object, place: Place, result: Callable[[object, Place], Test]) -> Test:
    """A test for the ``result`` and the ``domain`` of what was checked."""
    if not isinstance(value, dict):
        words, accepts = result(value, place)
        return Test(words, lambda found: accepts(found.result))
    if not value or (unknown := next((key for key in value if key not in ("result", "domain")), None)):
        wrong = f'unknown key "{unknown}"; ' if value else ""
        raise ValueError(f'{wrong}expected {{ result = "pass", domain = "example.org" }}, or one of these')
    tests = []
    if "result" in value:
        below = place.at("result")
        words, accepts = below.attempt(lambda: result(value["result"], below), ANYTHING)
        tests.append(Test(words, lambda found: accepts(found.result)))
    if "domain" in value:
        where = place.at("domain")
        named = where.attempt(lambda: text_test(value["domain"], where), ANYTHING)
        tests.append(Test(f"domain {named.words}", lambda found: named.accepts(Text.of(found.domain))))
    return Test(" and ".join(test.words for test in tests), lambda found: all(test.accepts(found) for test in tests))


def _auth(name: str, value: object, place: Place) -> Condition:
    if not isinstance(value, dict) or not value:
        raise ValueError(f'expected {name} = {{ spf = "pass", dmarc = "pass" }}')

    def compiled(method: str) -> Condition:
        below = place.at(method)
        if method not in _METHODS:
            raise ValueError(f'unknown method "{method}"{closest(method, _METHODS)} (there are {", ".join(_METHODS)})')
        test = _result_test(value[method], below, _result_text)

        def values(view: View) -> list["Result"]:
            return [one for one in view.once(_results) if one.method == method]

        return leaf(f"{name} {method}", test, values, _shown_result)

    return _all([place.at(method).attempt(functools.partial(compiled, method), EVERY_MESSAGE) for method in value])


def _result_text(value: object, place: Place) -> Test:
    """A text test for what is a plain string."""
    words, accepts = text_test(value, place)
    return Test(words, lambda found: accepts(Text.of(found)))


def _results(view: View) -> list["Result"]:
    from deliver import authentication

    trusted = view.facts.outside.trusted
    if not trusted:
        raise CannotTell("the site trusts no server's Authentication-Results ([authentication] trusted)")
    return authentication.results(view.facts.content.fields("authentication-results"), trusted)


def _moment(name: str, value: object, place: Place) -> Condition:
    return moments.compile_moment(name, value, place, leaf)


CONDITIONS: dict[str, Compile] = {
    "from": _addresses,
    "to": _addresses,
    "cc": _addresses,
    "reply-to": _addresses,
    "subject": _subject,
    "list-id": _list_id,
    "message-id": _field,
    "header": _header,
    "sender": _envelope_address,
    "recipient": _envelope_address,
    "extension": _extension,
    "size": _size,
    "score": _score,
    "spam": _spam,
    "virus": _virus,
    "attachment": _attachment,
    "body": _body,
    "encrypted": _encrypted,
    "is-list": _is_list,
    "is-bounce": _is_bounce,
    "duplicate": _duplicate,
    "date": _moment,
    "time": _moment,
    "weekday": _moment,
    "dkim": _dkim,
    "auth": _auth,
    "in": _in,
    "recipients": _recipients,
    "header-count": _header_count,
}

NAMES = frozenset({*CONDITIONS, *_COMBINATIONS})
"""All that can stand in [rule.when]."""
