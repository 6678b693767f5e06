"""Conditions on who proved to have sent the message: DKIM, and what trusted servers found."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from deliver.rules.logic import EVERY_MESSAGE, every, leaf, word
from deliver.rules.matching import ANYTHING, Place, Test, closest, each, quoted, text_test
from deliver.rules.model import CannotTell, Condition, Signature, Text, View

if TYPE_CHECKING:
    from deliver.content.authentication import Result

_DKIM_RESULTS = ("pass", "fail", "none", "neutral", "policy", "temperror", "permerror")


_METHODS = ("dkim", "spf", "dmarc", "arc", "auth", "iprev", "sender-id", "domainkeys", "bimi")


def dkim(name: str, value: object, place: Place) -> Condition:
    """What a DKIM signature proves (RFC 6376)."""

    def result(item: object, where: Place) -> Test:
        return each(item, where, lambda one, _where: word(one, _DKIM_RESULTS))

    test = _result_test(value, place, result)

    def unread(view: View) -> str:
        late = next((one for one in view.once(signatures) if one.result == "temperror"), None)
        return late.detail if late else ""

    return leaf(name, test, lambda view: view.once(signatures), _shown_result, unread=unread)


def signatures(view: View) -> tuple[Signature, ...]:
    """The DKIM signatures as they were verified; one without a domain says that there is none."""
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


def auth(name: str, value: object, place: Place) -> Condition:
    """What a trusted server found (RFC 8601)."""
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

    return every([place.at(method).attempt(functools.partial(compiled, method), EVERY_MESSAGE) for method in value])


def _result_text(value: object, place: Place) -> Test:
    """A text test for what is a plain string."""
    words, accepts = text_test(value, place)
    return Test(words, lambda found: accepts(Text.of(found)))


def _results(view: View) -> list["Result"]:
    from deliver.content import authentication

    trusted = view.facts.outside.trusted
    if not trusted:
        raise CannotTell("the site trusts no server's Authentication-Results ([authentication] trusted)")
    return authentication.results(view.raw("authentication-results"), trusted)
