"""Automatic replies: what they look like (RFC 3834), and that there is one for each sender and span, whoever storms."""

import email
import email.policy
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import forked
import main_job
import pytest

from deliver import answered, reply
from deliver.message import Message, Source, read_framing
from deliver.values import Answer, Envelope

NOW = 1_800_000_000.0
WEEK = 7 * 86400.0

RECORDER = """#!/bin/sh
n=$(mktemp {directory}/sent.XXXXXX)
echo "$@" > "$n"
cat >> "$n"
{more}
"""


def message(headers: str = "", to: str = "you@example.org") -> Message:
    """One that a person wrote."""
    source = Source.of(f"From: friend@example.net\nTo: {to}\n{headers}\nHello.\n".encode("utf-8", "surrogateescape"))
    return Message(source, read_framing(source.head))


def why(headers: str = "", *, sender: str = "friend@example.net", to: str = "you@example.org", own: str = "") -> str:
    """Why there is no reply."""
    envelope = Envelope(sender, "you+x@example.org", "/m", extension="x")
    return reply.why_not(message(headers, to), envelope, (own,) if own else ())


def test_a_persons_message_may_be_answered() -> None:
    assert why() == ""
    assert why(to="YOU+x@example.org") == ""
    assert why(to="a@b.test, You <you@example.org>") == ""


@pytest.mark.parametrize("name", ["To", "Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc"])
def test_one_of_these_fields_must_name_the_mailbox(name: str) -> None:
    """RFC 5230 section 4.5."""
    assert why(to="others@example.net")
    assert why(f"{name}: <you@example.org>\n", to="others@example.net") == ""
    assert why(f"{name}: me@example.com\n", to="others@example.net")
    assert why(f"{name}: me@example.com\n", to="others@example.net", own="Me@example.com") == ""


def test_the_address_that_an_alias_led_here_from_counts_only_where_the_mail_server_wrote_it() -> None:
    source = Source.of(b"X-Original-To: sales@example.org\nFrom: a@b.test\nTo: sales@example.org\n\n")
    aliased = Message(source, read_framing(source.head))
    assert reply.why_not(aliased, Envelope("a@b.test", "you@example.org", "/m"), ()) == ""
    assert why("X-Original-To: sales@example.org\n", to="sales@example.org")


def test_the_alias_stands_among_other_lines_of_the_mail_servers() -> None:
    """As Exim's appendfile and pipe transports add them: return_path_add, envelope_to_add, delivery_date_add."""
    top = b"Return-path: <a@b.test>\nEnvelope-to: sales@example.org\nDelivery-date: Sat, 28 Nov 2026 08:00:00 +0000\n"
    source = Source.of(top + b"From: a@b.test\nTo: sales@example.org\n\n")
    aliased = Message(source, read_framing(source.head))
    assert reply.why_not(aliased, Envelope("a@b.test", "you@example.org", "/m"), ()) == ""


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "#@[]",
        "MAILER-DAEMON",
        "mailer-daemon@example.net",
        "MAILER-DAEMON-x@example.net",
        "listserv@example.net",
        "LISTSERV-1@example.net",
        "Majordomo@example.net",
        "owner-qmail@example.net",
        "qmail-owner@example.net",
        "qmail-request@example.net",
        "qmail-request+bob@example.net",
        "bounce-123@example.net",
        "bounces@example.net",
        "qmail-bounces+you=example.org@example.net",
        "qmail-return-17-you=example.org@example.net",
        "noreply@example.net",
        "no-reply+1@example.net",
        "donotreply@example.net",
        "postmaster@example.net",
        "you@example.org",
        "YOU+x@Example.ORG",
        "-oQ/tmp@example.net",
        "a b@example.net",
        "a@example.net\nBcc: x@example.com",
        "a@example.net\0",
        "a@example.net, b@example.net",
        "jörg@example.net",
        "j\udcf6rg@example.net",
        "a" * 250 + "@example.net",
        "a@",
        "@example.net",
        "a@b@c",
    ],
)
def test_these_senders_are_never_answered(sender: str) -> None:
    assert why(sender=sender)


@pytest.mark.parametrize("sender", ["requests@example.net", "bob-smith@example.net", "SRS0=x=y=org=bob@example.net"])
def test_people_with_such_addresses_are(sender: str) -> None:
    assert why(sender=sender) == ""


@pytest.mark.parametrize(
    "headers",
    [
        *(f"List-{name}: x\n" for name in "Id Help Subscribe Unsubscribe Post Owner Archive Unsubscribe-Post".split()),
        "LIST-ANYTHING: \n",
        "Mailing-List: contact x; run by ezmlm\n",
        "Auto-Submitted: auto-replied\n",
        "Auto-Submitted: auto-generated; x=y\n",
        "Auto-Submitted:\n (x) auto-notified\n",
        "Auto-Submitted: no\nAuto-Submitted: auto-replied\n",
        "Precedence: bulk\n",
        "precedence: JUNK\n",
        "Precedence: =?utf-8?q?list?=\n",
        "X-Auto-Response-Suppress: DR, OOF, AutoReply\n",
        "X-Auto-Response-Suppress: All\n",
        "Content-Type: multipart/report; boundary=x\n",
        "Content-Type: (x) Multipart/Report\n",
        "A: " + "x" * (1 << 20) + "\n",
    ],
)
def test_what_programs_write_is_never_answered(headers: str) -> None:
    assert why(headers)


@pytest.mark.parametrize(
    "headers", ["Auto-Submitted: no\n", "Precedence: first-class\n", "X-Auto-Response-Suppress: RN\n", "X-List-Id: x\n"]
)
def test_what_people_write_is(headers: str) -> None:
    assert why(headers) == ""


def test_a_bounce_that_says_so_in_words_alone_is_not_answered() -> None:
    body = (
        b"From: a@example.net\nTo: you@example.org\nSubject: failure notice\n\n"
        b"Hi. This is the qmail-send program at example.net.\n"
        b"I'm afraid I wasn't able to deliver your message to the following addresses.\n"
        b"This is a permanent error; I've given up. Sorry it didn't work out.\n\n"
        b"<nobody@example.net>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n--- Below this line is a copy\n"
    )
    source = Source.of(body)
    bounce = Message(source, read_framing(source.head))
    assert reply.why_not(bounce, Envelope("a@example.net", "you@example.org", "/m"), ()) == "it is a bounce"


# --- what it looks like ------------------------------------------------------------------------------------------


def composed(subject: str = "Auto: hello", text: str = "Away.", headers: str = "") -> email.message.EmailMessage:
    """A reply, read by the standard library's parser."""
    answer = Answer("friend@example.net", "you@example.org", subject, text, "key", WEEK)
    raw = reply.compose(answer, message(headers), NOW)
    assert max(map(len, raw.split(b"\n"))) <= 998
    assert raw.isascii()
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(parsed, email.message.EmailMessage)
    assert parsed.defects == []
    return parsed


def test_a_reply_has_what_rfc_3834_wants() -> None:
    parsed = composed(headers="Message-ID: <2@x>\nReferences: <0@x>\n\t<1@x>\n")
    assert parsed["From"].addresses[0].addr_spec == "you@example.org"
    assert parsed["To"].addresses[0].addr_spec == "friend@example.net"
    assert parsed["Subject"] == "Auto: hello"
    assert parsed["Auto-Submitted"] == "auto-replied"
    assert parsed["In-Reply-To"] == "<2@x>"
    assert parsed["References"].split() == ["<0@x>", "<1@x>", "<2@x>"]
    assert parsed["Date"].datetime.timestamp() == NOW
    assert parsed["Message-ID"].endswith("@example.org>")
    assert parsed.get_content() == "Away.\n"


def test_without_references_the_message_that_was_answered_comes_first() -> None:
    """RFC 5322 section 3.6.4."""
    parsed = composed(headers="Message-ID: <2@x>\nIn-Reply-To: <1@x>\n")
    assert parsed["References"].split() == ["<1@x>", "<2@x>"]


@pytest.mark.parametrize("headers", ["", "Message-ID: no id\n", "Message-ID: <a b@x>\n", "Message-ID: <\n"])
def test_what_is_no_message_id_is_not_repeated(headers: str) -> None:
    parsed = composed(headers=headers)
    assert parsed["In-Reply-To"] is None
    assert parsed["References"] is None


def test_endless_references_are_cut() -> None:
    parsed = composed(headers="Message-ID: <z@x>\nReferences: " + "\n ".join(f"<{n}@x>" for n in range(5000)) + "\n")
    found = parsed["References"].split()
    assert (found[0], found[-2:], len(found)) == ("<0@x>", ["<4999@x>", "<z@x>"], 22)


@pytest.mark.parametrize(
    "text", ["Grüße\n\nAnna", "x" * 5000, "=\n.\nFrom here", "a \t\nb", "日本語 " * 300, "soft = break?"]
)
def test_any_text_arrives(text: str) -> None:
    assert composed(text=text).get_content().rstrip("\n") == text.rstrip("\n")


def test_any_subject_arrives() -> None:
    for subject in ("Auto: Grüße", "Auto: =?x?q?y?=", "a" * 890, "日本語" * 60):
        assert composed(subject=subject)["Subject"].replace("\n", "").strip() == subject


# --- once --------------------------------------------------------------------------------------------------------


@pytest.fixture(name="maildir")
def open_maildir(tmp_path: Path) -> Iterator[int]:
    """An open directory for the state."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_one_reply_for_each_key_and_span(maildir: int, tmp_path: Path) -> None:
    sent: list[str] = []
    assert answered.why_not(maildir, "a", WEEK, NOW) == ""
    assert answered.once(maildir, "a", WEEK, NOW, lambda: sent.append("a")) == ""
    assert "already" in answered.once(maildir, "a", WEEK, NOW + WEEK - 1, lambda: sent.append("a again"))
    assert "already" in answered.why_not(maildir, "a", WEEK, NOW + WEEK - 1)
    assert answered.once(maildir, "b", WEEK, NOW, lambda: sent.append("b")) == ""
    assert answered.once(maildir, "a", WEEK, NOW + WEEK, lambda: sent.append("a later")) == ""
    assert sent == ["a", "b", "a later"]
    assert (tmp_path / "deliver" / "answered").read_text() == f"{NOW:.0f} a\n{NOW:.0f} b\n{NOW + WEEK:.0f} a\n"
    assert (tmp_path / "deliver" / "answered").stat().st_mode & 0o777 == 0o600


def test_what_was_not_sent_is_not_remembered(maildir: int, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("no sendmail")

    with pytest.raises(RuntimeError):
        answered.once(maildir, "a", WEEK, NOW, fail)
    assert (tmp_path / "deliver" / "answered").read_bytes() == b""
    assert answered.once(maildir, "a", WEEK, NOW, lambda: None) == ""


def test_forged_senders_get_no_more_than_so_many_a_day(maildir: int) -> None:
    sent = [answered.once(maildir, f"k{n}", WEEK, NOW + n, lambda: None) for n in range(answered.MOST_A_DAY + 5)]
    assert [why for why in sent if why] == [f"{answered.MOST_A_DAY} replies have gone out within a day"] * 5
    assert answered.once(maildir, "k", WEEK, NOW + 90_000, lambda: None) == ""


def test_the_file_forgets_what_no_rule_asks_for(maildir: int, tmp_path: Path) -> None:
    for n in range(100):
        assert answered.once(maildir, f"k{n}", WEEK, NOW, lambda: None) == ""
    assert answered.once(maildir, "new", WEEK, NOW + answered.KEPT + 1, lambda: None) == ""
    assert (tmp_path / "deliver" / "answered").read_text().split() == [f"{NOW + answered.KEPT + 1:.0f}", "new"]


@pytest.mark.parametrize("rubbish", [b"\0\xff" * 50, b"nan a\ninf b\n-1 a\n" + b"9" * 400 + b" a\n", b"1800000000 b", b"\n"])
def test_rubbish_in_the_file_is_passed_over(maildir: int, tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / "deliver").mkdir()
    (tmp_path / "deliver" / "answered").write_bytes(rubbish)
    assert answered.once(maildir, "a", WEEK, NOW, lambda: None) == ""
    assert "already" in answered.once(maildir, "a", WEEK, NOW + 1, lambda: None)


def test_a_clock_that_was_set_back_blocks_no_longer_than_the_span(maildir: int) -> None:
    assert answered.once(maildir, "a", WEEK, NOW, lambda: None) == ""
    assert "already" in answered.once(maildir, "a", WEEK, NOW - 86400, lambda: None)
    assert answered.once(maildir, "a", WEEK, NOW - 2 * WEEK, lambda: None) == ""


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "hard link", "large", "linked directory"])
def test_a_file_that_is_a_trap_costs_the_reply_alone(maildir: int, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret\n")
    path = tmp_path / "deliver" / "answered"
    if kind == "linked directory":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "deliver").symlink_to("elsewhere")
    else:
        path.parent.mkdir()
        {
            "link": lambda: path.symlink_to(secret),
            "fifo": lambda: os.mkfifo(path),
            "directory": path.mkdir,
            "hard link": lambda: path.hardlink_to(secret),
            "large": lambda: path.write_bytes(b"x" * (1 << 20) + b"y"),
        }[kind]()
    sent: list[int] = []
    begun = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT011 - each has its own
        answered.once(maildir, "a", WEEK, NOW, lambda: sent.append(1))
    assert answered.why_not(maildir, "a", WEEK, NOW)
    assert time.monotonic() - begun < 2
    assert sent == []
    assert secret.read_bytes() == b"secret\n"


def test_of_twenty_at_once_one_answers(maildir: int) -> None:
    sent: list[int] = []
    start = threading.Barrier(20)
    said: list[str] = []

    def one() -> None:
        start.wait(20)
        said.append(answered.once(maildir, "a", WEEK, NOW, lambda: sent.append(1)))

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sent == [1]
    assert sorted(map(bool, said)) == [False] + [True] * 19


# --- through the whole delivery ----------------------------------------------------------------------------------

RULE = """
[[rule]]
[rule.reply]
subject = "Away: {subject}"
text = "I am away."
"""


class Away:
    """A mailbox whose owner is away, and a sendmail that writes down what it is given."""

    def __init__(self, directory: Path, *, more: str = "", rule: str = RULE) -> None:
        (directory / "user").mkdir()
        (directory / "sent").mkdir()
        self.sent_in = directory / "sent"
        self.program = directory / "bin" / "sendmail"
        self.program.parent.mkdir()
        self.program.write_text(RECORDER.format(directory=self.sent_in, more=more))
        self.program.chmod(0o755)
        self.home = main_job.Home(directory / "user", Path("/nonexistent"), f'[log]\nto = "{directory}/user/log"\n')
        self.home.log = directory / "user" / "log"
        (directory / "user" / "mailfilter.toml").write_text(rule)
        main_job.own(directory)

    def deliver(self, content: bytes | None = None, sender: str = "friend@example.net") -> forked.Ended:
        environment = self.home.environment(sender, PATH=f"{self.program.parent}:/usr/bin:/bin")
        del environment["DTLINE"]  # not qmail: sendmail is asked
        content = content or main_job.message("lunch")
        return forked.deliver(environment, self.home.path, "--maildir", str(self.home.maildir), "--recipient", "you@example.org", stdin=content)  # fmt: skip

    def sent(self) -> list[str]:
        return sorted(path.read_text() for path in self.sent_in.iterdir())


def test_a_reply_goes_to_the_envelope_sender_from_nobody(scratch: Path) -> None:
    away = Away(scratch)
    assert away.deliver().code == 0, away.home.logged()
    (sent,) = away.sent()
    first, _, text = sent.partition("\n")
    assert first == "-i -f <> -- friend@example.net"
    assert "\nSubject: Away: lunch\n" in text
    assert "\nIn-Reply-To: <lunch@example.net>\n" in text
    assert text.endswith("\n\nI am away.\n")
    assert len(away.home.messages()) == 1
    assert away.home.logged()[-1]["reply"] == "sent to friend@example.net"


def test_the_second_message_gets_none(scratch: Path) -> None:
    away = Away(scratch)
    assert [away.deliver().code for _ in range(3)] == [0, 0, 0]
    assert len(away.sent()) == 1
    assert len(away.home.messages()) == 3


@pytest.mark.parametrize("more", ["exit 75", "exit 100", "kill -9 $$"])
def test_a_reply_that_fails_costs_nothing_else_and_comes_later(scratch: Path, more: str) -> None:
    away = Away(scratch, more=more)
    assert away.deliver().code == 0
    assert len(away.home.messages()) == 1
    assert "not sent" in away.home.logged()[-1]["reply"]
    away.program.write_text(RECORDER.format(directory=away.sent_in, more="exit 0"))
    assert away.deliver().code == 0
    assert len(away.home.messages()) == 2
    assert away.home.logged()[-1]["reply"].startswith("sent to")


def test_a_state_that_cannot_be_kept_costs_the_reply_alone(scratch: Path) -> None:
    away = Away(scratch)
    (away.home.maildir / "deliver").symlink_to("/")
    assert away.deliver().code == 0
    assert away.sent() == []
    assert len(away.home.messages()) == 1


def test_twenty_deliveries_at_once_send_one_reply(scratch: Path) -> None:
    away = Away(scratch)
    pids: list[int] = []
    environment = away.home.environment("friend@example.net", PATH=f"{away.program.parent}:/usr/bin:/bin")
    del environment["DTLINE"]
    read_end, write_end = os.pipe()  # all begin when this is closed
    for _ in range(20):
        pid = os.fork()
        if not pid:
            os.close(write_end)
            os.read(read_end, 1)
            code = forked.deliver(environment, away.home.path, "--maildir", str(away.home.maildir), "--recipient", "you@example.org", stdin=main_job.message("lunch")).code  # fmt: skip
            os._exit(code)
        pids.append(pid)
    os.close(read_end)
    os.close(write_end)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * 20
    assert len(away.sent()) == 1
    assert len(away.home.messages()) == 20


def test_a_storm_of_forged_senders_is_answered_by_no_more_than_the_days_measure(scratch: Path) -> None:
    away = Away(scratch)
    (away.home.maildir / "deliver").mkdir()
    now = int(time.time())
    lines = "".join(f"{now - n} {n:032x}\n" for n in range(answered.MOST_A_DAY - 1))
    (away.home.maildir / "deliver" / "answered").write_text(lines)
    main_job.own(away.home.maildir)
    assert [away.deliver(sender=f"forged{n}@example.com").code for n in range(4)] == [0] * 4
    assert len(away.sent()) == 1
    assert len(away.home.messages()) == 4


def test_newsender_is_not_for_replies(scratch: Path) -> None:
    """Under qmail NEWSENDER may be a list's owner (dot-qmail(5)): a reply's sender is nobody all the same."""
    away = Away(scratch)
    queue = away.program.with_name("qmail-queue")
    queue.write_text(f"#!/bin/sh\ncat >/dev/null\ntr '\\0' '|' <&1 >{away.sent_in}/envelope\n")
    queue.chmod(0o755)
    environment = away.home.environment(PATH=f"{queue.parent}:/usr/bin:/bin", NEWSENDER="list-owner@example.org")
    ended = forked.deliver(environment, away.home.path, "--maildir", str(away.home.maildir), stdin=main_job.message("x"))
    assert ended.code == 0
    assert (away.sent_in / "envelope").read_text() == "F|Tfriend@example.net||"
