"""The decision: what scanners and rules said becomes one plan. Nothing here touches the disk or the network.

The order is the contract's: virus, failed and skipped scanners, rules, spam, inbox; then quota, for whatever is stored;
then the verdicts that mail to others needs.
"""

from typing import NamedTuple, Protocol

from deliver import header_lines
from deliver.config import Clamd, Config, Spam, Spamd
from deliver.message import Message
from deliver.rules.evaluate import Walk, walk
from deliver.rules.model import Facts, Rule
from deliver.values import INBOX, Action, Envelope, Finding, Note, Plan, Step, Verb, Verdict


class Mailbox(Protocol):
    """What the decision must know of the mailbox."""

    def has_folder(self, name: str) -> bool:
        """Whether mail could be filed there without making a folder; False for a name that is none."""

    def over_quota(self, sizes: list[tuple[str, int]]) -> str:
        """Why messages of these sizes (folder, bytes) do not fit, in words; "" if they do."""


class Case(NamedTuple):
    """Everything that a decision rests on. ``now`` is in seconds since the epoch."""

    message: Message
    envelope: Envelope
    verdicts: tuple[Verdict, ...]
    config: Config
    spam: Spam
    rules: tuple[Rule, ...]
    filter_error: str
    mailbox: Mailbox
    now: float


def decide(case: Case, note: Note) -> Plan:
    """The plan for one message and one recipient, with its reason."""
    plan = _infected(case) or _unscanned(case, note) or _by_rules(case, note)
    plan = _within_quota(case, plan, note)
    plan = _with_all_verdicts(case, plan)
    note(Step("decide", f"{words(plan)}: {plan.reason}"))
    return plan


def words(plan: Plan) -> str:
    """What a plan does, in words."""
    said = {
        Verb.FILE: "goes into {}",
        Verb.QUARANTINE: "is held in quarantine",
        Verb.FORWARD: "is sent on to {}",
        Verb.DISCARD: "is deleted",
        Verb.BOUNCE: "goes back to its sender",
        Verb.DEFER: "is left with the mail server for another try",
    }
    return ", ".join(
        said[action.verb].format("the inbox" if action.target == INBOX else action.target) for action in plan.actions
    )


def _infected(case: Case) -> Plan | None:
    for verdict in case.verdicts:
        if verdict.finding is Finding.VIRUS and case.config.clamd is not None:
            reason = f"{verdict.scanner} found the virus {', '.join(verdict.names)}"
            match case.config.clamd.on_virus:
                case "mark":
                    return None
                case "bounce":
                    return _plan(case, Action(Verb.BOUNCE, text="5.7.1 Message contains a virus"), reason)
                case "discard":
                    return _plan(case, Action(Verb.DISCARD), reason)
                case _:
                    return _plan(case, Action(Verb.QUARANTINE, text=reason), reason)
    return None


def _unscanned(case: Case, note: Note) -> Plan | None:
    for verdict in case.verdicts:
        settings = _settings(case.config, verdict.scanner)
        if settings is None or verdict.finding not in (Finding.FAILED, Finding.SKIPPED):
            continue
        reason = f"{verdict.scanner} did not scan it: {verdict.reason}"
        todo: str = settings.on_skipped
        if verdict.finding is Finding.FAILED:
            todo = settings.on_failure
            if todo == "defer" and _waited(case) >= settings.defer_for:
                todo = settings.on_skipped
                reason += ", and it has waited long enough"
        note(Step("decide", f"{reason}; the setting says {todo}"))
        match todo:
            case "defer":
                return _plan(case, Action(Verb.DEFER, text="4.3.2 Content scanner is not available"), reason)
            case "quarantine":
                return _plan(case, Action(Verb.QUARANTINE, text=reason), reason)
            case "bounce":
                return _plan(case, Action(Verb.BOUNCE, text="5.3.4 Message cannot be scanned"), reason)
    return None


def _settings(config: Config, scanner: str) -> Clamd | Spamd | None:
    if scanner == "clamd":
        return config.clamd
    return config.spamd if scanner == "spamd" else None


def _waited(case: Case) -> float:
    """Seconds since the top Received; 0 where it does not say, so that such a message is tried again, not passed."""
    received = case.message.received()
    return 0.0 if received is None else case.now - received


class _Points:
    """Whether a message is spam, by the scanner's threshold or by ours."""

    def __init__(self, verdicts: tuple[Verdict, ...], spam: Spam) -> None:
        said = next((v for v in verdicts if v.score is not None or v.finding is Finding.SPAM), None)
        self.score = said.score if said else None
        self.found = said is not None and said.finding is Finding.SPAM
        self.own = None if spam.required_score == "scanner" else spam.required_score
        self.required = self.own if self.own is not None else (said.required if said else None)

    def spam_at(self, added: float) -> bool:
        """Whether the message is spam once rules have added points. From the threshold on it is, as with spamd."""
        if self.own is None and not added:
            return self.found
        if self.required is None:
            return self.found
        if self.score is None:
            return self.found or (added != 0 and added >= self.required)
        return self.score + added >= self.required


def _by_rules(case: Case, note: Note) -> Plan:
    points = _Points(case.verdicts, case.spam)
    viruses = tuple(name for v in case.verdicts if v.finding is Finding.VIRUS for name in v.names)
    facts = Facts(case.message, case.envelope, points.score, points.spam_at(0), viruses)
    said = walk(case.rules, facts, points.spam_at, note)
    score = points.score if not said.added else (points.score or 0.0) + said.added
    actions, reason, flags = _place(case, said, score, note)
    actions = tuple(dict.fromkeys((*said.copies, *actions)))
    return Plan(actions, reason, flags, _lines(case, said.spam, said.headers), said.spam, score)


def _place(case: Case, said: Walk, score: float | None, note: Note) -> tuple[tuple[Action, ...], str, str]:
    """Where the message goes after the rules: their placement, else deleted, the spam folder or the inbox."""
    if said.placements:
        return said.placements, said.rule, said.flags
    if said.spam and score is not None and score > case.spam.delete_above:
        reason = f"spam with {score:g} points, above the {case.spam.delete_above:g} of delete-above"
        return (Action(Verb.DISCARD),), reason, said.flags
    if said.spam:
        points = "" if score is None else f" with {score:g} points"
        flags = "".join(sorted({*said.flags, "S"})) if case.spam.mark_read else said.flags
        return (Action(Verb.FILE, case.spam.folder),), f"spam{points}", flags
    extension = case.envelope.extension
    if extension and case.mailbox.has_folder(extension):
        note(Step("decide", f"the address names the folder {extension}"))
        return (Action(Verb.FILE, extension),), f"addressed to the folder {extension}", said.flags
    return (Action(Verb.FILE, INBOX),), "rescued by a rule" if said.rescued else "no rule placed it", said.flags


def _within_quota(case: Case, plan: Plan, note: Note) -> Plan:
    size = case.message.stored_size(case.envelope.delivered_to, plan.headers)
    folders = [(action.target, size) for action in plan.actions if action.verb is Verb.FILE]
    full = case.mailbox.over_quota(folders) if folders else ""
    if not full:
        return plan
    note(Step("quota", full))
    reason = f"the mailbox is full ({full})"
    if plan.spam:
        match case.config.quota.spam_over:
            case "discard":
                return _instead(plan, Action(Verb.DISCARD), f"{plan.reason}; {reason}")
            case "quarantine":
                held = f"{plan.reason}; {reason}"
                return _instead(plan, Action(Verb.QUARANTINE, folders[0][0], held), held)
        return _only(plan, Action(Verb.DEFER, text="4.2.2 Mailbox is full"), reason)
    if case.config.quota.over == "defer":
        return _only(plan, Action(Verb.DEFER, text="4.2.2 Mailbox is full"), reason)
    return _only(plan, Action(Verb.BOUNCE, text="5.2.2 Mailbox is full"), reason)


def _with_all_verdicts(case: Case, plan: Plan) -> Plan:
    if not any(action.verb is Verb.FORWARD for action in plan.actions):
        return plan
    failed = [v for v in case.verdicts if v.finding is Finding.FAILED]
    if not failed:
        return plan
    reason = f"it is to be sent on, and {failed[0].scanner} did not scan it: {failed[0].reason}"
    return _only(plan, Action(Verb.DEFER, text="4.3.2 Content scanner is not available"), reason)


def _plan(case: Case, action: Action, reason: str) -> Plan:
    points = _Points(case.verdicts, case.spam)
    spam = points.spam_at(0)
    return Plan((action,), reason, headers=_lines(case, spam, b""), spam=spam, score=points.score)


def _instead(plan: Plan, action: Action, reason: str) -> Plan:
    """The plan with ``action`` in place of everything that is stored here."""
    others = tuple(one for one in plan.actions if one.verb is not Verb.FILE)
    return plan._replace(actions=(*others, action), reason=reason)


def _only(plan: Plan, action: Action, reason: str) -> Plan:
    return plan._replace(actions=(action,), reason=reason)


def _lines(case: Case, spam: bool, added: bytes) -> bytes:
    lines = [header_lines.filter_error(case.filter_error)] if case.filter_error else []
    own = None if case.spam.required_score == "scanner" else case.spam.required_score
    for verdict in case.verdicts:
        if verdict.scanner == "clamd":
            lines.append(header_lines.virus_status(verdict))
        elif verdict.scanner == "spamd":
            lines.append(header_lines.spam_status(verdict, spam, own))
    return b"".join([*lines, case.envelope.headers, added])
