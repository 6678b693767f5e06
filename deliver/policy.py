"""The decision: what scanners and rules said becomes one plan. Nothing here touches the disk or the network.

The order is the contract's: virus, attachments, failed and skipped scanners, rules, spam, inbox; then quota, for
whatever is stored; then the verdicts that mail to others needs.
"""

from typing import NamedTuple, Protocol

from deliver import header_lines, reply
from deliver.message import Message
from deliver.rules.evaluate import Walk, walk
from deliver.rules.model import Facts, Outside, Rule, message_id
from deliver.settings import Attachments, Config, Spam, SpamScanner, VirusScanner, settings_of
from deliver.values import INBOX, Action, Answer, Envelope, Finding, Note, Objection, Plan, Step, Verb, Verdict

_STRICTEST_FIRST = ("discard", "bounce", "quarantine", "mark")
_NOT_ACCEPTED = "5.7.1 Message has an attachment that is not accepted"
_LONGEST_REASON = 900  # characters; a log line in syslog has 7,000


class Mailbox(Protocol):
    """What the decision must know of the mailbox."""

    def has_folder(self, name: str) -> bool:
        """Whether mail could be filed there without making a folder; False for a name that is none."""

    def over_quota(self, sizes: list[tuple[str, int]]) -> str:
        """Why messages of these sizes (folder, bytes) do not fit, in words; "" if they do."""

    def may_grow(self) -> bool:
        """Whether one folder more may be made for a name that a message brings."""

    def keywords(self, folder: str) -> dict[str, str]:
        """The letters of the IMAP keywords that a folder knows, by their names in small letters."""

    def answered(self, answer: Answer, now: float) -> str:
        """Why this automatic reply may not go out at ``now``, "" if it may."""


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
    outside: Outside = Outside()
    attachments: Attachments | None = None


def decide(case: Case, note: Note) -> Plan:
    """The plan for one message and one recipient, with its reason."""
    plan = _infected(case) or _objected(case, note) or _unscanned(case, note) or _by_rules(case, note)
    plan = _answering(_within_quota(case, plan, note), note)
    plan = _remembering(case, _with_all_verdicts(case, plan))
    note(Step("decide", f"{words(plan)}: {plan.reason}"))
    return plan


def words(plan: Plan) -> str:
    """What a plan does, in words."""
    said = {
        Verb.FILE: "goes into {}",
        Verb.QUARANTINE: "is held in quarantine",
        Verb.FORWARD: "is sent on to {}",
        Verb.PIPE: "is given to the program {}",
        Verb.DISCARD: "is deleted",
        Verb.BOUNCE: "goes back to its sender",
        Verb.DEFER: "is left with the mail server for another try",
    }
    return ", ".join(
        said[action.verb].format("the inbox" if action.target == INBOX else action.target) for action in plan.actions
    )


def _infected(case: Case) -> Plan | None:
    for verdict in case.verdicts:
        settings = settings_of(case.config, verdict.scanner)
        if verdict.finding is Finding.VIRUS and isinstance(settings, VirusScanner):
            reason = f"{verdict.scanner} found the virus {', '.join(verdict.names)}"
            match settings.on_virus:
                case "mark":
                    continue
                case "bounce":
                    return _plan(case, Action(Verb.BOUNCE, text="5.7.1 Message contains a virus"), reason)
                case "discard":
                    return _plan(case, Action(Verb.DISCARD), reason)
                case _:
                    return _plan(case, Action(Verb.QUARANTINE, text=reason), reason)
    return None


def _objected(case: Case, note: Note) -> Plan | None:
    """What the strictest setting says for all that [attachments] objects to."""
    if case.attachments is None:
        return None
    found = _objections(case)
    reason = f"attachments: {header_lines.objections(found)[:_LONGEST_REASON]}"
    said = {case.attachments.measure(one.kind) for one in found}
    if said:
        todo = next(measure for measure in _STRICTEST_FIRST if measure in said)
        note(Step("decide", f"{reason}; the setting says {todo}"))
        match todo:
            case "discard":
                return _plan(case, Action(Verb.DISCARD), reason)
            case "bounce":
                return _plan(case, Action(Verb.BOUNCE, text=_NOT_ACCEPTED), reason)
            case "quarantine":
                return _plan(case, Action(Verb.QUARANTINE, text=reason), reason)
    return None


def _objections(case: Case) -> list[Objection]:
    """All that the settings do not say to ignore. What could not be read at all is as what is too big to be."""
    found = []
    for verdict in case.verdicts:
        if verdict.finding is Finding.FAILED and verdict.scanner == "attachments":
            found.append(Objection("too-big", f"not read: {verdict.reason}"))
        found += verdict.objections
    return [one for one in found if case.attachments and case.attachments.measure(one.kind) != "ignore"]


def _unscanned(case: Case, note: Note) -> Plan | None:
    for verdict in case.verdicts:
        settings = settings_of(case.config, verdict.scanner)
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


def _waited(case: Case) -> float:
    """Seconds since the top Received; 0 where it does not say, so that such a message is tried again, not passed."""
    received = case.message.received()
    return 0.0 if received is None else case.now - received


def _counting(verdicts: list[Verdict]) -> Verdict | None:
    """The one that counts of those for spam: the first that says spam, else the first with a score, else the first."""
    spam = [v for v in verdicts if v.finding is Finding.SPAM]
    scored = [v for v in verdicts if v.score is not None]
    return next(iter([*spam, *scored, *verdicts]), None)


class _Points:
    """Whether a message is spam, by the scanner's threshold or by ours."""

    def __init__(self, verdicts: tuple[Verdict, ...], spam: Spam) -> None:
        said = _counting([v for v in verdicts if v.score is not None or v.finding is Finding.SPAM])
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
    facts = Facts(case.message, case.envelope, points.score, points.spam_at(0), viruses, case.now, case.outside)
    if points.own is not None and points.score is not None:
        note(Step("decide", f"required-score is {points.own:g}: that is {'spam' if facts.spam else 'not spam'}"))
    said = walk(case.rules, facts, points.spam_at, note)
    score = points.score if not said.added else (points.score or 0.0) + said.added
    actions, reason, flags = _place(case, said, score, note)
    actions = tuple(dict.fromkeys(_allowed(case, action, said, note) for action in (*said.copies, *actions)))
    edits, added = said.edits, said.headers
    if said.signatures is not None:
        added = header_lines.authentication_results(case.config.authentication.ours(), said.signatures) + added
    if edits.tag and not case.message.fields("subject"):
        edits, added = edits._replace(tag=""), added + header_lines.field("Subject", edits.tag)
    return Plan(
        actions,
        reason,
        flags,
        _lines(case, said.spam, added),
        said.spam,
        score,
        edits,
        _keywords(case, said, actions, note),
        said.unsubscribed,
        _answer(case, said, note),
        said.notes,
    )


def _allowed(case: Case, action: Action, said: Walk, note: Note) -> Action:
    """The action, unless it would make one folder too many for a name that the message has brought."""
    if action.target not in said.made or case.mailbox.has_folder(action.target) or case.mailbox.may_grow():
        return action
    note(Step("decide", f"the mailbox has too many folders to make {action.target}; the inbox takes it"))
    return action._replace(target=INBOX)


def _keywords(case: Case, said: Walk, actions: tuple[Action, ...], note: Note) -> tuple[tuple[str, str], ...]:
    """The letters of the keywords that rules set, folder by folder: only Dovecot may give a keyword a letter."""
    found = []
    for action in actions if said.keywords else ():
        if action.verb is Verb.FILE:
            known = case.mailbox.keywords(action.target)
            letters = {known[one.lower()] for one in said.keywords if one.lower() in known}
            found.append((action.target, "".join(sorted(letters))))
            for one in said.keywords:
                if one.lower() not in known:
                    folder = "the inbox" if action.target == INBOX else action.target
                    note(Step("decide", f"the keyword {one} is not set: no mail program has used it in {folder} yet"))
    return tuple(found)


def _answer(case: Case, said: Walk, note: Note) -> Answer | None:
    """The reply that a rule wants, if the sender may get one."""
    if said.answer is None:
        return None
    infected = any(verdict.finding is Finding.VIRUS for verdict in case.verdicts)
    why = "it is spam" if said.spam else "it has a virus" if infected else ""
    why = why or reply.why_not(case.message, case.envelope, said.own) or case.mailbox.answered(said.answer, case.now)
    if why:
        note(Step("decide", f"no reply goes out: {why}"))
    return None if why else said.answer


def _answering(plan: Plan, note: Note) -> Plan:
    """The plan without its reply where the sender hears of the message in another way, or it is not settled yet."""
    if plan.answer is None:
        return plan
    if any(action.verb in (Verb.BOUNCE, Verb.DEFER, Verb.QUARANTINE) for action in plan.actions):
        note(Step("decide", f"no reply goes out: the message {words(plan)}"))
        return plan._replace(answer=None)
    note(Step("decide", f"{plan.answer.address} gets a reply, once in {plan.answer.every / 86400:g} days"))
    return plan


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
    size = case.message.edited(plan.edits).stored_size(case.envelope.delivered_to, plan.headers)
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
    sent = "sent on" if any(action.verb is Verb.FORWARD for action in plan.actions) else "answered"
    if sent == "answered" and plan.answer is None:
        return plan
    failed = [v for v in case.verdicts if v.finding is Finding.FAILED]
    if not failed:
        return plan
    reason = f"it is to be {sent}, and {failed[0].scanner} did not scan it: {failed[0].reason}"
    return _only(plan, Action(Verb.DEFER, text="4.3.2 Content scanner is not available"), reason)


def _remembering(case: Case, plan: Plan) -> Plan:
    """The plan with what makes a second copy known, if a rule asks for copies and the message does not come again."""
    asked = any(rule.condition.remembers for rule in case.rules)
    if not asked or any(action.verb in (Verb.BOUNCE, Verb.DEFER) for action in plan.actions):
        return plan
    return plan._replace(remember=message_id(case.message))


def _plan(case: Case, action: Action, reason: str) -> Plan:
    points = _Points(case.verdicts, case.spam)
    spam = points.spam_at(0)
    return Plan((action,), reason, headers=_lines(case, spam, b""), spam=spam, score=points.score)


def _instead(plan: Plan, action: Action, reason: str) -> Plan:
    """The plan with ``action`` in place of everything that is stored here."""
    others = tuple(one for one in plan.actions if one.verb is not Verb.FILE)
    return plan._replace(actions=(*others, action), reason=reason)


def _only(plan: Plan, action: Action, reason: str) -> Plan:
    return plan._replace(actions=(action,), reason=reason, answer=None)


def _lines(case: Case, spam: bool, added: bytes) -> bytes:
    lines = [header_lines.filter_error(case.filter_error)] if case.filter_error else []
    own = None if case.spam.required_score == "scanner" else case.spam.required_score
    kinds = [(settings_of(case.config, verdict.scanner), verdict) for verdict in case.verdicts]
    if viruses := [verdict for settings, verdict in kinds if isinstance(settings, VirusScanner)]:
        lines.append(header_lines.virus_status(viruses))
    if said := _counting([verdict for settings, verdict in kinds if isinstance(settings, SpamScanner)]):
        lines.append(header_lines.spam_status(said, spam, own))
    if case.attachments is not None and any(verdict.scanner == "attachments" for verdict in case.verdicts):
        found = _objections(case)
        if found or not any(verdict.objections for verdict in case.verdicts):
            lines.append(header_lines.attachment_status(found))
    return b"".join([*lines, case.envelope.headers, added])
