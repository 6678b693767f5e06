"""Where messages go: by another program's filter, run by that program, and by the rules that it was converted to."""

import asyncio
import os
import re
import shlex
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import corpora
import servers

from deliver.config import parse
from deliver.convert.model import Conversion
from deliver.convert.write import text
from deliver.message import Source
from deliver.replay import Family, Replayer, Settings
from deliver.rules.load import load
from deliver.values import Plan, Verb

SENDER = "friend@example.net"
RECIPIENT = "you@example.org"
KEYWORDS = ("$label1", "$junk", "work", "later")


class Fate(NamedTuple):
    """What became of a message. Each place has a folder and its flags, in small letters, without those of Maildir.

    ``replied`` is whether a reply is wanted, not whether the sender may have one. A message that is deleted has none
    of all these.
    """

    places: frozenset[tuple[str, frozenset[str]]] = frozenset()
    sent: frozenset[str] = frozenset()
    refused: bool = False
    replied: bool = False

    def without_flags(self) -> "Fate":
        """As it is where flags do not count."""
        return self._replace(places=frozenset((folder, frozenset()) for folder, _ in self.places))


def rules_of(conversion: Conversion) -> str:
    """The converted file, after everything that must hold of it: TOML that our loader takes, without an error."""
    said = text(conversion, "the original")
    tables = tomllib.loads(said)
    assert set(tables) <= {"rule"}
    _rules, problems = load(tables.get("rule"), "converted", user=True)
    assert not [problem for problem in problems if not problem.warning], said
    assert [rule.table for rule in conversion.rules] == tables.get("rule", [])
    return said


class Ours:
    """Asks converted rules, with the evaluator of real deliveries."""

    def __init__(self, directory: Path, rules: str, site: str = "") -> None:
        path = directory / "mailfilter.toml"
        path.write_text(rules)
        config, problems = parse(site.encode() or b"[spam]\n", "site.toml")
        assert config, problems
        self._replayer = Replayer(Settings(config, user_file=str(path), scan=False))

    def fate(
        self, message: bytes, sender: str = SENDER, recipient: str = RECIPIENT, scan: dict[str, Any] | None = None
    ) -> Fate:
        """What becomes of one message."""
        plan, steps = self.decision(message, sender, recipient, scan)
        letters = {"S": "\\seen", "F": "\\flagged", "R": "\\answered", "D": "\\draft"}
        keywords = {folder: {KEYWORDS[ord(letter) - ord("a")] for letter in found} for folder, found in plan.keywords}
        return Fate(
            frozenset(
                (one.target, frozenset({letters[flag] for flag in plan.flags} | keywords.get(one.target, set())))
                for one in plan.actions
                if one.verb is Verb.FILE
            ),
            frozenset(one.target for one in plan.actions if one.verb is Verb.FORWARD),
            any(one.verb is Verb.BOUNCE for one in plan.actions),
            plan.answer is not None or any("no reply goes out" in step for step in steps),
        )

    def decision(
        self, message: bytes, sender: str = SENDER, recipient: str = RECIPIENT, scan: dict[str, Any] | None = None
    ) -> tuple[Plan, list[str]]:
        """The whole decision, and what led to it."""
        envelope = {"sender": sender, "recipient": recipient, "keywords": _Everywhere()}
        tables: dict[str, dict[str, Any]] = {"envelope": envelope}
        if scan:
            tables["scan"] = scan
        result = asyncio.run(self._replayer.judge("", Source.of(message), Family({}, tables)))
        return result.plan, [step.text for step in result.steps]


class _Everywhere(dict[str, list[str]]):
    """Every folder knows the same keywords."""

    def __contains__(self, _folder: object) -> bool:
        return True

    def __missing__(self, _folder: str) -> list[str]:
        return list(KEYWORDS)


# --- Sieve -------------------------------------------------------------------------------------------------------

_DOVECOT = """\
protocols =
log_path = /dev/stderr
base_dir = {home}/base
state_dir = {home}/state
mail_location = maildir:{home}/Maildir
plugin {{
  sieve_extensions = +editheader +spamtest +spamtestplus +virustest +vacation-seconds
  sieve_spamtest_status_type = score
  sieve_spamtest_status_header = X-Spam-Score: ([-0-9.]+)
  sieve_spamtest_max_value = 5.0
  sieve_virustest_status_type = text
  sieve_virustest_status_header = X-Virus-Scan: (.*)
  sieve_virustest_text_value1 = clean
  sieve_virustest_text_value5 = virus
  sieve_editheader_max_header_size = 2k
}}
"""


class Sieve:
    """Runs scripts with Dovecot Pigeonhole's sieve-test, below a directory that its unprivileged user can write to."""

    def __init__(self, directory: Path) -> None:
        self._program = servers.needs("sieve-test")
        self._home = directory
        self._config = directory / "dovecot.conf"
        self._config.write_text(_DOVECOT.format(home=directory))

    def fates(self, script: Path, mails: list[tuple[Path, str, str]]) -> list[Fate]:
        """What becomes of each message with its sender and recipient. Fails where the script is none."""
        return [self._fate(said) for said in self.run(script, mails)]

    def _fate(self, said: str) -> Fate:
        places = set()
        for folder, flags in re.findall(r" \* store message in folder: (.*)((?:\n +\+ .*)*)", said):
            added = re.search(r"add IMAP flags: (.*)", flags)
            places.add((self.folder(folder), frozenset((added[1] if added else "").lower().split())))
        return Fate(
            frozenset(places),
            frozenset(re.findall(r" \* redirect message to: <(.*)>", said)),
            " * reject message" in said,
            " * send vacation message" in said,
        )

    def run(self, script: Path, mails: list[tuple[Path, str, str]], *options: str) -> list[str]:
        """Its standard output for each message. One shell runs them all, which saves most of the time.

        It takes no null sender.
        """
        command = [self._program, "-C", "-c", str(self._config), *options]
        said = shlex.join(command)
        runs = [
            f"{said} -f {shlex.quote(sender)} -r {shlex.quote(recipient)} {script} {message} && echo @END@"
            for message, sender, recipient in mails
        ]
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", "\n".join(runs)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"HOME": str(self._home), "PATH": os.environ.get("PATH", os.defpath), "TZ": os.environ.get("TZ", "")},
            cwd=self._home,
            timeout=120,
            **servers.unprivileged(),
        )
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
        outputs = done.stdout.decode("utf-8", "replace").split("@END@\n")
        assert len(outputs) == len(mails) + 1
        return outputs[:-1]

    @staticmethod
    def folder(name: str) -> str:
        """A folder by the name that it has here."""
        levels = re.split(r"[./]", "INBOX" if name.upper() == "INBOX" else name)
        return ".".join(levels[1:] if levels[0].upper() == "INBOX" and levels[1:] else levels)


# --- procmail ----------------------------------------------------------------------------------------------------


class Procmail:
    """Runs rc files with procmail, below a directory that its unprivileged user can write to.

    What is sent on goes to a script in sendmail's place; "spamc" and "spamassassin" are there, and do nothing. A home's inbox is its
    Maildir, the directory of folders as well.
    """

    def __init__(self, directory: Path, homes: Path) -> None:
        self._program = servers.needs("procmail")
        self._directory = directory
        self._homes = homes
        self._number = 0
        # Called as `sendmail -oi ADDRESS...`.
        (directory / "sendmail").write_text(
            '#!/bin/sh\nshift\nprintf "%s\\n" "$@" >>"$HOME/sent"\nexec cat >/dev/null\n'
        )
        for name in ("spamc", "spamassassin"):
            (directory / name).write_text("#!/bin/sh\nexec cat\n")
        for name in ("sendmail", "spamc", "spamassassin"):
            (directory / name).chmod(0o755)

    def fates(self, rc: str, mails: list[tuple[bytes, str]]) -> list[Fate]:
        """What becomes of each message with its sender."""
        fates = []
        for home in self._run(rc, mails):
            sent = (home / "sent").read_text().split() if (home / "sent").exists() else []
            fates.append(Fate(frozenset((folder, frozenset()) for folder in _stored(home)), frozenset(sent)))
        return fates

    def stored(self, rc: str, mails: list[tuple[bytes, str]]) -> list[bytes]:
        """What is in the inbox for each message."""
        return [b"".join(path.read_bytes() for path in home.glob("Maildir/new/*")) for home in self._run(rc, mails)]

    def _run(self, rc: str, mails: list[tuple[bytes, str]]) -> list[Path]:
        """A home for each message. One shell runs procmail for all, which saves most of the time."""
        self._number += 1
        file = self._directory / f"{self._number}.rc"
        file.write_text(rc)
        file.chmod(0o644)
        homes, runs = [], []
        for number, (content, sender) in enumerate(mails):
            home = self._homes / f"{self._number}-{number}"
            (home / "Maildir").mkdir(parents=True)
            servers._give(home, home / "Maildir")
            message = self._directory / f"message{number}"
            message.write_bytes(content)
            command = [
                self._program,
                "-f",
                sender,
                "-m",
                f"HOME={home}",
                f"SENDMAIL={self._directory}/sendmail",
                f"PATH={self._directory}:/usr/bin:/bin",  # that of the environment does not count
                str(file),
            ]
            runs.append(f"cd {home} && {shlex.join(command)} <{message}")
            homes.append(home)
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", "\n".join(runs)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"LOGNAME": "nobody", "PATH": f"{self._directory}:/usr/bin:/bin"},
            timeout=120,
            **servers.unprivileged(),
        )
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
        return homes


@contextmanager
def quick_scratch() -> Iterator[Path]:
    """A directory for thousands of small files, in memory where there is such a place: disks take long to forget."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="deliver-", dir=memory if os.access(memory, os.W_OK) else "/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def _stored(home: Path) -> set[str]:
    """The folders with a message in them: Maildirs, and mbox files."""
    found = set()
    for path in home.rglob("*"):
        if not path.is_file() or path.name in {"sent", "msgid.cache"}:
            continue
        inside = path.relative_to(home).parts
        inside = inside[:-2] if inside[-2:-1] == ("new",) else inside[:-1] if inside[-1].isdigit() else inside  # mh(1)
        levels = [
            level for part in inside if part not in {"Maildir", "Mail", "mail"} for level in part.split(".") if level
        ]
        found.add(".".join(levels) or "INBOX")
    return found


# --- messages ----------------------------------------------------------------------------------------------------


def some_messages(number: int) -> list[Path]:
    """Real messages, the same ones each time, from the ham and spam that people have had."""
    paths = [path for path in corpora.messages() if path.parent.parent.name in {"sa-public", "spam-spamassassin-tdata"}]
    step = max(len(paths) // number, 1)
    return paths[::step][:number]
