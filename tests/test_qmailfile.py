"""A .qmail file: every kind of line (dot-qmail(5), qmailadmin's user.c), and not one byte changed by reading it."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from deliver.admin import qmailfile
from deliver.admin.qmailfile import Kind

# The spellings that are in use, each with its filter file, its -A headers and whether spamc stands before it.
MAILDROP = [
    ("| /usr/local/bin/maildrop /usr/local/etc/mail/mailfilter", "/usr/local/etc/mail/mailfilter", (), False),
    ("|preline /usr/local/bin/maildrop /etc/mailfilter", "/etc/mailfilter", (), False),
    ("|preline maildrop /etc/maildroprc", "/etc/maildroprc", (), False),
    (
        "|/var/qmail/bin/preline /usr/bin/maildrop /var/qmail/bin/maildrop-filter",
        "/var/qmail/bin/maildrop-filter",
        (),
        False,
    ),
    (
        "|/var/qmail/bin/preline /usr/bin/maildrop -A 'Content-Filter: maildrop-toaster' /etc/mail/mailfilter",
        "/etc/mail/mailfilter",
        ("Content-Filter: maildrop-toaster",),
        False,
    ),
    ("| /var/qmail/bin/preline maildrop /home/a/.maildroprc", "/home/a/.maildroprc", (), False),
    ("|maildrop", "", (), False),
    ("|maildrop $HOME/.mailfilter-x", "$HOME/.mailfilter-x", (), False),
    ('|maildrop "$HOME/.mailfilter"', "$HOME/.mailfilter", (), False),
    ("|/usr/bin/maildrop ~/.mailfilter/mailfilter", "~/.mailfilter/mailfilter", (), False),
    ("|/usr/local/bin/maildrop ./.mailfilter", "./.mailfilter", (), False),
    ("| /usr/local/bin/spamc -f | /usr/local/bin/maildrop", "", (), True),
    ('|spamc -u "$EXT@$HOST" | preline -f maildrop /etc/mailfilter', "/etc/mailfilter", (), True),
    ("|exec preline -dr maildrop -V 3 '/etc/mail filter'", "/etc/mail filter", (), False),
    (r"|maildrop /etc/mail\ filter", "/etc/mail filter", (), False),
    ("|/usr/bin/env maildrop /etc/mailfilter", "/etc/mailfilter", (), False),
    ("|maildrop -A \"X-A: b c\" -A'X-D: e' -- /etc/mailfilter", "/etc/mailfilter", ("X-A: b c", "X-D: e"), False),
]


@pytest.mark.parametrize(("text", "filter_file", "headers", "spamc"), MAILDROP)
def test_maildrop_in_all_its_spellings(text: str, filter_file: str, headers: tuple[str, ...], spamc: bool) -> None:
    for end in ("", "\n", " \n", "\t \n"):
        line = qmailfile.parse((text + end).encode())[0]
        assert line.kind is Kind.MAILDROP
        assert line.call is not None
        assert (line.call.trouble, line.call.filter, line.call.headers) == ("", filter_file, headers)
        assert bool(line.call.spamc) == spamc


@pytest.mark.parametrize(
    "text",
    [
        "|maildrop /etc/mailfilter; exit 99",
        "|maildrop /etc/mailfilter || exit 111",
        "|maildrop /etc/mailfilter >/dev/null",
        "|maildrop `cat filter`",
        "|maildrop $(cat filter)",
        "|maildrop *.filter",
        "|(maildrop /etc/mailfilter)",
        "|formail -I X | maildrop /etc/mailfilter",
        "|HOME=/x maildrop",
        "|nice maildrop",
        "|env -i maildrop /etc/mailfilter",
        "|/bin/sh -c 'maildrop /etc/mailfilter'",
        '|sh -c "exec /usr/bin/maildrop"',
        "|/usr/local/bin/maildrop.real /etc/mailfilter",
        "|preline maildrop-wrapper",
        "|condredirect a@b maildrop /etc/mailfilter",
        "|maildrop -Z /etc/mailfilter",
        "|maildrop 'open",
        "|maildrop '$HOME/.mailfilter'",
    ],
)
def test_what_is_more_than_a_call_is_not_guessed_at(text: str) -> None:
    line = qmailfile.parse(text.encode())[0]
    assert line.kind is Kind.MAILDROP
    assert line.call is not None
    assert line.call.trouble


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", Kind.BLANK),
        ("   ", Kind.BLANK),
        ("# a note", Kind.COMMENT),
        ("#|maildrop", Kind.COMMENT),
        ("# delete", Kind.DELETE),
        ("|/bin/true delete", Kind.DELETE),
        ("&friend@example.net", Kind.FORWARD),
        ("friend@example.net", Kind.FORWARD),
        ("./Maildir/", Kind.MAILDIR),
        ("/home/vpopmail/domains/example.org/you/Maildir/ ", Kind.MAILDIR),
        ("./Mailbox", Kind.MBOX),
        ("+list", Kind.LIST),
        ("| /usr/bin/autorespond 86400 3 /h/vacation/message /h/vacation", Kind.AUTORESPONDER),
        ("|/usr/bin/qmail-autoresponder /h/vacation", Kind.AUTORESPONDER),
        ("|/usr/local/bin/deliver", Kind.OURS),
        ("|preline /usr/local/bin/deliver --stop-after-spam", Kind.OURS),
        ("|/usr/lib/dovecot/deliver -d a", Kind.AGENT),
        ("| /home/vpopmail/bin/vdelivermail '' delete", Kind.AGENT),
        ("|spamc -f | deliverquota ./Maildir", Kind.SPAMC),
        ("|/usr/local/bin/procmail", Kind.AGENT),
        ("|procmail -m $HOME/rc; exit 0", Kind.AGENT),
        ("|IFS=' ' && exec /usr/bin/procmail -f- || exit 75 #you", Kind.AGENT),
        ("|cat /etc/maildrop.conf", Kind.PROGRAM),
        ("|/usr/local/bin/notify-me", Kind.PROGRAM),
        ("|echo maildir", Kind.PROGRAM),
    ],
)
def test_other_lines(text: str, kind: Kind) -> None:
    line = qmailfile.parse(text.encode() + b"\n")[0]
    assert (line.kind, line.call) == (kind, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"|maildrop",
        b"|maildrop\r\n&a@b\r\n",
        b"# x\n\n|maildrop \t\n./Maildir/ \n&a@b",
        b"&\xff\xfe@x\n\0\n|maildrop \x80\n",
        b"a\x0bb\x0cc\x1cd\xc2\x85e\n",
    ],
)
def test_not_one_byte_changes(data: bytes) -> None:
    assert qmailfile.render(qmailfile.parse(data)) == data


def test_a_line_behind_one_without_newline_gets_its_own() -> None:
    lines = qmailfile.parse(b"&a@b")
    assert qmailfile.render([*lines, *lines]) == b"&a@b\n&a@b"


# The words that a shell makes of a command are what split() says, or it says nothing.
COMMANDS = [
    "a b",
    " a  'b c' ",
    "a 'b'\"c\"d",
    r"a b\ c\\d",
    r'a "b\"c\\d\e"',
    "a '' \"\"",
    "a x#y -o=1 b~c d!",
    "a #b",
    "a b; c",
    "a b & c",
    "a 'b",
    "a {b,c}",
    "a b=c",
    "a '\\'",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_words_are_the_shells(command: str, tmp_path: Path) -> None:
    found = qmailfile.split(command)
    shown = tmp_path / "a"
    shown.write_text('#!/bin/sh\nprintf "%s\\0" a "$@"\n')
    shown.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        check=False,
        cwd=tmp_path,
    )
    words = done.stdout.decode().split("\0")[:-1]
    assert found is None or found == [words]
    assert found is not None or re.search(r"[;&{#]|'b$", command)


def test_replace_keeps_mode_and_survives_what_an_interruption_left(tmp_path: Path) -> None:
    (tmp_path / f"{qmailfile.TEMPORARY}.qmail").write_text("half")
    directory = qmailfile.open_directory(str(tmp_path))
    try:
        qmailfile.replace(directory, ".qmail", b"&a@b\n", uid=os.geteuid(), gid=os.getegid(), mode=0o640)
    finally:
        os.close(directory)
    assert [path.name for path in tmp_path.iterdir()] == [".qmail"]
    assert (tmp_path / ".qmail").read_bytes() == b"&a@b\n"
    assert (tmp_path / ".qmail").stat().st_mode & 0o7777 == 0o640


def test_replace_keeps_access_lists(tmp_path: Path) -> None:
    """As far as the file system has any: xattr(7)."""
    path = tmp_path / ".qmail"
    path.write_text("old\n")
    try:
        os.setxattr(path, "user.note", b"mine")
    except OSError:
        pytest.skip("no extended attributes here")
    directory = qmailfile.open_directory(str(tmp_path))
    try:
        qmailfile.replace(directory, ".qmail", b"new\n", uid=os.getuid(), gid=os.getgid(), mode=0o600)
    finally:
        os.close(directory)
    assert path.read_text() == "new\n"
    assert os.getxattr(path, "user.note") == b"mine"


def test_a_fifo_is_no_file(tmp_path: Path) -> None:
    """And does not hang us."""
    os.mkfifo(tmp_path / ".qmail")
    directory = qmailfile.open_directory(str(tmp_path))
    signal.alarm(10)
    try:
        with pytest.raises(OSError, match="not a regular file"):
            qmailfile.read(directory, ".qmail")
    finally:
        signal.alarm(0)
        os.close(directory)
