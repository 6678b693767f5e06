"""The walk down the rules: what they want done with one message, and why."""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from deliver import header_lines
from deliver.rules import placeholders, proofs
from deliver.rules.model import Facts, Responder, Rule, Signature, View
from deliver.values import INBOX, Action, Answer, Edits, Envelope, Note, Step, Verb, unheard


class Walk(NamedTuple):
    """What the rules said.

    ``placements`` are those of the rule that ended the walk, called ``rule``; both are empty where none did. All rules
    that matched gave ``copies``, ``flags`` (Maildir letters in ASCII order), ``headers`` (whole lines), ``added``
    (points), ``keywords``, ``edits``, ``notes`` for the log, and the folders ``unsubscribed``. ``rescued`` is true
    after a never-spam rule; ``spam`` is the decision at the end. ``answer`` is what the first rule with a reply wants
    said, whatever forbids it, and ``own`` are the addresses that this rule names as the mailbox's. ``made`` are the
    folders whose names the message has brought. ``signatures`` are what DKIM proved, None where no rule asked.
    """

    placements: tuple[Action, ...]
    copies: tuple[Action, ...]
    flags: str
    headers: bytes
    added: float
    rescued: bool
    rule: str
    spam: bool
    keywords: tuple[str, ...] = ()
    edits: Edits = Edits()
    notes: tuple[str, ...] = ()
    unsubscribed: frozenset[str] = frozenset()
    answer: Answer | None = None
    own: tuple[str, ...] = ()
    made: frozenset[str] = frozenset()
    signatures: tuple[Signature, ...] | None = None


class _Wanted(NamedTuple):
    """What one rule wants for one message: its placeholders are filled. ``troubles`` say what could not be."""

    placements: tuple[Action, ...]
    copies: tuple[Action, ...]
    headers: bytes
    tag: str
    note: str
    answer: Answer | None
    troubles: tuple[str, ...]


def walk(rules: Sequence[Rule], facts: Facts, spam_at: Callable[[float], bool], note: Note) -> Walk:
    """Ask the rules in the order given, until one places the message.

    ``spam_at`` says whether the message is spam once rules have added that many points. Every rule gives ``note`` one
    Step that says what it did and why, or why it did nothing; and one for each thing that it could not do.
    """
    view = View(facts)
    said = Walk((), (), "", b"", 0.0, rescued=False, rule="", spam=facts.spam)
    for rule in rules:
        if not (rule.never_spam or rule.sees in {"all", "spam" if view.spam else "ham"}):
            if note is not unheard:
                note(Step("rule", f"{rule.title} is passed over: {_unseen(view)}"))
            continue
        matches = rule.condition.matches(view)
        if not matches:
            if note is not unheard:
                words = "is passed over" if matches is None else "does not match"
                note(Step("rule", f"{rule.title} {words}: {rule.condition.why(view)}"))
            continue
        wanted = _wanted(rule, view)
        if note is not unheard:
            note(Step("rule", f"{rule.title} matches: {rule.condition.why(view)}; it {_deeds(rule, wanted)}"))
            for trouble in wanted.troubles:
                note(Step("rule", f"{rule.title}: {trouble}"))
        said = _with(said, rule, wanted, spam_at)
        view.spam = said.spam
        view.score = facts.score if not said.added else (facts.score or 0.0) + said.added
        if wanted.placements:
            said = said._replace(placements=wanted.placements, rule=rule.title)
            break
    return said._replace(signatures=view.asked(proofs.signatures))


def _with(said: Walk, rule: Rule, wanted: _Wanted, spam_at: Callable[[float], bool]) -> Walk:
    added = said.added + rule.add_score
    rescued = said.rescued or rule.never_spam
    spam = said.spam if not rule.add_score else spam_at(added)
    named = _folders((*wanted.placements, *wanted.copies))
    return said._replace(
        copies=(*said.copies, *wanted.copies),
        flags="".join(sorted({*said.flags, *rule.flags})),
        headers=said.headers + wanted.headers,
        added=added,
        rescued=rescued,
        spam=spam and not rescued,
        keywords=tuple(dict.fromkeys((*said.keywords, *rule.keywords))),
        edits=Edits(
            said.edits.removed | rule.edits.removed, " ".join(tag for tag in (said.edits.tag, wanted.tag) if tag)
        ),
        notes=(*said.notes, wanted.note) if wanted.note else said.notes,
        unsubscribed=said.unsubscribed | (frozenset() if rule.subscribe else named),
        made=said.made | (named - _folders((*rule.placements, *rule.copies))),
        answer=said.answer or wanted.answer,
        own=said.own if said.answer or not wanted.answer or not rule.reply else rule.reply.own,
    )


def _folders(actions: Iterable[Action]) -> frozenset[str]:
    return frozenset(action.target for action in actions if action.verb is Verb.FILE)


# --- placeholders ------------------------------------------------------------------------------------------------


def _wanted(rule: Rule, view: View) -> _Wanted:
    troubles: list[str] = []
    placements = [_located(action, view, troubles, "the inbox takes it") for action in rule.placements]
    copies = [_located(action, view, troubles, "") for action in rule.copies]
    lines = [_line(name, text, view, troubles) for name, text in rule.headers]
    answer = None
    if rule.reply is not None:
        day = time.strftime("%Y-%m-%d", time.localtime(view.facts.now))
        if (rule.reply.since or day) <= day <= (rule.reply.until or day):
            answer = _answer(rule.reply, view)
        else:
            troubles.append(f"it is {day}: not a day on which it replies")
    return _Wanted(
        placements=tuple(action for action in placements if action),
        copies=tuple(action for action in copies if action),
        headers=b"".join(lines),
        tag=_tag(rule.edits.tag, view),
        note=placeholders.fill(rule.log, view) if rule.log else "",
        answer=answer,
        troubles=tuple(troubles),
    )


def _located(action: Action, view: View, troubles: list[str], instead: str) -> Action | None:
    """The action with its folder's name as this message makes it. ``instead`` is said where the inbox must do."""
    if action.verb is not Verb.FILE or "{" not in action.target:
        return action
    try:
        return action._replace(target=placeholders.folder(action.target, view))
    except ValueError as error:
        troubles.append(f"there is no folder {action.target} for this message, {error}; {instead or 'no copy is made'}")
        return action._replace(target=INBOX) if instead else None


def _line(name: str, text: str, view: View, troubles: list[str]) -> bytes:
    value = placeholders.fill(text, view).strip()[: header_lines.LONGEST_VALUE]
    if not value:
        troubles.append(f"the message has nothing for {name}: {text}")
        return b""
    return header_lines.field(name, value)


def _tag(tag: str, view: View) -> str:
    """The tag, unless the subject has it already: in answers it comes back."""
    if not tag:
        return ""
    filled = placeholders.fill(tag, view).strip()
    return "" if any(filled.casefold() in subject.folded for subject in view.texts("subject")) else filled


def _answer(reply: Responder, view: View) -> Answer:
    envelope = view.facts.envelope
    return Answer(
        address=envelope.sender,
        recipient=envelope.recipient,
        subject=placeholders.fill(reply.subject, view).strip(),
        text="\n".join(placeholders.fill(line, view) for line in reply.text.split("\n")),
        key=_key(reply, envelope),
        every=reply.every,
    )


def _key(reply: Responder, envelope: Envelope) -> str:
    """One for each text and sender: who has read one text has not read another."""
    words = (reply.subject, reply.text, envelope.sender.lower())
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:32]


# --- in words ----------------------------------------------------------------------------------------------------


def _unseen(view: View) -> str:
    if view.spam:
        return 'the message is spam, and without sees = "spam" or "all" the rule sees only other mail'
    return 'the message is not spam, and with sees = "spam" the rule sees only spam'


_DOES = {
    Verb.FILE: "files the message into {}",
    Verb.FORWARD: "forwards it to {}",
    Verb.PIPE: "gives it to the program {}",
    Verb.DISCARD: "deletes the message",
    Verb.BOUNCE: "gives the message back to its sender",
    Verb.QUARANTINE: "holds the message in quarantine",
}

_FLAG_NAMES = {"D": "draft", "F": "flagged", "R": "answered", "S": "seen"}


def _deeds(rule: Rule, wanted: _Wanted) -> str:
    """All that a rule does, in words."""
    deeds = []
    if rule.never_spam:
        deeds.append("says that this is not spam")
    if rule.add_score:
        deeds.append(f"adds {rule.add_score:g} points")
    if wanted.headers:
        deeds.append("adds header lines")
    if rule.edits.removed:
        deeds.append("removes header lines (" + ", ".join(sorted(name.decode() for name in rule.edits.removed)) + ")")
    if wanted.tag:
        deeds.append(f'puts "{wanted.tag}" before the subject')
    if marks := [*(_FLAG_NAMES[letter] for letter in rule.flags), *rule.keywords]:
        deeds.append("marks it " + " and ".join(marks))
    if wanted.note:
        deeds.append("writes to the log")
    if wanted.answer:
        deeds.append("would answer the sender")
    deeds += [f"copies it to {_target(action)}" for action in wanted.copies]
    deeds += [_DOES[action.verb].format(_target(action)) for action in wanted.placements]
    return ", ".join(deeds) or "does nothing"


def _target(action: Action) -> str:
    return "the inbox" if action.target == INBOX else action.target
