"""The life of a message, on one screen."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from deliver import exits
from deliver.actions import Injector, Prepared, Program, Tools, answer, perform, summary
from deliver.log import Log, append
from deliver.message import Message
from deliver.policy import Case, decide
from deliver.rules.model import Outside, Rule
from deliver.scan import Scanner, scan_all
from deliver.settings import Config, Personal
from deliver.values import Action, Answer, Envelope, Note, Outcome, Plan, Verb, Verdict, unheard
from quarantine.store import Store

LOOP = Plan(
    (Action(Verb.BOUNCE, text="5.4.6 This message is looping: it already has my Delivered-To line."),),
    "the message has been delivered here before",
)
"""What becomes of a message that has our Delivered-To already (RFC 9228; qmail-local(8))."""


class Mailbox(Protocol):
    """One recipient's Maildir with its quota and its subscriptions."""

    def has_folder(self, name: str) -> bool:
        """See policy.Mailbox."""

    def over_quota(self, sizes: list[tuple[str, int]]) -> str:
        """See policy.Mailbox."""

    def prepare(self, folder: str, chunks: Any, flags: str = "") -> Prepared:
        """See actions.Shelf."""

    def may_grow(self) -> bool:
        """See policy.Mailbox."""

    def keywords(self, folder: str) -> dict[str, str]:
        """See policy.Mailbox."""

    def answered(self, answer: Answer, now: float) -> str:
        """See policy.Mailbox."""

    def answer(self, answer: Answer, now: float, send: Callable[[], object]) -> str:
        """See actions.Shelf."""

    def settle(self, unsubscribed: frozenset[str] = frozenset()) -> str:
        """What comes after: quota count, warning, subscriptions. Says what went wrong, "" for nothing."""

    def close(self) -> None:
        """Let go of it; never raises."""


class Site(NamedTuple):
    """What deliveries of one configuration work with. Tests build one from fakes.

    ``blocking`` runs a function that reads or writes disks, in a thread where others wait meanwhile.
    """

    config: Config
    scanners: tuple[Scanner, ...]
    personal: Callable[[Envelope], Personal]
    mailbox: Callable[[Envelope], Mailbox]
    quarantine: Callable[[Envelope], Store]
    injector: Callable[[], Injector]
    program: Program
    blocking: Callable[..., Awaitable[Any]]
    log: Log
    now: Callable[[], float]
    outside: Callable[[Envelope], Outside] = lambda _envelope: Outside()
    remember: Callable[[Envelope, str, float], object] = lambda _envelope, _message_id, _now: None


class Decision(NamedTuple):
    """What is to be done with a message; nothing has been touched yet. The mailbox is the caller's to close."""

    plan: Plan
    verdicts: tuple[Verdict, ...]
    mailbox: Mailbox


async def deliver(
    site: Site, message: Message, envelope: Envelope, settled: Callable[[Outcome], object], note: Note = unheard
) -> Outcome:
    """Deliver one message to one recipient. Raises Deferred; whatever else it raises means "try again", too.

    ``settled`` hears the outcome as soon as the message is where it belongs: whoever waits no longer for the quota
    file, the subscriptions and the log has to answer that. It may be called in a thread.
    """
    if message.loops(envelope.loop_addresses):
        outcome = Outcome(exits.from_plan(LOOP), LOOP)
        site.log(**record(envelope, message, (), outcome, site.config.log.subject))
        settled(outcome)
        return outcome
    verdicts = await scan_all(site.scanners, message, envelope, note)
    placed: Outcome = await site.blocking(_place, site, message, envelope, verdicts, settled, note)
    return placed


def _place(
    site: Site,
    message: Message,
    envelope: Envelope,
    verdicts: tuple[Verdict, ...],
    settled: Callable[[Outcome], object],
    note: Note,
) -> Outcome:
    decision = judge(site, message, envelope, verdicts, note)
    mailbox = decision.mailbox
    try:
        tools = Tools(
            mailbox, lambda: site.quarantine(envelope), site.injector, site.program, subject_of(message), site.now()
        )
        done = perform(decision.plan, message, envelope, verdicts, tools, note)
        outcome = Outcome(exits.from_plan(done), done)
        settled(outcome)
        try:
            problems = mailbox.settle(done.unsubscribed)
            said = record(envelope, message, verdicts, outcome, site.config.log.subject)
            if problems:
                said["problems"] = problems
            if done.remember:
                site.remember(envelope, done.remember, site.now())
            if done.answer:
                said["reply"] = answer(done.answer, message, tools)
            said |= _tell(site.config, done, verdicts, message, envelope, tools)
            site.log(**said)
        except BaseException as error:  # the message is where it belongs: not even a signal may change the answer now
            site.log(level="warning", recipient=envelope.recipient, detail=f"after delivery: {error!r}")
        return outcome
    finally:
        mailbox.close()


def _tell(
    config: Config, plan: Plan, verdicts: tuple[Verdict, ...], message: Message, envelope: Envelope, tools: Tools
) -> dict[str, Any]:
    """Notices, and qmail-scanner's logs, where the site wants them; what came of them, for the log."""
    told: dict[str, Any] = {}
    if config.log.quarantine_log or config.log.mailstats:
        from deliver import qmailscanner  # late, as the next one: few sites have them

        try:
            for path, line in qmailscanner.lines(config.log, plan, verdicts, message, envelope, tools):
                append(path, line.encode("utf-8", "replace"))
        except Exception as error:
            told["mailstats"] = f"not written: {error!r}"
    if config.notices.to:
        from deliver import notices

        if sent := notices.send(config.notices, plan, verdicts, message, envelope, tools):
            told["notices"] = sent
    return told


def judge(site: Site, message: Message, envelope: Envelope, verdicts: tuple[Verdict, ...], note: Note) -> Decision:
    """Read the owner's rules and decide. Touches nothing: replay ends here."""
    mailbox = site.mailbox(envelope)
    try:
        own = site.personal(envelope)
        case = Case(
            message=message,
            envelope=envelope,
            verdicts=verdicts,
            config=site.config,
            spam=own.spam or site.config.spam,
            attachments=own.attachments or site.config.attachments,
            rules=in_order(site.config.rules, own.rules),
            filter_error=own.error,
            mailbox=mailbox,
            now=site.now(),
            outside=site.outside(envelope),
        )
        return Decision(decide(case, note), verdicts, mailbox)
    except BaseException:
        mailbox.close()
        raise


def in_order(site: tuple[Rule, ...], user: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules as they are asked: the site's, those of domain and owner, the site's with stage = "after"."""
    return (*(rule for rule in site if not rule.after), *user, *(rule for rule in site if rule.after))


def subject_of(message: Message) -> str:
    """The decoded Subject, "" if there is none."""
    from deliver.headers import decode

    values = message.fields("subject")
    return decode(values[0]) if values else ""


def record(
    envelope: Envelope, message: Message, verdicts: tuple[Verdict, ...], outcome: Outcome, subject: bool
) -> dict[str, Any]:
    """The log line of one recipient."""
    plan = outcome.plan
    said: dict[str, Any] = {
        "recipient": envelope.recipient,
        "sender": envelope.sender,
        "size": message.size,
        "actions": [" ".join(filter(None, (action.verb.value, action.target))) for action in plan.actions],
        "reason": plan.reason,
        "exit": outcome.reply.code,
        "verdicts": [summary(verdict) for verdict in verdicts],
    }
    if plan.spam:
        said["spam"] = True
    if plan.score is not None:
        said["score"] = plan.score
    if plan.notes:
        said["notes"] = list(plan.notes)
    if subject:
        said["subject"] = subject_of(message)
    return said
