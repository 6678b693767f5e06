"""Conditions on what is in the message: its text, its files, and what bounced."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from deliver.rules import fields
from deliver.rules.logic import leaf, truth, whole_text_test, word
from deliver.rules.matching import (
    ANYTHING,
    LARGEST_BODY_REGEX,
    MATCHES,
    Place,
    Test,
    closest,
    each,
    one_text_test,
    quoted,
    text_test,
)
from deliver.rules.model import Condition, Text, View

if TYPE_CHECKING:
    from deliver.content.attachments import Attached, File
    from deliver.content.bodies import Body
    from deliver.content.bounces import Bounce


def body(name: str, value: object, place: Place) -> Condition:
    """A text of the body, decoded, as far as it was read."""
    test = whole_text_test(
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
    from deliver.content import bodies

    return bodies.read(view.facts.content.chunks())


def _texts(view: View) -> list[Text]:
    return [Text(text) for text in view.once(_body_of).texts]


_FILE_KEYS: dict[str, Callable[["File"], Iterable[str]]] = {
    "name": lambda file: file.names,
    "extension": lambda file: file.extensions,
    "type": lambda file: [file.type] if file.type else [],
    "detected-type": lambda file: [file.detected] if file.detected else [],
}


def attachment(name: str, value: object, place: Place) -> Condition:
    """A file: attached, or in an archive or a message that is."""
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
    from deliver.content import attachments

    return attachments.read(view.facts.content.chunks())


_WAYS = ("pgp", "smime", "zip", "7z", "rar", "pdf", "office")


def encrypted(name: str, value: object, place: Place) -> Condition:
    """In which way the message or a file is encrypted, or whether at all."""

    def unread(view: View) -> str:
        return view.once(_attached).unread

    if isinstance(value, bool):
        known = truth(name, value, lambda view: bool(view.once(_attached).encrypted))

        def matches(view: View) -> bool | None:
            doubt = not view.once(_attached).encrypted and unread(view)
            return None if doubt else known.matches(view)

        return known._replace(matches=matches)
    test = each(value, place, lambda item, _place: word(item, _WAYS))
    return leaf(name, test, lambda view: sorted(view.once(_attached).encrypted), quoted, unread=unread)


_BOUNCES: tuple[str, ...] = ("permanent", "temporary")


def is_bounce(name: str, value: object, place: Place) -> Condition:
    """A report that mail could not be delivered, for good or for now, and to whom (flufl.bounce)."""
    if isinstance(value, bool):
        return truth(name, value, lambda view: any(view.once(_bounce)))
    if not isinstance(value, dict):
        test = each(value, place, lambda item, _place: word(item, _BOUNCES))
        return leaf(name, test, lambda view: [one for one in _BOUNCES if getattr(view.once(_bounce), one)], quoted)
    if not value or (unknown := next((key for key in value if key not in ("kind", "address")), None)):
        wrong = f'unknown key "{unknown}"; ' if value else ""
        raise ValueError(
            f'{wrong}expected {name} = {{ kind = "permanent", address = "*@example.org" }}, or one of these'
        )
    kinds = _BOUNCES
    if "kind" in value:
        below = place.at("kind")
        wanted = below.attempt(lambda: each(value["kind"], below, lambda item, _place: word(item, _BOUNCES)), ANYTHING)
        kinds = tuple(one for one in _BOUNCES if wanted.accepts(one))

    def failed(view: View) -> list[Text]:
        return [Text.of(address) for one in kinds for address in sorted(getattr(view.once(_bounce), one))]

    called = f"{name} {' or '.join(kinds)} address"
    return fields.of_addresses(called, value.get("address", "*"), place.at("address"), failed)


def _bounce(view: View) -> "Bounce":
    from deliver.content import bounces

    return bounces.read(view.facts.content.chunks())
