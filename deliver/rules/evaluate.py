"""The walk down the rules: what they want done with one message, and why."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from deliver.rules.model import Facts, Rule, View
from deliver.values import INBOX, Action, Note, Step, Verb, unheard


class Walk(NamedTuple):
    """What the rules said.

    ``placements`` are those of the rule that ended the walk, called ``rule``; both are empty where none did. All rules
    that matched gave ``copies``, ``flags`` (Maildir letters in ASCII order), ``headers`` (whole lines) and ``added``
    (points). ``rescued`` is true after a never-spam rule; ``spam`` is the decision at the end.
    """

    placements: tuple[Action, ...]
    copies: tuple[Action, ...]
    flags: str
    headers: bytes
    added: float
    rescued: bool
    rule: str
    spam: bool


def walk(rules: Sequence[Rule], facts: Facts, spam_at: Callable[[float], bool], note: Note) -> Walk:
    """Ask the rules in the order given, until one places the message.

    ``spam_at`` says whether the message is spam once rules have added that many points. Every rule gives ``note`` one
    Step that says what it did and why, or why it did nothing.
    """
    view = View(facts)
    said = Walk((), (), "", b"", 0.0, rescued=False, rule="", spam=facts.spam)
    for rule in rules:
        if not (rule.never_spam or rule.sees in {"all", "spam" if view.spam else "ham"}):
            if note is not unheard:
                note(Step("rule", f"{rule.title} is passed over: {_unseen(view)}"))
            continue
        matches = rule.condition.matches(view)
        if note is not unheard:
            note(Step("rule", _sentence(rule, view, matches=matches)))
        if not matches:
            continue
        said = _with(said, rule, spam_at)
        view.spam = said.spam
        view.score = facts.score if not said.added else (facts.score or 0.0) + said.added
        if rule.placements:
            return said._replace(placements=rule.placements, rule=rule.title)
    return said


def _with(said: Walk, rule: Rule, spam_at: Callable[[float], bool]) -> Walk:
    added = said.added + rule.add_score
    rescued = said.rescued or rule.never_spam
    spam = said.spam if not rule.add_score else spam_at(added)
    return said._replace(
        copies=(*said.copies, *rule.copies),
        flags="".join(sorted({*said.flags, *rule.flags})),
        headers=said.headers + rule.headers,
        added=added,
        rescued=rescued,
        spam=spam and not rescued,
    )


def _unseen(view: View) -> str:
    if view.spam:
        return 'the message is spam, and without sees = "spam" or "all" the rule sees only other mail'
    return 'the message is not spam, and with sees = "spam" the rule sees only spam'


def _sentence(rule: Rule, view: View, *, matches: bool) -> str:
    why = rule.condition.why(view)
    return f"{rule.title} matches: {why}; it {_deeds(rule)}" if matches else f"{rule.title} does not match: {why}"


_DOES = {
    Verb.FILE: "files the message into {}",
    Verb.FORWARD: "forwards it to {}",
    Verb.DISCARD: "deletes the message",
    Verb.BOUNCE: "gives the message back to its sender",
    Verb.QUARANTINE: "holds the message in quarantine",
}

_FLAG_NAMES = {"D": "draft", "F": "flagged", "R": "answered", "S": "seen"}


def _deeds(rule: Rule) -> str:
    """All that a rule does, in words."""
    deeds = []
    if rule.never_spam:
        deeds.append("says that this is not spam")
    if rule.add_score:
        deeds.append(f"adds {rule.add_score:g} points")
    if rule.headers:
        deeds.append("adds header lines")
    if rule.flags:
        deeds.append("marks it " + " and ".join(_FLAG_NAMES[letter] for letter in rule.flags))
    deeds += [f"copies it to {_target(action)}" for action in rule.copies]
    deeds += [_DOES[action.verb].format(_target(action)) for action in rule.placements]
    return ", ".join(deeds) or "does nothing"


def _target(action: Action) -> str:
    return "the inbox" if action.target == INBOX else action.target
