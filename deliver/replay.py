"""What would happen to messages that lie in files: the evaluator of real deliveries, with hands tied.

A message may have a family beside it; `deliver replay --expect` and the project's own tests read the same files:

    NAME.eml             the message
    NAME.scan.toml       what the scanners say: [clamd] and [spamd] with `finding` and the fields of a verdict
    NAME.rules.toml      the site's configuration
    NAME.user.toml       the owner's own file
    NAME.envelope.toml   sender, recipient, extension, and `folders` that exist, `full = "why"` if over quota
    NAME.expect.toml     what must come out: any of action, folder, address, flags, exit, spam, reason (a glob)
"""

import fnmatch
import json
import os
import time
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from deliver import exits
from deliver.actions import summary
from deliver.config import Clamd, Config, Personal, Spamd, load, parse_personal, where
from deliver.envelope import extension_of
from deliver.errors import NotConfigured, Refused
from deliver.message import Message, Source, read_framing
from deliver.pipeline import Site, judge, refuse_loops
from deliver.policy import words
from deliver.scan import Scanner, scan_all
from deliver.values import Action, Content, Envelope, Finding, Plan, Reply, Step, Verb, Verdict
from deliver.wiring import forgeries, full, scanners

FAMILY = ("scan", "rules", "user", "envelope", "expect")


class Settings(NamedTuple):
    """What a replay is run with. ``recipient`` and ``sender`` stand in where the message does not say."""

    config: Config
    user_file: str = ""
    maildir: str = ""
    sender: str = ""
    recipient: str = ""
    scan: bool = True


class Result(NamedTuple):
    """What would happen to one message. ``wrong`` has a line for each expectation that it did not meet."""

    file: str
    plan: Plan
    reply: Reply
    verdicts: tuple[Verdict, ...]
    steps: tuple[Step, ...]
    wrong: tuple[str, ...] = ()

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
                below[:] = [name for name in below if name in ("cur", "new") or name.startswith(".")]
            for name in sorted(names):
                if not _is_side_file(name):
                    yield os.path.join(directory, name)


def _is_side_file(name: str) -> bool:
    return (
        name.startswith((".", "dovecot", "courier"))
        or name.endswith(".toml")
        or name in ("maildirfolder", "maildirsize")
    )


async def replay(path: str, settings: Settings) -> Result:
    """Replay one message. Raises DeliverError where a file of its family is wrong, OSError where one cannot be read."""
    fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return await _replay(path, Source.read(fd, _memory), settings)
    finally:
        if fd:
            os.close(fd)


async def _replay(path: str, source: Source, settings: Settings) -> Result:
    steps: list[Step] = []
    family = _family(path)
    config = _config(family, settings)
    framing = read_framing(source.head)
    said = _toml(family, "envelope")
    envelope = _envelope(settings, said, framing.sender, framing.delivered_to)
    message = Message(source, framing, envelope.return_path, forgeries(config))
    mailbox = _ReadOnly(settings.maildir, frozenset(said.get("folders", ())), str(said.get("full", "")))
    site = Site(
        config=config,
        scanners=_scanners(family, config, settings),
        personal=lambda _envelope: _personal(family, config, settings),
        mailbox=lambda _envelope: mailbox,
        quarantine=_nothing,
        injector=_nothing,
        blocking=_nothing,
        log=_unlogged,
        now=time.time,
    )
    verdicts: tuple[Verdict, ...] = ()
    try:
        refuse_loops(message, envelope)
        verdicts = await scan_all(site.scanners, message, envelope, steps.append)
        plan = judge(site, message, envelope, verdicts, steps.append).plan
    except Refused as error:
        plan = Plan((Action(Verb.BOUNCE, text=error.line),), "the message has been delivered here before")
        steps.append(Step("decide", plan.reason))
    result = Result(path, plan, exits.from_plan(plan), verdicts, tuple(steps))
    return result._replace(wrong=tuple(_differences(result, _toml(family, "expect"))))


def _family(path: str) -> dict[str, str]:
    stem = os.path.splitext(path)[0]
    return {kind: f"{stem}.{kind}.toml" for kind in FAMILY if os.path.exists(f"{stem}.{kind}.toml")}


def has_expectation(path: str) -> bool:
    """Whether a message says what is expected of it."""
    return "expect" in _family(path)


def _toml(family: dict[str, str], kind: str) -> dict[str, Any]:
    if kind not in family:
        return {}
    with open(family[kind], "rb") as file:
        try:
            return tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise NotConfigured(f"{family[kind]}: is not TOML: {error}") from error


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


def _config(family: dict[str, str], settings: Settings) -> Config:
    config = load(family["rules"]) if "rules" in family else settings.config
    said = _toml(family, "scan")
    if "clamd" in said and config.clamd is None:
        config = _with(config, clamd=Clamd())
    if "spamd" in said and config.spamd is None:
        config = _with(config, spamd=Spamd())
    return config


def _with(config: Config, **changes: Any) -> Config:
    import msgspec

    return msgspec.structs.replace(config, **changes)


def _personal(family: dict[str, str], config: Config, settings: Settings) -> Personal:
    path = family.get("user", settings.user_file)
    if not path:
        return Personal()
    with open(path, "rb") as file:
        own, problems = parse_personal(file.read(), os.path.basename(path), config)
    errors = [problem for problem in problems if not problem.warning]
    return Personal(error=f"{os.path.basename(path)}: {where(errors[0])}{errors[0].text}") if errors else own


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


def _scanners(family: dict[str, str], config: Config, settings: Settings) -> tuple[Scanner, ...]:
    said = _toml(family, "scan")
    if not said:
        return scanners(config) if settings.scan else ()
    told: list[Scanner] = []
    for name, table in said.items():
        settings_of = config.clamd if name == "clamd" else config.spamd
        told.append(_Told(name, settings_of.max_size if settings_of else 2**63, _verdict(family["scan"], name, table)))
    return tuple(told)


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
    """A mailbox that is looked at and left alone."""

    def __init__(self, path: str, folders: frozenset[str], full: str) -> None:
        self._path = path
        self._folders = folders
        self._full = full

    def has_folder(self, name: str) -> bool:
        """Whether it is there, on disk or by what the family says."""
        return name in self._folders or bool(self._path and os.path.isdir(os.path.join(self._path, f".{name}", "new")))

    def over_quota(self, sizes: list[tuple[str, int]]) -> str:
        """What the family says, else what maildirsize says."""
        return self._full or (full(self._path, sizes) if self._path else "")

    def prepare(self, *_: Any) -> Any:
        """A replay performs nothing."""
        raise RuntimeError("a replay must not store anything")

    def settle(self) -> None:
        """Nothing was changed."""

    def close(self) -> None:
        """Nothing was opened."""


def _nothing(*_: Any) -> Any:
    raise RuntimeError("a replay must not hold or send anything")


def _unlogged(**_: Any) -> None:
    pass


def _differences(result: Result, expected: dict[str, Any]) -> Iterator[str]:
    """A line for each expectation that was not met."""
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
    }
    for key, value in expected.items():
        if key not in actual:
            yield f"{key} cannot be expected; use one of {', '.join(actual)}"
        elif key in ("reason", "answer", "headers") and isinstance(value, str):
            if not fnmatch.fnmatchcase(actual[key], value):
                yield f"{key}: expected {value!r}, got {actual[key]!r}"
        elif actual[key] != value:
            yield f"{key}: expected {value!r}, got {actual[key]!r}"
