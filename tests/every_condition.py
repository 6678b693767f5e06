"""Every condition of the language in its forms, and the evaluation of all of them on one message."""

from typing import Any

from deliver import signatures
from deliver.message import Message, Source, read_framing
from deliver.rules.load import load
from deliver.rules.model import Facts, Outside, Rule, View
from deliver.values import Content, Envelope

TEXTS: list[Any] = ["*e*", {"is": "x"}, {"contains": "the"}, {"matches": "*?e*"}, {"regex": r"(a+)+$|\bfree\b"}]
ADDRESSES: list[Any] = [*TEXTS, {"user": "a*", "detail": "*", "domain": "*.com"}, {"in": "friends"}]
NUMBERS = ["> 2", 1, "<= 10"]

FORMS: dict[str, list[Any]] = {
    **dict.fromkeys(("from", "to", "cc", "reply-to", "sender", "recipient"), ADDRESSES),
    **dict.fromkeys(("subject", "list-id", "message-id", "extension", "body"), TEXTS),
    "header": [{"Received": text, "X-Mailer": text} for text in TEXTS],
    "size": ["> 10 KiB"],
    "score": NUMBERS,
    "spam": [True, False],
    "virus": [True, *TEXTS],
    "attachment": [*TEXTS, {"name": "*.exe"}, {"extension": "zip"}, {"type": "image/*"}, {"detected-type": "*/pdf"}],
    "encrypted": [True, False, "pgp", ["smime", "zip"]],
    "is-list": [True, False],
    "is-bounce": [True, False, "permanent", {"kind": "temporary", "address": "*@example.org"}],
    "duplicate": [True, False, "1 h"],
    "date": [
        "2026-12-24",
        "> 2000-01-01",
        {"age": "> 1 d"},
        {"is": "2026-12-24", "of": "arrival", "zone": "Asia/Tokyo"},
    ],
    "time": ["22:00 to 06:00", {"is": "> 12:00", "of": "arrival"}],
    "weekday": ["mon to fri", {"is": ["sat", "sun"], "of": "arrival"}],
    "dkim": ["pass", {"result": "fail", "domain": "*.org"}],
    "auth": [{"spf": "pass", "dkim": {"result": "pass", "domain": "example.org"}}],
    "in": ["friends"],
    "recipients": NUMBERS,
    "header-count": [{"Received": "> 10", "To": 1}],
}


def rules() -> dict[str, tuple[Rule, ...]]:
    """A rule for each form, by the condition's name."""
    made = {}
    for name, forms in FORMS.items():
        tables = [{"flag": "seen", "when": {name: form}} for form in forms]
        made[name], problems = load(tables, "f", user=True, lists=["friends"])
        assert not [problem for problem in problems if not problem.warning], problems
    return made


def facts(raw: bytes) -> Facts:
    """A message with all that its conditions may ask; the DNS knows no keys."""

    def verify(content: Content) -> tuple[Any, ...]:
        return signatures.verify(content, 5.0, 25 * 1024 * 1024, lambda _name, _timeout: None)

    source = Source.of(raw)
    outside = Outside(
        addresses=lambda _name: frozenset({"example.com"}),
        signatures=verify,
        last_seen=lambda _message_id: 0.0,
        trusted=frozenset({"mx.example.net", "mx.google.com"}),
    )
    envelope = Envelope("bounces+x@example.org", "bob-work@example.net", "/nowhere/Maildir", extension="work")
    return Facts(Message(source, read_framing(source.head)), envelope, 3.5, False, ("Eicar",), 1.8e9, outside)


def ask(asked: tuple[Rule, ...], known: Facts) -> None:
    """All answers and all explanations."""
    view = View(known)
    for rule in asked:
        assert rule.condition.matches(view) in {True, False, None}
        assert rule.condition.why(view).isprintable()
