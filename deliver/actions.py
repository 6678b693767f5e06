"""Carrying out a plan: prepare all of it, then send on, then commit; or leave nothing behind.

A message is stored when `commit` has returned: linked and synced. What fails before that is undone; what fails after it
is answered with "try again", and the copy stays: a message twice is better than none.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from deliver import reply
from deliver.errors import Deferred
from deliver.maildir import FolderUnusable
from deliver.message import Message
from deliver.values import INBOX, Action, Answer, Envelope, Note, Plan, Step, Verb, Verdict
from quarantine.store import Held, Store


class Prepared(Protocol):
    """Something written and synced that can still be taken back."""

    def commit(self) -> object:
        """Make it last; raises Deferred or OSError."""

    def abort(self) -> None:
        """Take it back; never raises."""


class Shelf(Protocol):
    """A Maildir, as far as storing goes."""

    def prepare(self, folder: str, chunks: Iterable[bytes], flags: str = "") -> Prepared:
        """Write and sync; raises FolderUnusable or Deferred."""

    def answer(self, answer: Answer, now: float, send: Callable[[], object]) -> str:
        """Send an automatic reply unless it is too early for one; why not, "" if sent. Raises OSError."""


class Injector(Protocol):
    """The MTA's way in."""

    def send(self, sender: str, address: str, chunks: Iterable[bytes]) -> None:
        """Queue a message; raises Deferred."""


Program = Callable[[str, Envelope, Iterable[bytes]], int]
"""Runs the program of that name with the message on its standard input; its exit code. Raises Deferred."""

DELIVERED = (0, 99)
GIVEN_BACK = 100
"""Exit codes of a program, as qmail-command(8) has them; after all others, 111 as well, it is tried again."""


REFUSED = "5.7.1 Message refused"


class Tools:
    """What a plan is carried out with, for one recipient. ``subject`` and ``now`` go into the quarantine's envelope.

    ``held`` are the ids of what was quarantined.
    """

    def __init__(
        self,
        maildir: Shelf,
        quarantine: Callable[[], Store],
        injector: Callable[[], Injector],
        program: Program,
        subject: str,
        now: float,
    ) -> None:
        self.maildir = maildir
        self.quarantine = quarantine
        self.injector = injector
        self.program = program
        self.subject = subject
        self.now = now
        self.held: list[str] = []


def perform(
    plan: Plan, message: Message, envelope: Envelope, verdicts: tuple[Verdict, ...], tools: Tools, note: Note
) -> Plan:
    """Do it all or nothing. Returns the plan as it was carried out: a folder that cannot be used becomes the inbox.

    Raises Deferred; the message is then stored nowhere, or where it was committed before the failure.
    """
    if any(action.verb is Verb.DEFER for action in plan.actions):
        return plan
    prepared: list[Prepared] = []
    done: list[Action] = []
    shown = message.edited(plan.edits)
    try:
        for action in plan.actions:
            if action.verb is Verb.FILE:
                folder, part = _file(action.target, plan, shown, envelope, tools, note)
                prepared.append(part)
                done.append(action._replace(target=folder))
                continue
            if action.verb is Verb.QUARANTINE:
                prepared.append(_hold(action, plan, message, envelope, verdicts, tools))
            done.append(action)
        for action in plan.actions:
            if action.verb is Verb.PIPE:
                content = shown.stored(envelope.delivered_to, plan.headers)
                code = tools.program(action.target, envelope, content)
                if code == GIVEN_BACK:
                    reason = f"{plan.reason}; the program {action.target} gave it back"
                    return plan._replace(actions=(Action(Verb.BOUNCE, text=REFUSED),), reason=reason, answer=None)
                if code not in DELIVERED:
                    raise Deferred(f"the program {action.target} ended with {code}")
                note(Step("perform", f"the program {action.target} took it"))
        for action in plan.actions:
            if action.verb is Verb.FORWARD:
                content = shown.forwarded(envelope.delivered_to, plan.headers)
                tools.injector().send(envelope.sender, action.target, content)
                note(Step("perform", f"queued for {action.target}"))
        while prepared:
            committed = prepared[0].commit()
            prepared.pop(0)
            if isinstance(committed, Held):
                tools.held.append(committed.id)
    except OSError as error:
        raise Deferred(f"{error.strerror}: {error.filename}" if error.filename else str(error)) from error
    finally:
        for part in prepared:
            part.abort()
    return plan._replace(actions=tuple(done))


def _file(
    folder: str, plan: Plan, message: Message, envelope: Envelope, tools: Tools, note: Note
) -> tuple[str, Prepared]:
    def content() -> Iterator[bytes]:
        return message.stored(envelope.delivered_to, plan.headers)

    if folder != INBOX:
        try:
            return folder, tools.maildir.prepare(folder, content(), plan.flags + dict(plan.keywords).get(folder, ""))
        except FolderUnusable as error:
            note(Step("perform", f"the folder {folder} cannot be used ({error}); the inbox is"))
    return INBOX, tools.maildir.prepare(INBOX, content(), plan.flags + dict(plan.keywords).get(INBOX, ""))


def _hold(
    action: Action, plan: Plan, message: Message, envelope: Envelope, verdicts: tuple[Verdict, ...], tools: Tools
) -> Prepared:
    held = Held(
        recipient=_text(envelope.recipient),
        sender=_text(envelope.sender),
        subject=tools.subject,
        reason=action.text or plan.reason,
        time=tools.now,
        maildir=_text(envelope.maildir),
        folder=action.target or INBOX,
        top=message.top(envelope.delivered_to, plan.headers).decode("latin-1"),
        verdicts=tuple(summary(verdict) for verdict in verdicts),
    )
    return tools.quarantine().prepare(held, message.chunks())


def answer(wanted: Answer, message: Message, tools: Tools) -> str:
    """Send an automatic reply, for the log in words. The message is stored: no failure may change the outcome now.

    RFC 3834 makes replies optional, so one that cannot be sent is forgotten, and the sender's next message gets one.
    """
    try:
        text = reply.compose(wanted, message, tools.now)
        why = tools.maildir.answer(wanted, tools.now, lambda: tools.injector().send("", wanted.address, [text]))
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    return f"not sent to {wanted.address}: {why}" if why else f"sent to {wanted.address}"


def _text(value: str) -> str:
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def summary(verdict: Verdict) -> dict[str, object]:
    """A verdict as a JSON object, for the log, the quarantine and replay."""
    record: dict[str, object] = {"scanner": verdict.scanner, "finding": verdict.finding.value}
    if verdict.score is not None:
        record["score"] = verdict.score
    if verdict.required is not None:
        record["required"] = verdict.required
    if verdict.names:
        record["names"] = list(verdict.names)
    if verdict.objections:
        record["objections"] = [{"kind": one.kind, "text": one.text} for one in verdict.objections]
    if verdict.reason:
        record["reason"] = verdict.reason
    if verdict.detail:
        record["detail"] = verdict.detail
    record["ms"] = round(verdict.seconds * 1000, 1)
    return record
