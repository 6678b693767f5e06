"""Actions of rules, carried out for real: programs, header edits, keywords, folders with placeholders."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import main_job
import pytest

from deliver import keywords, programs
from deliver.config import parse
from deliver.errors import Deferred
from deliver.message import Forgeries, Message, Source, read_framing
from deliver.rules import placeholders
from deliver.rules.model import Facts, View, folder_problem
from deliver.values import Edits, Envelope

# --- edits of the header -----------------------------------------------------------------------------------------


def stored(raw: bytes, edits: Edits, forgeries: Forgeries | None = None) -> bytes:
    """What is stored of a message; its size is what was said."""
    source = Source.of(raw)
    message = Message(source, read_framing(source.head), b"", forgeries).edited(edits)
    content = b"".join(message.stored(b"", b""))
    assert len(content) == message.stored_size(b"", b"")
    return content


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_removed_fields_go_as_whole_lines_and_nothing_else_changes(end: bytes) -> None:
    raw = end.join([b"A: 1", b"X-Noise: a", b"\tb", b" c", b"B: 2", b"x-noise : d", b"X-Noise2: e", b"", b"X-Noise: f", b""])
    wanted = raw.replace(b"\r\n", b"\n").replace(b"X-Noise: a\n\tb\n c\n", b"").replace(b"x-noise : d\n", b"")
    assert stored(raw, Edits(frozenset({b"x-noise"}))) == wanted


def test_headers_of_nested_messages_and_of_the_framing_stay() -> None:
    raw = b"Return-Path: <a@b>\nDelivered-To: x\nSubject: y\n\nDelivered-To: z\nSubject: n\n"
    edits = Edits(frozenset({b"delivered-to", b"return-path", b"subject"}))
    assert stored(raw, edits) == b"Return-Path: <a@b>\nDelivered-To: x\n\nDelivered-To: z\nSubject: n\n"


def test_removals_and_forgeries_together() -> None:
    raw = b"X-A: 1\nX-B: 2\nX-A: 3\nSubject: s\nX-B: 4\n\nbody\n"
    forgeries = Forgeries(frozenset({b"x-b"}))
    assert stored(raw, Edits(frozenset({b"x-a"}), "[t]"), forgeries) == b"Subject: [t] s\n\nbody\n"


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        (b"Subject: hello", b"Subject: [x] hello"),
        (b"SUBJECT:hello", b"SUBJECT: [x] hello"),
        (b"Subject:\thello", b"Subject: [x]\thello"),
        (b"Subject:", b"Subject: [x]"),
        (b"Subject: ", b"Subject: [x] "),
        (b"Subject:\n folded", b"Subject: [x]\n folded"),
        (b"Subject: =?utf-8?q?f=C3=BCr?=\n =?utf-8?q?_x?=", b"Subject: [x] =?utf-8?q?f=C3=BCr?=\n =?utf-8?q?_x?="),
        (b"Subject: f\xfcr", b"Subject: [x] f\xfcr"),
        (b"Subject: a\nSubject: b", b"Subject: [x] a\nSubject: b"),
        (b"Subject: " + b"y" * 66, b"Subject: [x]\n " + b"y" * 66),
        (b"Subject: " + b"y" * 65, b"Subject: [x] " + b"y" * 65),
        (b"Subject:" + b"y" * 100, b"Subject: [x]\n " + b"y" * 100),
    ],
)
def test_a_tag_stands_before_the_subjects_own_bytes(field: bytes, wanted: bytes) -> None:
    assert stored(b"A: 1\n" + field + b"\nB: 2\n\nSubject: no\n", Edits(tag="[x]")) == (
        b"A: 1\n" + wanted + b"\nB: 2\n\nSubject: no\n"
    )


@pytest.mark.parametrize("subject", ["hello", "=?utf-8?q?f=C3=BCr?=", ""])
def test_a_tag_beyond_ascii_is_read_with_one_blank(subject: str) -> None:
    from email.header import decode_header, make_header

    content = stored(f"Subject: {subject}\n\n".encode(), Edits(tag="[für]"))
    shown = str(make_header(decode_header(content.decode().partition(":")[2].strip())))
    assert shown.strip() == f"[für] {subject and str(make_header(decode_header(subject)))}".strip()


# --- keywords ----------------------------------------------------------------------------------------------------


@pytest.fixture(name="maildir")
def open_maildir(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_keywords_are_dovecots(maildir: int, tmp_path: Path) -> None:
    """As Dovecot writes it: "0 NAME" for the letter a."""
    before = os.listdir("/proc/self/fd")
    (tmp_path / ".A").mkdir()
    (tmp_path / ".A" / "dovecot-keywords").write_text("0 $NotJunk\n1 Work\n25 Last\n26 beyond\nx y\n3\n")
    assert keywords.letters(maildir, "A") == {"$notjunk": "a", "work": "b", "last": "z"}
    assert keywords.letters(maildir, "") == {}
    assert keywords.letters(maildir, "None") == {}
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("kind", ["link", "fifo", "large", "linked folder"])
def test_keywords_behind_a_trap_are_none(maildir: int, tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "dovecot-keywords").write_text("0 a\n")
    if kind == "linked folder":
        (tmp_path / ".A").symlink_to("secret")
    else:
        (tmp_path / ".A").mkdir()
        path = tmp_path / ".A" / "dovecot-keywords"
        {
            "link": lambda: path.symlink_to("../secret/dovecot-keywords"),
            "fifo": lambda: os.mkfifo(path),
            "large": lambda: path.write_text("0 a\n" * 20_000),
        }[kind]()
    assert keywords.letters(maildir, "A") == {}


# --- placeholders ------------------------------------------------------------------------------------------------

HOSTILE = [
    "../../../etc/passwd",
    "..",
    ".",
    "/",
    "a/../../b",
    "a\0b",
    "a\nb",
    "a\r\nb",
    "INBOX",
    "~root",
    "$(touch x)",
    "`id`",
    "%s%n",
    "*",
    "&AOQ-",
    "ä" * 300,
    "x" * 5000,
    "\u202egnp.exe",
    "\x1b[2J",
    "-oX",
    " ",
    "{list-name}",
    "{{",
    "cur",
    "deliver",
    "a.b.c.d",
    "\ud800",
]
"""What strangers may write wherever they can write anything."""


def view(value: str) -> View:
    """A message that has the value in every place."""
    raw = value.encode("utf-8", "surrogatepass").replace(b"\n", b" ").replace(b"\r", b" ")
    source = Source.of(b"From: <%b@%b>\nSubject: %b\nList-Id: <%b>\nMessage-ID: %b\n\n" % (raw, raw, raw, raw, raw))
    envelope = Envelope(f"{value}@{value}", f"{value}@{value}", "/m", value)
    message = Message(source, read_framing(source.head))
    return View(Facts(message, envelope, 1.0, False, (value,), time.time()))


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", list(placeholders.VALUES))
def test_no_value_makes_a_name_that_is_no_folder(name: str, value: str) -> None:
    for text in (f"{{{name}}}", f"Lists.{{{name}}}", f"A.{{{name}}}.{{{name}}}.B"):
        try:
            folder = placeholders.folder(text, view(value))
        except ValueError:
            continue
        assert folder_problem(folder) == ""
        assert folder.count(".") == text.count(".")  # a value is no more than one level
        assert folder == "INBOX" or folder.startswith(text.partition("{")[0])
        assert "/" not in folder


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_breaks_a_line(value: str) -> None:
    for name in placeholders.VALUES:
        filled = placeholders.fill(f"<{{{name}}}>", view(value))
        assert filled.isprintable()
        assert len(filled) <= placeholders.LONGEST_VALUE + 2


def test_braces_stand_for_themselves() -> None:
    assert placeholders.fill("{{subject}} {} {1} { x } }} {subject}", view("s")) == "{subject} {} {1} { x } } s"
    with pytest.raises(ValueError, match=r"did you mean \{subject\}"):
        placeholders.check("{sbject}")


def test_what_placeholders_say() -> None:
    source = Source.of(b"From: Ann <Ann@Example.net>\nSubject: =?utf-8?q?f=C3=BCr?=\nList-Id: x <Dev.Lists.Example>\n\n")
    message = Message(source, read_framing(source.head))
    envelope = Envelope("bounce@example.net", "bob-x@example.org", "/m", "x")
    one = View(Facts(message, envelope, 4.5, False, (), 0.0))
    text = "{from}|{from-user}|{from-domain}|{sender}|{user}|{domain}|{extension}|{subject}|{list-id}|{list-name}|{score}"
    assert placeholders.fill(text, one) == (
        "Ann@Example.net|Ann|example.net|bounce@example.net|bob|example.org|x|für|dev.lists.example|dev|4.5"
    )


# --- programs ----------------------------------------------------------------------------------------------------


def script(directory: Path, text: str) -> str:
    """A program of the site's."""
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


class Piped:
    """A mailbox whose owner gives mail to a program of the site's."""

    def __init__(self, directory: Path, text: str, *, rule: str = '[[rule]]\npipe = "ticket"\n') -> None:
        (directory / "user").mkdir()
        self.directory = directory
        self.log = directory / "user" / "log"
        site = f'[log]\nto = "{self.log}"\n[programs]\nticket = ["{script(directory, text)}", "a b", "$(touch x)"]\n[user]\nmay-run = ["ticket"]\n'
        self.home = main_job.Home(directory / "user", Path("/nonexistent"), site)
        self.home.log = self.log
        (directory / "user" / "mailfilter.toml").write_text(rule)
        main_job.own(directory)

    def deliver(self, content: bytes, **environment: str) -> forked.Ended:
        return forked.deliver(self.home.environment(**environment), self.home.path, "--maildir", str(self.home.maildir), stdin=content)  # fmt: skip


def test_a_program_gets_the_message_and_the_envelope(scratch: Path) -> None:
    out = scratch / "user" / "out"
    piped = Piped(scratch, f'printf "%s\\n" "$#" "$@" "$SENDER" "$RECIPIENT" "$EXT" "$PATH" >{out}; cat >>{out}; echo noise; echo noise >&2')
    ended = piped.deliver(main_job.message("hello"), sender="a;b$(x)@example.net")
    assert (ended.code, ended.stdout, ended.stderr) == (0, b"", b"")
    head, _, text = out.read_text().partition("Return-Path")
    assert head.splitlines() == ["2", "a b", "$(touch x)", "a;b$(x)@example.net", "you@example.org", "", "/usr/sbin:/usr/bin:/sbin:/bin"]
    assert text.endswith("\n\nHello.\n")
    assert "\nDelivered-To: you@example.org\n" in text
    assert piped.home.where() == ""
    assert piped.home.logged()[-1]["actions"] == ["pipe ticket"]


@pytest.mark.parametrize("code", [0, 99])
def test_these_exit_codes_mean_delivered(scratch: Path, code: int) -> None:
    piped = Piped(scratch, f"exit {code}")
    assert piped.deliver(main_job.message("x")).code == 0
    assert piped.home.where() == ""


def test_100_gives_the_message_back(scratch: Path) -> None:
    piped = Piped(scratch, "exit 100", rule='[[rule]]\ncopy = "A"\npipe = "ticket"\n')
    ended = piped.deliver(main_job.message("x"))
    assert (ended.code, ended.stdout) == (100, b"5.7.1 Message refused (#5.7.1)\n")
    assert piped.home.where() == ""


@pytest.mark.parametrize("text", ["exit 1", "exit 75", "exit 77", "exit 111", "exit 127", "kill -9 $$", "kill -15 $$"])
def test_everything_else_is_tried_again(scratch: Path, text: str) -> None:
    piped = Piped(scratch, text, rule='[[rule]]\ncopy = "A"\npipe = "ticket"\n')
    assert piped.deliver(main_job.message("x")).code == 75
    assert piped.home.where() == ""  # the copy as well
    assert list((piped.home.maildir / ".A" / "tmp").iterdir()) == []


def test_a_program_that_is_gone_is_tried_again(scratch: Path) -> None:
    piped = Piped(scratch, "exit 0")
    (scratch / "program").unlink()
    assert piped.deliver(main_job.message("x")).code == 75


def test_one_that_does_not_read_and_leaves_a_daemon_behind_is_no_trouble(scratch: Path) -> None:
    """Bad input 46."""
    piped = Piped(scratch, "exec 0<&-; sleep 20 & exit 0")
    begun = time.monotonic()
    assert piped.deliver(main_job.message("x", b"y" * 3_000_000)).code == 0
    assert time.monotonic() - begun < 10


def test_one_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = script(tmp_path, f"(trap '' TERM; sleep 60; touch {mark}) & echo $! >{tmp_path}/pid; sleep 60")
    begun = time.monotonic()
    with pytest.raises(Deferred, match=r"did not end within 0\.5 s"):
        programs.run([path], [b"x"], 0.5, programs.environment())
    assert time.monotonic() - begun < 5
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline


# --- what no rule of a user can do -------------------------------------------------------------------------------

TRICKS = ["/etc/passwd", "../x", "..", ".", "a/b", "a\\u0000b", "a\\nb", "~/x", "|id", "a:b", "INBOX/../..", "", " "]


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("key", ["file", "copy"])
def test_no_path_is_a_folder(key: str, trick: str) -> None:
    _, problems = parse(f'[[rule]]\n{key} = "{trick}"\n'.encode(), "f")
    assert [problem for problem in problems if not problem.warning]
    if trick:
        _, problems = parse(f'[[rule]]\n{key} = "{{subject}}/{trick}"\n'.encode(), "f")
        assert [problem for problem in problems if not problem.warning]


@pytest.mark.parametrize("trick", [*TRICKS, "ticket", "/bin/sh", "ticket; id", "sh", "ticket\\u0000"])
def test_no_user_runs_what_the_site_did_not_name_for_users(trick: str) -> None:
    from deliver.config import parse_personal
    from deliver.settings import Config, Programs, User

    site = Config(programs=Programs(ticket=("/bin/true",), other=("/bin/true",)), user=User(may_run=("other",)))
    own, problems = parse_personal(f'[[rule]]\npipe = "{trick}"\n'.encode(), "f", site)
    assert own.rules == ()
    assert "may-run" in problems[0].text
    assert parse_personal(b'[[rule]]\npipe = "other"\n', "f", site)[1] == []
    for table in ("[programs]\nticket = ['/bin/sh']", "[user]\nmay-run = ['ticket']", 'domain-rules = "/x/{domain}"'):
        assert parse_personal(f"{table}\n".encode(), "f", site)[1]


@pytest.mark.parametrize(
    "text",
    [
        'add-header = { "X-A" = "a\\nBcc: b@c.test" }',
        'add-header = { "X-A\\nBcc" = "a" }',
        'add-header = { "X-A" = "a\\u0000" }',
        'tag-subject = "a\\nBcc: b@c.test"',
        'tag-subject = "\\u0000"',
        'log = "a\\nb"',
        'remove-header = "Received"',
        'remove-header = ["X-Spam-Status"]',
        'remove-header = "X-Virus-Status"',
        'remove-header = "delivered-to"',
        'remove-header = "X:Y"',
        'remove-header = "X\\nY"',
        'remove-header = "From"',
        'remove-header = "X-MS-*"',
        'flag = "$a\\nb"',
        'flag = "keyword:a b"',
        'flag = "keyword:"',
        'flag = "keyword:(x)"',
        'pipe = ["/bin/sh", "-c", "id"]',
        'reply = "a\\u0000b"',
        'reply = ""',
        'reply = { text = "x", subject = "a\\nBcc: b@c.test" }',
        'reply = { text = "x", my-addresses = ["-oX@example.org"] }',
        'reply = { text = "x", my-addresses = ["a@b.test\\nx"] }',
        'reply = { text = "x", every = "1 min" }',
        'reply = { text = "x", every = "91 d" }',
        'reply = { text = "x", until = "2026-12-24" }',
        'reply = { text = "x", from-date = 2026-12-24, until = 2026-12-23 }',
        'reply = { text = "x", sender = "a@b.test" }',
        'reply = { subject = "x" }',
        'reply = { text = "{nobody}" }',
        'reply = "x"\nbounce = true',
        'reply = "x"\nquarantine = true',
        'file = "{nobody}"',
        'file = "A"\nsubscribe = "no"',
        'file = "A"\ntest = "x"',
        'file = "A"\ntest = [{ message = "x" }]',
        'file = "A"\ntest = [{ message = "x", file = "y", expect = { folder = "A" } }]',
        'file = "A"\ntest = [{ message = "x", expct = { folder = "A" } }]',
    ],
)
def test_a_field_with_a_trick_in_it_is_an_error(text: str) -> None:
    _, problems = parse(f"[[rule]]\n{text}\n".encode(), "f")
    assert [problem for problem in problems if not problem.warning]


def test_a_folder_that_senders_choose_without_a_level_is_warned_of() -> None:
    _, problems = parse(b'[[rule]]\nfile = "{list-name}"\n', "f")
    assert [problem.warning for problem in problems] == [True]
    assert "Sent or Trash" in problems[0].text


def rules_home(scratch: Path, rule: str, **more: Any) -> main_job.Home:
    (scratch / "user").mkdir()
    home = main_job.Home(scratch / "user", Path("/nonexistent"), f'[log]\nto = "{scratch}/user/log"\n', **more)
    home.log = scratch / "user" / "log"
    (scratch / "user" / "mailfilter.toml").write_text(rule)
    main_job.own(scratch)
    return home


def deliver(home: main_job.Home, content: bytes, **environment: str) -> int:
    """The exit code of a delivery with the owner's rules."""
    return forked.deliver(home.environment(**environment), home.path, "--maildir", str(home.maildir), stdin=content).code


def test_a_folder_that_is_a_link_out_of_the_maildir_is_not_followed(scratch: Path) -> None:
    home = rules_home(scratch, '[[rule]]\nfile = "Lists.{list-name}"\nflag = "$Work"\n')
    for part in ("tmp", "new", "cur"):
        (scratch / "elsewhere" / part).mkdir(parents=True)
    main_job.own(scratch)
    (home.maildir / ".Lists.x").symlink_to(scratch / "elsewhere")
    assert deliver(home, main_job.message("y", headers=b"List-Id: <x.example>\n")) == 0
    assert home.messages()
    assert list((scratch / "elsewhere" / "new").iterdir()) == []


def test_strangers_cannot_make_folders_without_end(scratch: Path) -> None:
    home = rules_home(scratch, '[[rule]]\nfile = "S.{subject}"\n')
    for number in range(998):
        (home.maildir / f".f{number}").mkdir()
    main_job.own(home.maildir)
    codes = [deliver(home, main_job.message(f"subject {n}")) for n in range(4)]
    assert codes == [0] * 4
    assert [name for name in home.folders() if name.startswith("S.")] == ["S.subject_0", "S.subject_1"]
    assert len(home.messages()) == 2
    assert deliver(home, main_job.message("subject 0")) == 0
    assert len(home.messages("S.subject_0")) == 2


def test_keywords_and_subscriptions_in_a_real_maildir(scratch: Path) -> None:
    home = rules_home(scratch, '[[rule]]\nfile = "Work"\nflag = ["flagged", "$Label1"]\n[rule.when]\nsubject = "*work*"\n[[rule]]\nfile = "Quiet"\nsubscribe = false\n')
    (home.maildir / ".Work").mkdir()
    (home.maildir / ".Work" / "dovecot-keywords").write_text("0 $NotJunk\n1 $Label1\n")
    main_job.own(home.maildir)
    before = (home.maildir / ".Work" / "dovecot-keywords").stat().st_mtime_ns
    assert deliver(home, main_job.message("work to do")) == 0
    assert deliver(home, main_job.message("other")) == 0
    (name,) = [path.name for path in (home.maildir / ".Work" / "cur").iterdir()]
    assert name.endswith(":2,Fb")
    assert (home.maildir / ".Work" / "dovecot-keywords").stat().st_mtime_ns == before
    assert len(home.messages("Quiet")) == 1
    subscribed = home.maildir / "subscriptions"
    assert not subscribed.exists() or "Quiet" not in subscribed.read_text()


def test_the_quota_counts_what_is_stored_after_edits(scratch: Path) -> None:
    home = rules_home(scratch, '[[rule]]\nremove-header = "X-Long"\ntag-subject = "[a tag]"\n', quota="100000S\n       0            0\n")
    assert deliver(home, main_job.message("x", headers=b"X-Long: " + b"y" * 5000 + b"\n")) == 0
    (content,) = home.messages()
    assert b"Subject: [a tag] x\n" in content
    assert b"X-Long" not in content
    (path,) = (home.maildir / "new").iterdir()
    assert f",S={len(content)}" in path.name
    counted = [line.split() for line in (home.maildir / "maildirsize").read_text().splitlines()[1:]]
    assert sum(int(size) for size, _ in counted) == len(content)


def test_what_edits_take_out_does_not_fill_the_mailbox(scratch: Path) -> None:
    home = rules_home(scratch, '[[rule]]\nremove-header = "X-Long"\n', quota="2000S\n       0            0\n")
    content = main_job.message("x", headers=b"X-Long: " + b"y" * 5000 + b"\n")
    assert deliver(home, content) == 0
    (home.path / "mailfilter.toml").unlink()
    assert deliver(home, content) == 100


def test_notes_are_in_the_log(scratch: Path) -> None:
    home = rules_home(scratch, '[[rule]]\nlog = "from {from-domain}: {subject}"\n')
    assert deliver(home, main_job.message("hello \x1b[2J")) == 0
    assert home.logged()[-1]["notes"] == ["from example.net: hello [2J"]
