"""What would happen to messages that lie in files: the evaluator of real deliveries, with hands tied.

A message may have a family beside it; `deliver replay --expect` and the project's own tests read the same files:

    NAME.eml             the message
    NAME.scan.toml       what the scanners say: [clamd] and [spamd] with `finding` and the fields of a verdict
    NAME.rules.toml      the site's configuration
    NAME.domain.toml     the domain's file
    NAME.user.toml       the owner's own file
    NAME.envelope.toml   sender, recipient, extension, and `folders` that exist, `full = "why"` if over quota, `now`,
                         `answered = true` if the sender has had a reply, `keywords.FOLDER = [...]` that Dovecot knows
    NAME.expect.toml     what must come out: any of action, folder, address, flags, exit, spam, reason (a glob), ...
"""

import asyncio
import fnmatch
import json
import os
import time
import tomllib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, NamedTuple

from deliver import exits, layers, wiring
from deliver.actions import summary
from deliver.config import as_applied, load, parse_personal, personal
from deliver.envelope import extension_of
from deliver.errors import DeliverError, NotConfigured
from deliver.message import Message, Source, read_framing
from deliver.pipeline import LOOP, Site, judge
from deliver.policy import words
from deliver.rules.model import Outside
from deliver.scan import Scanner, scan_all
from deliver.settings import Attachments, Clamd, Config, Personal, Spam, Spamd
from deliver.values import INBOX, Action, Answer, Content, Envelope, Finding, Plan, Reply, Step, Verb, Verdict

FAMILY = ("scan", "rules", "domain", "user", "envelope", "expect")

AT_ONCE = 8
"""Messages that scanners are asked about at the same time: more than they have processes, so that none is idle."""

_NOT_RECEIVED = frozenset(
    "sent,sent items,sent messages,drafts,outbox,templates,trash,deleted items,deleted messages".split(",")
)
"""Folders of what nobody delivered, or what has been done with."""


class Settings(NamedTuple):
    """What a replay is run with. ``recipient`` and ``sender`` stand in where the message does not say.

    ``user_file`` and ``domain_file`` count whoever may write them; without the one the owner's file is the one beside
    ``maildir``, without the other the domain's is where the site has it.
    """

    config: Config
    user_file: str = ""
    domain_file: str = ""
    maildir: str = ""
    sender: str = ""
    recipient: str = ""
    scan: bool = True


class Result(NamedTuple):
    """What would happen to one message. ``wrong`` has a line for each expectation that it did not meet.

    ``now`` is the folder where it lies, "" if that is no Maildir.
    """

    file: str
    plan: Plan
    reply: Reply
    verdicts: tuple[Verdict, ...]
    steps: tuple[Step, ...]
    wrong: tuple[str, ...] = ()
    now: str = ""

    @property
    def action(self) -> Action:
        """The action that decides where the message is; copies come before it."""
        return self.plan.actions[-1] if self.plan.actions else Action(Verb.DEFER)

    @property
    def folder(self) -> str:
        """Where it is filed; "" if nowhere."""
        return self.action.target if self.action.verb is Verb.FILE else ""

    def as_json(self) -> str:
        """One object on one line."""
        said: dict[str, Any] = {
            "file": self.file,
            "action": self.action.verb.value,
            "folder": self.folder,
            "reason": self.plan.reason,
            "exit": self.reply.code,
            "verdicts": [summary(verdict) for verdict in self.verdicts],
            "steps": [{"kind": step.kind, "text": step.text} for step in self.steps],
            "actions": [
                {key: value for key, value in (("do", one.verb.value), ("to", one.target), ("text", one.text)) if value}
                for one in self.plan.actions
            ],
            "flags": self.plan.flags,
        }
        if self.now:
            said["now"] = self.now
        if self.plan.answer:
            said["reply"] = {"to": self.plan.answer.address, "subject": self.plan.answer.subject}
        if self.reply.line:
            said["answer"] = self.reply.line
        if self.wrong:
            said["wrong"] = list(self.wrong)
        return json.dumps(said)

    def as_text(self, *, explain: bool) -> str:
        """For a person: what happens and why, and with ``explain`` every step that led there."""
        lines = [f"{self.file}", f"  {words(self.plan)}: {self.plan.reason}"]
        if self.reply.code:
            lines.append(f"  exit {self.reply.code}: {self.reply.line}")
        if explain:
            lines += [f"    {step.kind:8} {step.text}" for step in self.steps]
        lines += [f"  WRONG: {line}" for line in self.wrong]
        return "\n".join(lines)


def messages_in(paths: Iterable[str]) -> Iterator[str]:
    """Every message under ``paths``: files, folders of files, Maildirs with their folders; in order of their names."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for directory, below, names in os.walk(path):
            below.sort()
            if {"cur", "new"} <= set(below):
                below[:] = [name for name in below if name in ("cur", "new") or _is_received(name)]
                continue  # subscriptions, maildirsize and their like are no messages
            for name in sorted(names):
                if not _is_side_file(name):
                    yield os.path.join(directory, name)


def _is_received(directory: str) -> bool:
    return directory.startswith(".") and directory[1:].partition(".")[0].lower() not in _NOT_RECEIVED


def lies_in(path: str) -> tuple[str, str]:
    """The Maildir, and its folder, in which a message lies; "" and "" for any other place."""
    home, part = os.path.split(os.path.dirname(os.path.abspath(path)))
    if part not in ("cur", "new"):
        return "", ""
    above, name = os.path.split(home)
    return (above, name[1:]) if name.startswith(".") and os.path.isdir(os.path.join(above, "cur")) else (home, INBOX)


class Changes:
    """What a new set of rules would change, in a few sentences."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._answers = 0

    def add(self, result: Result) -> None:
        """Count one message."""
        self._counts[result.now, "" if result.now and result.folder == result.now else _would(result.action)] += 1
        self._answers += result.plan.answer is not None

    def lines(self) -> list[str]:
        """The most frequent first; what stays comes last."""
        lines = []
        stays = 0
        for (now, would), count in sorted(self._counts.items(), key=lambda item: (-item[1], item[0])):
            if not would:
                stays += count
                continue
            where_now = "" if not now else " in the inbox" if now == INBOX else f" in {now}"
            lines.append(f"{_messages(count)}{where_now} would {would}")
        if stays:
            lines.append(f"{_messages(stays)} would stay where {'it is' if stays == 1 else 'they are'}")
        if self._answers:
            lines.append(f"{_messages(self._answers)} would get an automatic reply")
        return lines


def _messages(count: int) -> str:
    return f"{count:,} message" + ("" if count == 1 else "s")


def _would(action: Action) -> str:
    if action.verb is Verb.FILE and action.target == INBOX:
        return "be put into the inbox"
    return {
        Verb.FILE: "be filed in {}",
        Verb.QUARANTINE: "be held in quarantine",
        Verb.FORWARD: "be sent on to {}",
        Verb.PIPE: "be given to the program {}",
        Verb.DISCARD: "be deleted",
        Verb.BOUNCE: "go back to the sender",
        Verb.DEFER: "wait in the mail server's queue",
    }[action.verb].format(action.target)


def _is_side_file(name: str) -> bool:
    return (
        name.startswith((".", "dovecot", "courier"))
        or name.endswith(".toml")
        or name in ("maildirfolder", "maildirsize")
    )


class Family(NamedTuple):
    """What lies beside one message: paths, and tables that somebody has read already, by their kind."""

    paths: dict[str, str]
    tables: dict[str, dict[str, Any]]

    def toml(self, kind: str) -> dict[str, Any]:
        """One of the tables, empty where there is none. Raises NotConfigured."""
        if kind in self.tables or kind not in self.paths:
            return self.tables.get(kind, {})
        with open(self.paths[kind], "rb") as file:
            try:
                return tomllib.load(file)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise NotConfigured(f"{self.paths[kind]}: is not TOML: {error}") from error


async def replay(path: str, settings: Settings) -> Result:
    """Replay one message. Raises DeliverError where a file of its family is wrong, OSError where one cannot be read."""
    return await Replayer(settings).replay(path)


class Replayer:
    """Replays messages with the same settings; the owner's file is read once for all.

    ``unused`` are the files of owners and domains that deliveries would not use, by their paths, with the reason.
    """

    def __init__(self, settings: Settings) -> None:
        self.unused: dict[str, str] = {}
        self._settings = settings
        self._read: dict[tuple[str, Spam, Attachments | None, bool], Personal] = {}
        self._outside = wiring.outside(settings.config)  # with the site's lists, which are read once for all

    async def replay(self, path: str) -> Result:
        """See replay."""
        fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return await self.judge(path, Source.read(fd, _memory), _family(path))
        finally:
            if fd:
                os.close(fd)

    def _beyond(self, config: Config, envelope: Envelope) -> Outside:
        """What conditions may ask. No message was seen before: one that lies in the Maildir would be its own copy."""
        outside = self._outside if config is self._settings.config else wiring.outside(config)
        return outside(envelope)._replace(last_seen=lambda _message_id: None)

    async def replay_all(self, paths: Iterable[str]) -> AsyncIterator[tuple[str, Result | Exception]]:
        """Each path with its result, or with what went wrong; in their order, AT_ONCE of them in work."""

        async def one(path: str) -> tuple[str, Result | Exception]:
            try:
                return path, await self.replay(path)
            except (DeliverError, OSError) as error:
                return path, error

        working: deque[asyncio.Task[tuple[str, Result | Exception]]] = deque()
        try:
            for path in paths:
                working.append(asyncio.create_task(one(path)))
                if len(working) >= AT_ONCE:
                    yield await working.popleft()
            while working:
                yield await working.popleft()
        finally:
            for task in working:
                task.cancel()

    async def judge(self, path: str, source: Source, family: Family) -> Result:
        """Replay a message that was read already; ``path`` is what the result calls it."""
        settings = self._settings
        steps: list[Step] = []
        config = _config(family, settings)
        framing = read_framing(source.head)
        said = family.toml("envelope")
        envelope = _envelope(settings, said, framing.sender, framing.delivered_to)
        message = Message(source, framing, envelope.return_path, wiring.forgeries(config))
        mailbox = _ReadOnly(settings.maildir, said, config.quota.limit)
        site = Site(
            config=config,
            scanners=_scanners(family, config, settings),
            personal=lambda envelope: self._personal(family, config, envelope, steps),
            mailbox=lambda _envelope: mailbox,
            quarantine=_nothing,
            injector=_nothing,
            program=_nothing,
            blocking=_nothing,
            log=_unlogged,
            outside=lambda envelope: self._beyond(config, envelope),
            now=lambda: said["now"].timestamp() if "now" in said else time.time(),
        )
        verdicts: tuple[Verdict, ...] = ()
        plan = LOOP
        if message.loops(envelope.loop_addresses):
            steps.append(Step("decide", f"{words(plan)}: {plan.reason}"))
        else:
            verdicts = await scan_all(site.scanners, message, envelope, steps.append)
            plan = judge(site, message, envelope, verdicts, steps.append).plan
        result = Result(path, plan, exits.from_plan(plan), verdicts, tuple(steps), now=lies_in(path)[1])

        def stored() -> str:
            chunks = message.edited(plan.edits).stored(envelope.delivered_to, plan.headers)
            return b"".join(chunks).decode("latin-1")

        return result._replace(wrong=tuple(_differences(result, family.toml("expect"), stored)))

    def _personal(self, family: Family, config: Config, envelope: Envelope, steps: list[Step]) -> Personal:
        settings = self._settings
        maildir = settings.maildir and os.path.abspath(settings.maildir)
        named = {
            "domain": family.paths.get("domain", settings.domain_file),
            "owner": family.paths.get("user", settings.user_file),
        }
        files = [
            ("domain", named["domain"] or layers.domain_file(config, envelope.recipient)),
            ("owner", named["owner"] or (layers.owners_file(config, maildir) if maildir else "")),
        ]

        def read(path: str, config: Config, uid: int, domain: bool) -> Personal:
            name = (path, config.spam, config.attachments, domain)
            if name not in self._read:
                given = path in named.values()
                self._read[name] = _as_given(path, config, domain) if given else personal(path, config, uid, domain)
            return self._read[name]

        found = layers.stacked(config, files, read, _owner_of(maildir))
        unused = {one.path: Step(one.whose, layers.together(config, [one]).error) for one in found if one.says.error}
        steps[:0] = unused.values()
        self.unused.update((path, step.text) for path, step in unused.items())
        return layers.together(config, found)


def _as_given(path: str, config: Config, domain: bool) -> Personal:
    """A file that was named; whoever names it may want to try it before it lies where it counts.

    Raises NotConfigured where it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise NotConfigured(f"{path}: {error.strerror}") from error
    return as_applied(*parse_personal(text, os.path.basename(path), config, domain))


def _owner_of(maildir: str) -> int:
    """The user as whom a delivery would run."""
    try:
        return os.stat(maildir).st_uid
    except OSError:
        return os.geteuid()


def tests_of(document: dict[str, Any]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The tests that stand beside rules, with the number of the rule and their own, from 0."""
    for number, rule in enumerate(document.get("rule", [])):
        for index, test in enumerate(rule.get("test", [])):
            yield number, index, test


async def run_test(test: dict[str, Any], settings: Settings, directory: str) -> tuple[str, ...]:
    """Run one test; a line for each expectation that was not met. Raises OSError where its file cannot be read.

    ``directory`` is where the rules lie. No link leads out of it: rules may be somebody else's.
    """
    content = test["message"].encode("utf-8") if "message" in test else _beside(directory, test["file"])
    scan = test.get("scan")
    if scan is None:
        config = settings.config
        named = (("clamd", config.clamd), ("spamd", config.spamd))
        scan = {name: {"finding": "clean"} for name, table in named if table is not None}
    tables = {
        "scan": scan,
        "envelope": {key: test[key] for key in ("sender", "recipient", "extension", "now") if key in test},
        "expect": test["expect"],
    }
    source = Source.of(content)
    return (await Replayer(settings._replace(scan=False)).judge("", source, Family({}, tables))).wrong


def _beside(directory: str, name: str) -> bytes:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(f"a test's file lies beside the rules, and {name!r} is a path")
    folder = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    with open(fd, "rb") as file:
        return file.read()


def _family(path: str) -> Family:
    stem = os.path.splitext(path)[0]
    return Family({kind: f"{stem}.{kind}.toml" for kind in FAMILY if os.path.exists(f"{stem}.{kind}.toml")}, {})


def has_expectation(path: str) -> bool:
    """Whether a message says what is expected of it."""
    return "expect" in _family(path).paths


def _memory() -> int:
    return os.memfd_create("message")


def _envelope(settings: Settings, said: dict[str, Any], sender: str | None, delivered_to: bytes) -> Envelope:
    stored = delivered_to.split(b"\n")[0].partition(b":")[2].strip().decode("utf-8", "replace")
    recipient = str(said.get("recipient", "")) or settings.recipient or stored or "you@localhost"
    named = said.get("sender", settings.sender or sender)
    return Envelope(
        sender=str(named or ""),
        recipient=recipient,
        maildir=os.path.abspath(settings.maildir or "Maildir"),
        extension=str(said.get("extension", extension_of(recipient.rpartition("@")[0]))),
        return_path=b"" if named is None else b"Return-Path: <%s>\n" % str(named).encode(),
        delivered_to=b"Delivered-To: %s\n" % recipient.encode(),
        loop_addresses=(recipient,),
    )


def _config(family: Family, settings: Settings) -> Config:
    config = load(family.paths["rules"]) if "rules" in family.paths else settings.config
    said = family.toml("scan")
    if "clamd" in said and config.clamd is None:
        config = _with(config, clamd=Clamd())
    if "spamd" in said and config.spamd is None:
        config = _with(config, spamd=Spamd())
    return config


def _with(config: Config, **changes: Any) -> Config:
    import msgspec

    return msgspec.structs.replace(config, **changes)


class _Told:
    """A scanner that says what a file says it said."""

    def __init__(self, name: str, max_size: int, verdict: Verdict) -> None:
        self.name = name
        self.max_size = max_size
        self._verdict = verdict

    async def scan(self, content: Content, envelope: Envelope) -> Verdict:
        """The verdict it was told."""
        del content, envelope
        return self._verdict


def _scanners(family: Family, config: Config, settings: Settings) -> tuple[Scanner, ...]:
    said = family.toml("scan")
    if not said:
        return wiring.scanners(config) if settings.scan else wiring.local_scanners(config)
    told: list[Scanner] = []
    for name, table in said.items():
        settings_of = config.clamd if name == "clamd" else config.spamd
        verdict = _verdict(family.paths.get("scan", "scan"), name, table)
        told.append(_Told(name, settings_of.max_size if settings_of else 2**63, verdict))
    return (*told, *wiring.local_scanners(config))


def _verdict(path: str, name: str, table: Any) -> Verdict:
    if not isinstance(table, dict) or name not in ("clamd", "spamd"):
        raise NotConfigured(f"{path}: expected the tables [clamd] and [spamd], found {name}")
    try:
        fields = {
            **table,
            "finding": Finding(table.get("finding", "clean")),
            "names": tuple(table.get("names", ())),
            "headers": str(table.get("headers", "")).encode(),
        }
        return Verdict(name, **fields)
    except (TypeError, ValueError) as error:
        raise NotConfigured(f"{path}: [{name}]: {error}") from error


class _ReadOnly:
    """A mailbox that is looked at and left alone; ``said`` is what a family says of it."""

    def __init__(self, path: str, said: dict[str, Any], limit: str) -> None:
        self._path = path
        self._said = said
        self._limit = limit

    def has_folder(self, name: str) -> bool:
        """Whether it is there, on disk or by what the family says."""
        known = name in self._said.get("folders", ())
        return known or bool(self._path and os.path.isdir(os.path.join(self._path, f".{name}", "new")))

    def over_quota(self, sizes: list[tuple[str, int]]) -> str:
        """What the family says, else what maildirsize says."""
        return str(self._said.get("full", "")) or (wiring.full(self._path, sizes, self._limit) if self._path else "")

    def may_grow(self) -> bool:
        """Whether a message may bring a folder's name."""
        return not self._path or wiring.may_grow(self._path)

    def keywords(self, folder: str) -> dict[str, str]:
        """What the family says, else dovecot-keywords."""
        if folder in self._said.get("keywords", {}):
            names = self._said["keywords"][folder]
            return {str(name).lower(): chr(ord("a") + index) for index, name in enumerate(names)}
        return wiring.keywords(self._path, folder) if self._path else {}

    def answered(self, answer: Answer, now: float) -> str:
        """What the family says, else what lies in the Maildir."""
        if self._said.get("answered"):
            return "this sender has been answered already"
        return wiring.answered(self._path, answer, now) if self._path else ""

    def answer(self, *_: Any) -> Any:
        """A replay sends nothing."""
        raise RuntimeError("a replay must not send anything")

    def prepare(self, *_: Any) -> Any:
        """A replay performs nothing."""
        raise RuntimeError("a replay must not store anything")

    def settle(self, *_: Any) -> str:
        """Nothing was changed."""
        return ""

    def close(self) -> None:
        """Nothing was opened."""


def _nothing(*_: Any) -> Any:
    raise RuntimeError("a replay must not hold or send anything")


def _unlogged(**_: Any) -> None:
    pass


_GLOBS = ("reason", "answer", "headers", "stored", "reply-subject", "reply-text")


def _differences(result: Result, expected: dict[str, Any], stored: Callable[[], str]) -> Iterator[str]:
    """A line for each expectation that was not met."""
    answer = result.plan.answer
    actual: dict[str, Any] = {
        "action": result.action.verb.value,
        "folder": result.folder,
        "address": [one.target for one in result.plan.actions if one.verb is Verb.FORWARD],
        "copies": [one.target for one in result.plan.actions[:-1] if one.verb is Verb.FILE],
        "flags": result.plan.flags,
        "exit": result.reply.code,
        "spam": result.plan.spam,
        "score": result.plan.score,
        "answer": result.reply.line,
        "headers": result.plan.headers.decode("latin-1"),
        "reason": result.plan.reason,
        "reply": answer.address if answer else "",
        "reply-subject": answer.subject if answer else "",
        "reply-text": answer.text if answer else "",
        "program": next((one.target for one in result.plan.actions if one.verb is Verb.PIPE), ""),
        "keywords": {folder: letters for folder, letters in result.plan.keywords if letters},
        "unsubscribed": sorted(result.plan.unsubscribed),
        "notes": list(result.plan.notes),
        "stored": stored() if "stored" in expected else "",
    }
    for key, value in expected.items():
        if key not in actual:
            yield f"{key} cannot be expected; use one of {', '.join(actual)}"
        elif key in _GLOBS and isinstance(value, str):
            if not fnmatch.fnmatchcase(actual[key], value):
                yield f"{key}: expected {value!r}, got {actual[key]!r}"
        elif actual[key] != value:
            yield f"{key}: expected {value!r}, got {actual[key]!r}"
