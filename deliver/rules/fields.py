"""Conditions on the message's own header and on the envelope."""

import functools
import re
from collections.abc import Callable, Container
from typing import NamedTuple

from deliver import headers
from deliver.rules.logic import EVERY_MESSAGE, every, leaf, some, truth, whole_text_test
from deliver.rules.matching import (
    ANYTHING,
    Place,
    Test,
    any_of,
    closest,
    kind,
    number_test,
    one_text_test,
    parse_number,
    quoted,
    show_text,
    text_test,
)
from deliver.rules.model import Condition, Text, View

FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")
"""A header field's name (RFC 5322 section 3.6.8), short enough for a line of encoded words (RFC 2047 section 2)."""


def addresses(name: str, value: object, place: Place) -> Condition:
    """An address in the header field of that name."""
    together = place._replace(together=place.budget.together(name))
    return of_addresses(name, value, together, lambda view: view.addresses(name))


def envelope_address(name: str, value: object, place: Place) -> Condition:
    """The envelope sender or recipient."""
    return of_addresses(name, value, place, lambda view: [Text.of(getattr(view.facts.envelope, name))])


def of_addresses(name: str, value: object, place: Place, found: Callable[[View], list[Text]]) -> Condition:
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
            tests.append(where.attempt(functools.partial(_address_test, name, item, where), ANYTHING))
    parts = [leaf(name, any_of(tests), found, show_text)] if tests else []
    parts += [_listed(name, one, found) for one in lists]
    return some(parts) if parts else EVERY_MESSAGE


_PARTS = ("user", "detail", "domain")
_PLAIN = re.compile(r"[\w+-]+(?:\.[\w+-]+)*@[\w-]+(?:\.[\w-]+)*")


def _address_test(name: str, value: object, place: Place) -> Test:
    if isinstance(value, str) and (instead := _instead_of(name, value)):
        place.warn(f'"{value}" matches no address; write {instead}')
    if not isinstance(value, dict) or not set(_PARTS).intersection(value):
        return one_text_test(value, place, (*_PARTS, "in"))
    if other := next((key for key in value if key not in _PARTS), None):
        raise ValueError(f'"{other}" cannot stand beside {", ".join(_PARTS)}')

    def compiled(part: str) -> Test:
        below = place.at(part)._replace(together=None)
        if part == "domain" and isinstance(value[part], str) and value[part].startswith("@"):
            below.warn(f'a domain is written without the "@": "{value[part][1:]}"')
        if part != "domain" and isinstance(value[part], str) and "@" in value[part]:
            below.warn(f'"{value[part]}" matches no {part}: that stands before the "@"')
        return below.attempt(lambda: text_test(value[part], below), ANYTHING)

    tests = {part: compiled(part) for part in value}

    def accepts(address: Text) -> bool:
        return any(
            all((text := getattr(reading, part)) is not None and test.accepts(text) for part, test in tests.items())
            for reading in _readings(address)
        )

    return Test(" and ".join(f"{part} {test.words}" for part, test in tests.items()), accepts)


def _instead_of(name: str, value: str) -> str:
    """What was probably meant by a string that is no address; "" where it may be one."""
    # Each delivery reads its owner's rules: an address, as nearly all of them are, must not cost the look below.
    if not value or _PLAIN.fullmatch(value) or re.search(r"[*?\\]", value):
        return ""
    if value.startswith("@"):
        return f'"*{value}" for all addresses of that domain'
    if value == "<>":
        return '"" for the null sender'
    if "@" in value:
        found = headers.addresses(value.encode())
        instead = ", ".join(f'"{one}"' for one in found)
        return "" if found == [value] or value.startswith('"') else f"[{instead}]" if found[1:] else instead
    if re.search(r"\s", value):
        field = name.title() if name in ("to", "cc", "reply-to") else "From"
        return f'header = {{ {field} = "*{value}*" }} for the name that stands before an address'
    return f'"*@{value}" for all addresses of that domain' if re.fullmatch(r"\w[\w-]*(\.[\w-]+)+", value) else ""


class _Address(NamedTuple):
    user: Text
    detail: Text | None
    domain: Text | None


def _readings(address: Text) -> tuple[_Address, ...]:
    if not address.parts:
        address.parts = _parted(address.value)
    return address.parts


def _parted(value: str) -> tuple[_Address, ...]:
    """The parts of an address. "+" begins a detail (RFC 5233), "-" does so under qmail, and whether it does elsewhere
    only the other side knows: "no-reply" is the user "no-reply" as well as "no" with the detail "reply".
    """
    local, at, domain = value.rpartition("@")
    if not at:  # a program's word of its own host, such as "MAILER-DAEMON"
        return (_Address(Text.of(value), None, None),)
    if local.startswith('"') and local.endswith('"') and len(local) > 1:
        local = re.sub(r"(?s)\\(.)", r"\1", local[1:-1])
    readings = dict.fromkeys((_split(local, "+"), _split(local, "+-")))
    return tuple(
        _Address(Text.of(user), None if detail is None else Text.of(detail), Text.of(domain))
        for user, detail in readings
    )


def _split(local: str, separators: str) -> tuple[str, str | None]:
    """The user and the detail behind the first separator, None where there is none."""
    at = min((found for one in separators if (found := local.find(one)) >= 0), default=-1)
    return (local, None) if at < 0 else (local[:at], local[at + 1 :])


def in_list(_name: str, value: object, place: Place) -> Condition:
    """The From address stands in a list of [lists]."""
    names = _list_names({"in": value}, place)
    return some([_listed("from", one, lambda view: view.addresses("from")) for one in names])


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
    return "@" in address and (address in entries or address.rpartition("@")[2] in entries)


def extension(name: str, value: object, place: Place) -> Condition:
    """What follows "-" or "+" in the recipient's local part."""
    return leaf(name, text_test(value, place), lambda view: [Text.of(view.facts.envelope.extension)], show_text)


def field(name: str, value: object, place: Place) -> Condition:
    """The value of the header field of that name."""
    lower = name.lower()
    if isinstance(value, str) and re.fullmatch(r"\s*[<>]=?\s*[0-9.]+\s*", value):
        place.warn(f'"{value}" is looked for as a text: numbers in header fields are not compared; `score` is')
    test = text_test(value, place._replace(together=place.budget.together(lower)))
    return leaf(name, test, lambda view: view.texts(lower), show_text)


def subject(name: str, value: object, place: Place) -> Condition:
    """The Subject."""
    test = whole_text_test(name, value, place._replace(together=place.budget.together(name)))
    return leaf(name, test, lambda view: view.texts(name), show_text)


def header(name: str, value: object, place: Place) -> Condition:
    """Header fields by their names, all of them."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f'expected {name} = {{ "X-Name" = "*value*" }}')

    def compiled(one: str) -> Condition:
        below = place.at(one)
        return below.attempt(lambda: _named_field(one, value[one], below), EVERY_MESSAGE)

    return every([compiled(one) for one in value])


def _named_field(name: str, value: object, place: Place) -> Condition:
    if not FIELD_NAME.fullmatch(name):
        raise ValueError(f'"{name}" is no header field\'s name: those are ASCII, without blanks and colons')
    if isinstance(value, list) and any(_is_of_addresses(one) for one in value):
        return some([_named_field(name, one, place.at(index)) for index, one in enumerate(value)])
    if _is_of_addresses(value):
        return addresses(name.lower(), value["address"], place.at("address"))  # type: ignore[index] # it is a table
    return field(name, value, place)


def _is_of_addresses(value: object) -> bool:
    return isinstance(value, dict) and list(value) == ["address"]


def list_id(name: str, value: object, place: Place) -> Condition:
    """The identifier in List-Id."""
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, str) and (plain := item.strip("<>")) != item:
            where = place.at(index) if isinstance(value, list) else place
            where.warn(f'what stands in <> is compared, without them: "{plain}"')
    test = text_test(value, place._replace(together=place.budget.together(name)))
    return leaf(name, test, lambda view: view.once(_list_ids), show_text)


def _list_ids(view: View) -> list[Text]:
    return [Text.of(_identifier(text.value)) for text in view.texts("list-id")]


def _identifier(value: str) -> str:
    """What stands in the last <> (RFC 2919 section 3: a phrase may stand before it), else the value."""
    _, opened, rest = value.rpartition("<")
    inner, closed, _ = rest.partition(">")
    return inner.strip() if opened and closed else value


# RFC 2369, RFC 2919, and what managers of lists wrote before these: ezmlm, Mailman, fml.
_LIST_FIELDS = (
    "list-id list-post list-help list-unsubscribe list-subscribe list-owner list-archive mailing-list x-mailing-list "
    "x-beenthere x-listname x-list-id x-mailman-version x-ml-name"
).split()

_OWNER = re.compile(r"owner-.*|.*-owner")
"""The user in Sender of a message from a list of Majordomo, which writes no field of its own."""


def is_list(name: str, value: object, _place: Place) -> Condition:
    """Whether it came through a mailing list."""

    def holds(view: View) -> bool:
        if any(view.texts(field) for field in _LIST_FIELDS):
            return True
        precedence = {text.folded for text in view.texts("precedence")}
        if "list" in precedence or "bulk" not in precedence:
            return "list" in precedence
        return any(_OWNER.fullmatch(one.folded.rpartition("@")[0]) for one in view.addresses("sender"))

    return truth(name, value, holds)


def recipients(name: str, value: object, place: Place) -> Condition:
    """How many addresses To and Cc have."""
    test = number_test(value, place, parse_number, "> 20")
    return leaf(name, test, lambda view: [len(view.addresses("to")) + len(view.addresses("cc"))], str)


def header_count(name: str, value: object, place: Place) -> Condition:
    """How many fields of some names there are."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f'expected {name} = {{ Received = "> 30" }}')

    def compiled(field: str) -> Condition:
        if not FIELD_NAME.fullmatch(field):
            raise ValueError(f'"{field}" is no header field\'s name: those are ASCII, without blanks and colons')
        test = number_test(value[field], place.at(field), parse_number, "> 1")
        return leaf(f"{name} of {field}", test, lambda view: [len(view.facts.content.fields(field))], str)

    return every([place.at(field).attempt(functools.partial(compiled, field), EVERY_MESSAGE) for field in value])
