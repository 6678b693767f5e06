"""Who hears of mail that did not arrive, in which words; and that no notice, and no old log, ever changes the outcome."""

import email
import email.policy
import threading
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import forked
import main_job
import pytest
import servers
from click.testing import CliRunner
from scanned import EICAR, with_attachment
from test_reply import RECORDER

# What a delivery imports late: an unprivileged child might not be able to read it where the checkout is private.
import deliver.content.mime
import deliver.notices
import deliver.qmailscanner
from deliver import config as configuration
from deliver.commands import cli
from deliver.message import Message, Source, read_framing
from deliver.notices import HTML, TEXT, event
from deliver.qmailscanner import lines
from deliver.rules import placeholders
from deliver.settings import NOTICE_WORDS, Log
from deliver.values import Action, Envelope, Finding, Plan, Verb, Verdict

VIRUS = Verdict("clamd", Finding.VIRUS, names=("Eicar-Test-Signature",), seconds=0.25)
HAM = Verdict("spamd", Finding.CLEAN, score=-1.0, required=5.0)
SPAM = Verdict("spamd", Finding.SPAM, score=8.9, required=5.0)
EICAR_IS = "Eicar-Test-Signature.UNOFFICIAL"  # so clamd calls what is no signature of ClamAV's own
HELD = (Action(Verb.QUARANTINE),)
FOUND = "clamd found the virus Eicar-Test-Signature"


class Site:
    """A mailbox, a configuration with [notices], and a sendmail that writes down what it is given."""

    def __init__(self, directory: Path, settings: str, *, more: str = "") -> None:
        (directory / "user").mkdir()
        (directory / "sent").mkdir()
        self.directory = directory
        self.program = directory / "bin" / "sendmail"
        self.program.parent.mkdir()
        self.program.write_text(RECORDER.format(directory=directory / "sent", more=more))
        self.program.chmod(0o755)
        text = f'[log]\nto = "{directory}/user/log"\n{settings}'
        self.home = main_job.Home(directory / "user", Path("/nonexistent"), text)
        main_job.own(directory)

    def deliver(self, content: bytes, sender: str = "friend@example.net") -> forked.Ended:
        environment = self.home.environment(sender, PATH=f"{self.program.parent}:/usr/bin:/bin")
        del environment["DTLINE"]  # not qmail: sendmail is asked
        arguments = ("--maildir", str(self.home.maildir), "--recipient", "you@example.org")
        return forked.deliver(environment, self.home.path, *arguments, stdin=content)

    def sent(self) -> dict[str, EmailMessage]:
        """The notices by the command lines with which they were sent."""
        found = {}
        for path in (self.directory / "sent").iterdir():
            first, _, text = path.read_text().partition("\n")
            found[first] = email.message_from_string(text, policy=email.policy.default)
        return found  # type: ignore[return-value]


def settings(clamd: str, notices: str) -> str:
    return f'[clamd]\naddress = "{clamd}"\n[notices]\n{notices}\n'


def body(one: EmailMessage, kind: str) -> str:
    part = one.get_body((kind,))
    assert part is not None
    return str(part.get_content())


ALL = "to = ['admin', 'recipient', 'sender']\nadmin = 'postmaster@example.org'"
INFECTED = main_job.message("a <b>file</b>", EICAR + b"\n")


def test_a_virus_is_told_to_admin_and_recipient_and_never_to_its_sender(
    scratch: Path, clamd_server: servers.Server
) -> None:
    site = Site(scratch, settings(clamd_server.address, ALL))
    assert site.deliver(INFECTED).code == 0
    sent = site.sent()
    assert set(sent) == {"-i -f <> -- postmaster@example.org", "-i -f <> -- you@example.org"}
    for one in sent.values():
        assert one["Auto-Submitted"] == "auto-generated"
        assert one["From"] == "postmaster@example.org"
        assert one["Subject"] == "Message is held in quarantine: a <b>file</b>"
        assert "Eicar" in body(one, "plain")
        assert "a <b>file</b>" in body(one, "plain")
        assert "a &lt;b&gt;file&lt;/b&gt;" in body(one, "html")
        assert EICAR.decode() not in one.as_string()
    (logged,) = site.home.logged()
    assert logged["notices"][:2] == [
        "sent to the admin postmaster@example.org",
        "sent to the recipient you@example.org",
    ]
    assert logged["notices"][2].startswith("not sent to the sender friend@example.net: ")


def test_the_second_within_the_span_is_not_sent(scratch: Path, clamd_server: servers.Server) -> None:
    site = Site(scratch, settings(clamd_server.address, "to = ['recipient']"))
    site.deliver(INFECTED)
    site.deliver(INFECTED)
    assert len(site.sent()) == 1
    assert "already" in site.home.logged()[1]["notices"][0]


@pytest.mark.parametrize("more", ["exit 75", "kill -9 $$"])
def test_a_notice_that_fails_changes_nothing(scratch: Path, clamd_server: servers.Server, more: str) -> None:
    site = Site(scratch, settings(clamd_server.address, "to = ['recipient']"), more=more)
    ended = site.deliver(INFECTED)
    assert (ended.code, ended.stdout, ended.stderr) == (0, b"", b"")
    assert len(site.home.held()) == 1
    assert "not sent to the recipient" in site.home.logged()[0]["notices"][0]


def test_a_template_that_is_gone_costs_the_notice_alone(scratch: Path, clamd_server: servers.Server) -> None:
    site = Site(scratch, settings(clamd_server.address, f"to = ['recipient']\ntext = '{scratch}/missing'"))
    assert site.deliver(INFECTED).code == 0
    assert "FileNotFoundError" in site.home.logged()[0]["notices"][0]
    assert site.sent() == {}


def test_own_words(scratch: Path, clamd_server: servers.Server) -> None:
    text, shown = scratch / "text", scratch / "html"
    text.write_text("Grüße, {to}: {what}, id {id}, {virus}\n{{braces}}\n")
    shown.write_text("<p>{subject}</p>")
    extra = "to = ['recipient']\nsubject = 'Virus: {virus}'\nfrom = 'help@{domain}'\n"
    site = Site(scratch, settings(clamd_server.address, f"{extra}text = '{text}'\nhtml = '{shown}'"))
    assert site.deliver(INFECTED).code == 0
    (one,) = site.sent().values()
    (held,) = site.home.held()
    assert body(one, "plain") == (
        f"Grüße, you@example.org: is held in quarantine, id {held['id']}, {EICAR_IS}\n{{braces}}\n"
    )
    assert body(one, "html") == "<p>a &lt;b&gt;file&lt;/b&gt;</p>\n"
    assert one["Subject"] == f"Virus: {EICAR_IS}"
    assert one["From"] == "help@example.org"


@pytest.mark.parametrize(
    ("actions", "reason", "verdicts", "kind"),
    [
        (HELD, FOUND, (VIRUS,), "virus"),
        ((Action(Verb.DISCARD),), FOUND, (VIRUS,), "virus"),
        ((Action(Verb.BOUNCE, text="5.7.1 Message contains a virus"),), FOUND, (VIRUS,), "virus"),
        (HELD, "attachments: Forbidden (a.exe)", (HAM,), "policy"),
        (HELD, "clamd did not scan it: clamd: it is larger than 25 MiB", (), "unscanned"),
        (HELD, "spam with 8 points; the mailbox is full (x)", (SPAM,), "spam"),
        ((Action(Verb.DISCARD),), "spam with 19 points, above the 12 of delete-above", (SPAM,), "spam"),
        ((Action(Verb.BOUNCE, text="5.2.2 Mailbox is full"),), "the mailbox is full (x)", (HAM,), "quota"),
        (HELD, 'rule "no"', (HAM,), "rule"),
        # Arrived, or comes again.
        ((Action(Verb.FILE, "INBOX"),), "no rule placed it", (HAM,), ""),
        ((Action(Verb.FILE, "Spam"),), "spam with 8 points", (SPAM,), ""),
        ((Action(Verb.DEFER, text="4.3.2 x"),), "clamd did not scan it: x", (), ""),
        ((Action(Verb.FORWARD, "a@b"), Action(Verb.DISCARD)), 'rule "on"', (), ""),
    ],
)
def test_what_notices_can_be_about(
    actions: tuple[Action, ...], reason: str, verdicts: tuple[Verdict, ...], kind: str
) -> None:
    assert event(Plan(actions, reason), verdicts) == kind


class Told:
    """The tools of a delivery, with a mailbox that lets everything pass."""

    def __init__(self) -> None:
        self.maildir = self
        self.sent: list[tuple[str, str, bytes]] = []
        self.subject = "hello"
        self.now = 1_800_000_000.0
        self.held = ["17.1.x"]

    def answer(self, _answer: Any, _now: float, send: Any) -> str:
        send()
        return ""

    def injector(self) -> "Told":
        return self

    def send(self, sender: str, address: str, chunks: list[bytes]) -> None:
        self.sent.append((sender, address, b"".join(chunks)))


def message(headers: bytes = b"", subject: bytes = b"hello") -> Message:
    text = b"Received: from x (x [192.0.2.7]) by y; Sun, 22 Nov 2026 10:00:00 +0000\nFrom: f@example.net\n"
    text += b"To: you@example.org\nSubject: " + subject + b"\nMessage-ID: <1@example.net>\n" + headers
    return Message(Source.of(text + (b"" if b"\n\n" in headers else b"\nhi\n")), read_framing(b""))


def notices(actions: tuple[Action, ...], reason: str, sender: str, headers: bytes = b"", **more: Any) -> Told:
    told = Told()
    wanted = b"[notices]\nto = ['sender']\nabout = ['virus', 'policy', 'unscanned', 'rule']\n"
    found = configuration.parse(wanted, "f")[0]
    assert found is not None
    plan = Plan(actions, reason, spam=more.pop("spam", False))
    envelope = Envelope(sender, "you@example.org", "/nowhere")
    deliver.notices.send(found.notices, plan, more.pop("verdicts", ()), message(headers), envelope, told)  # type: ignore[arg-type]
    return told


POLICY = "attachments: Forbidden (a.exe)"


def test_a_plausible_sender_hears_of_policy() -> None:
    ((sender, address, letter),) = notices(HELD, POLICY, "f@example.net").sent
    assert (sender, address) == ("", "f@example.net")
    one = email.message_from_bytes(letter, policy=email.policy.default)
    assert one["Auto-Submitted"] == "auto-replied"
    assert one["In-Reply-To"] == "<1@example.net>"
    assert "Forbidden (a.exe)" in letter.decode()


@pytest.mark.parametrize(
    ("reason", "more"),
    [
        (FOUND, {"verdicts": (VIRUS,)}),
        (POLICY, {"verdicts": (VIRUS,)}),
        (POLICY, {"verdicts": (SPAM,), "spam": True}),
        (POLICY, {"verdicts": (SPAM,)}),
        (POLICY, {"sender": ""}),
        (POLICY, {"sender": "owner-list@example.net"}),
        (POLICY, {"sender": "mailer-daemon@example.net"}),
        (POLICY, {"headers": b"List-Id: <x.example.net>\n"}),
        (POLICY, {"headers": b"Precedence: bulk\n"}),
        (POLICY, {"headers": b"Auto-Submitted: auto-generated\n"}),
        (POLICY, {"actions": (Action(Verb.BOUNCE, text="5.7.1 no"),)}),
        ('rule "secret"', {}),
    ],
)
def test_senders_who_hear_nothing(reason: str, more: dict[str, Any]) -> None:
    arguments = {"actions": HELD, "sender": "f@example.net", **more}
    assert notices(reason=reason, **arguments).sent == []


def test_no_notice_about_a_notice(scratch: Path) -> None:
    """A filter that holds them would else get a new one for each, without end where `every` is short."""
    site = Site(
        scratch,
        "[notices]\nto = ['recipient']\nabout = ['rule']\nevery = '0 s'\n[[rule]]\nname = 'all'\nquarantine = true\n",
    )
    site.deliver(main_job.message("one", b"text\n"))
    ((_, notice),) = site.sent().items()
    assert site.deliver(notice.as_bytes(), sender="").code == 0
    assert len(site.home.held()) == 2
    assert len(site.sent()) == 1
    site.deliver(main_job.message("two", b"text\n"), sender="")  # but about a bounce, which may have a virus
    assert len(list((scratch / "sent").iterdir())) == 2


def test_the_built_in_templates_name_what_there_is() -> None:
    for text in (TEXT, HTML):
        assert placeholders.check(text, NOTICE_WORDS) == text


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[notices]\nto = ['admin']\n", 1, "address"),
        ("[notices]\nto = ['boss']\n", 2, "admin, recipient, sender"),
        ("[notices]\nsubject = '{subjekt}'\n", 2, "did you mean {subject}"),
        ("[notices]\nfrom = 'x'\n", 2, "postmaster@{domain}"),
        ("[notices]\ntext = 'x'\n", 2, "whole path"),
        ("[notices]\nhtml = '/nonexistent/x'\n", 2, "No such file"),
        ("[log]\nmailstats = 'x'\n", 2, "whole path"),
        ("[quarantine]\nkeep-by = { viruses = '7 d' }\n", 2, "virus"),
        ("[quarantine]\nkeep-by = { virus = 'long' }\n", 2, "span"),
    ],
)
def test_what_is_wrong_is_said_beforehand(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    done = CliRunner().invoke(cli, ["check", str(path)])
    assert done.exit_code == 1
    first = done.output.splitlines()[0]
    assert first.startswith(f"{path}:{line}: ")
    assert words in first


# --- qmail-scanner's logs ------------------------------------------------------------------------------------------


def test_both_logs_have_qmail_scanners_fields(scratch: Path, clamd_server: servers.Server) -> None:
    """facts: quarantine.log has six TAB fields; mailstats.csv eight, then NAME:BYTES."""
    paths = [scratch / "user" / name for name in ("quarantine.log", "mailstats.csv")]
    text = f'[clamd]\naddress = "{clamd_server.address}"\n'
    site = Site(scratch, text)
    asked = f"[log]\nquarantine-log = '{paths[0]}'\nmailstats = '{paths[1]}'"
    site.home.config.write_text(site.home.config.read_text().replace("[log]", asked))
    assert site.deliver(INFECTED).code == 0
    assert site.deliver(with_attachment(b"x" * 1000, "a.bin")).code == 0
    (line,) = paths[0].read_text().splitlines()
    fields = line.split("\t")
    assert fields[1:5] == ["friend@example.net", "you@example.org", "a <b>file</b>", EICAR_IS]
    assert email.utils.parsedate_to_datetime(fields[0])
    assert fields[5].startswith("clamd: -. deliver: ")
    infected, clean = (one.split("\t") for one in paths[1].read_text().splitlines())
    assert infected[1].startswith(f"Quarantine:virus:{EICAR_IS}:RC:0(")
    assert clean[1].startswith("Clear:RC:0(192.0.2.1):SA:0(?/?):")
    assert float(clean[2]) > 0
    assert int(clean[3]) > 1000
    assert clean[4:8] == [
        "friend@example.net", "you@example.org", "Minutes of the meeting", "<20261122100000.12345.meeting@example.com>"
    ]  # fmt: skip
    assert clean[8:] == ["a.bin:1000"]


def written(subject: str = "hello", verdicts: tuple[Verdict, ...] = (VIRUS,), headers: bytes = b"") -> dict[str, str]:
    settings = Log(quarantine_log="/q", mailstats="/m")
    tools = Told()
    tools.subject = subject
    envelope = Envelope("f@example.net", "you@example.org", "/nowhere")
    return dict(lines(settings, Plan(HELD, FOUND), verdicts, message(headers), envelope, tools))  # type: ignore[arg-type]


@pytest.mark.parametrize("subject", ["a\tb", "a\nb", "a\r\nb", "a\x00b", "a\u2028b", "x" * 5000])
def test_nothing_in_a_field_makes_another(subject: str) -> None:
    for path, line in written(subject).items():
        assert line.count("\n") == 1
        assert len(line.splitlines()) == 1
        assert line.count("\t") == {"/q": 5, "/m": 7}[path]
        assert len(line) < 1500


def test_points_are_said_as_qmail_scanner_says_them() -> None:
    assert ":RC:0(192.0.2.7):SA:1(8.9/5.0):" in written(verdicts=(VIRUS, SPAM))["/m"]
    assert ":SA:0(-1.0/5.0):" in written(verdicts=(VIRUS, HAM))["/m"]


def test_a_log_that_cannot_be_written_changes_nothing(scratch: Path) -> None:
    site = Site(scratch, "")
    asked = f"[log]\nmailstats = '{scratch}/missing/x'\nquarantine-log = '/dev'"
    site.home.config.write_text(site.home.config.read_text().replace("[log]", asked))
    ended = site.deliver(main_job.message("hello"))
    assert (ended.code, ended.stdout) == (0, b"")
    assert len(site.home.messages()) == 1


def test_lines_of_many_deliveries_do_not_mix(tmp_path: Path) -> None:
    """One write(2) to a file opened with O_APPEND for each."""
    path = tmp_path / "mailstats.csv"
    from deliver.log import append

    def write(letter: str) -> None:
        for _ in range(200):
            append(str(path), (letter * 3000 + "\n").encode())

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = path.read_text().splitlines()
    assert len(found) == 1600
    assert {(len(line), len(set(line))) for line in found} == {(3000, 1)}
