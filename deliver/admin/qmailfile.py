"""A .qmail file: what each of its lines is (dot-qmail(5), vdelivermail, qmailadmin), and writing one anew, at once.

A line keeps its bytes, so that what is not changed is written as it was read. A command is a shell's: only what surely
is one simple command, or a pipe of them, is taken apart (POSIX.1-2017, Shell Command Language, 2.2 Quoting); of the
rest no more is said than that it is a program.
"""

import contextlib
import enum
import errno
import getopt
import os
import re
import stat
from collections.abc import Iterable
from typing import NamedTuple

LARGEST = 64 * 1024
"""Bytes; vdelivermail reads 500 of a line, and qmailadmin writes a handful of lines."""

TEMPORARY = ".deliver-new"
"""What stands before a file's name while it is written. A name that starts with .qmail would be a live address."""

MAILDROP_OPTIONS = "aA:d:D:f:mM:V:w:W:t:vh"
"""maildrop(1); those with a colon take a value."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AUTORESPONDERS = {"autorespond", "autoresponder", "qmail-autoresponder", "vacation", "qmail-vacation"}
_AGENTS = {"dovecot-lda", "deliverquota", "procmail", "vdelivermail", "safecat", "mailagent", "cyrdeliver"}
_OTHERS = ("dovecot", "cyrus")
"""Their delivery agents were called "deliver", too."""


class Kind(enum.Enum):
    """What a line is; the values are words for people."""

    BLANK = "blank"
    COMMENT = "comment"
    DELETE = "delete"  # qmailadmin's "# delete" and "|true delete"
    FORWARD = "forward"
    LIST = "list"  # "+list", qmail's
    MAILDIR = "Maildir"
    MBOX = "mbox"
    OURS = "deliver"
    MAILDROP = "maildrop"
    SPAMC = "spamc"  # a pipe through spamc to something else than maildrop
    AUTORESPONDER = "autoresponder"
    AGENT = "delivery agent"  # somebody else's
    PROGRAM = "program"


DELIVERING = frozenset({Kind.MAILDIR, Kind.MBOX, Kind.OURS, Kind.MAILDROP, Kind.AGENT})
"""Lines that put the message into a mailbox here."""


class Filtering(NamedTuple):
    """A call of maildrop. ``filter`` is the filter file as written, "" for none; ``arguments`` follow it.

    ``headers`` are -A's, ``options`` the letters of all others with their values. ``spamc`` are the words of a spamc in
    front of it. ``trouble`` says why the line cannot be understood; then nothing else is known.
    """

    program: str = "maildrop"
    filter: str = ""
    arguments: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    spamc: tuple[str, ...] = ()
    trouble: str = ""


class Line(NamedTuple):
    """``raw`` are its bytes with the newline, which a last line may lack; ``call`` is there for MAILDROP alone."""

    raw: bytes
    kind: Kind
    call: Filtering | None = None

    @property
    def text(self) -> str:
        """The line for people."""
        return self.raw.rstrip(b"\n").decode("utf-8", "backslashreplace")


def parse(data: bytes) -> tuple[Line, ...]:
    """The lines of a .qmail file."""
    # bytes.splitlines() would part at CR, too; for qmail that is a character like any other.
    return tuple(_line(raw) for raw in re.findall(rb"[^\n]*\n|[^\n]+\Z", data))


def render(lines: Iterable[Line]) -> bytes:
    """The file that has these lines; a line behind one without a newline gets its own all the same."""
    text = b""
    for line in lines:
        text += (b"\n" if text and not text.endswith(b"\n") else b"") + line.raw
    return text


def program(command: str) -> Line:
    """A line that runs ``command``."""
    return _line(b"|" + command.encode("utf-8", "surrogateescape") + b"\n")


def spoken(lines: Iterable[Line]) -> list[Line]:
    """Those that do something: neither blank nor a comment."""
    return [line for line in lines if line.kind not in (Kind.BLANK, Kind.COMMENT)]


def _line(raw: bytes) -> Line:
    text = raw.rstrip(b"\n").rstrip(b" \t")  # as qmail-local strips it
    if not text:
        return Line(raw, Kind.BLANK)
    start = text[:1]
    if start == b"#":
        return Line(raw, Kind.DELETE if re.fullmatch(rb"#\s*delete", text) else Kind.COMMENT)
    if start in (b".", b"/"):
        return Line(raw, Kind.MAILDIR if text.endswith(b"/") else Kind.MBOX)
    if start == b"+":
        return Line(raw, Kind.LIST)
    if start == b"|":
        kind, call = _command(text[1:].decode("utf-8", "surrogateescape"))
        return Line(raw, kind, call)
    return Line(raw, Kind.FORWARD)


_CALLED = re.compile(r"(?:^|[\s/;|&(`])maildrop(?=$|[\s;|&)`])")
_DELIVERS = re.compile(rf"(?:^|[\s/;|&(`])(?:{'|'.join(sorted(_AGENTS))})(?=$|[\s;|&)`])")


def _command(text: str) -> tuple[Kind, Filtering | None]:
    pipe = split(text)
    if pipe is None:
        if "maildrop" in text:
            return Kind.MAILDROP, Filtering(trouble="the shell does more here than run one command")
        return Kind.AGENT if _DELIVERS.search(text) else Kind.PROGRAM, None
    commands = [_bare(command) for command in pipe]
    names = [os.path.basename(command[0]) for command in commands]
    last = commands[-1]
    if names[-1] == "maildrop":
        return Kind.MAILDROP, _filtering(commands)
    if any(_CALLED.search(word) for command in commands for word in command):
        return Kind.MAILDROP, Filtering(trouble="maildrop is not called directly")
    if names[-1].startswith("maildrop"):  # maildrop.real, maildrop-wrapper
        return Kind.MAILDROP, Filtering(trouble=f"what {last[0]} does is not known")
    if names[-1] == "deliver" and not any(other in last[0] for other in _OTHERS):
        return Kind.OURS, None
    if "spamc" in names:
        return Kind.SPAMC, None
    if names[-1] == "true" and last[1:] in ([], ["delete"]):
        return Kind.DELETE, None
    if names[-1] in _AUTORESPONDERS:
        return Kind.AUTORESPONDER, None
    return Kind.AGENT if names[-1] in {*_AGENTS, "deliver"} else Kind.PROGRAM, None


def _bare(command: list[str]) -> list[str]:
    """The command without preline(1), env(1) and exec before it; they change nothing for us."""
    words = command
    while len(words) > 1:
        name = os.path.basename(words[0])
        if name == "exec" or (name == "env" and re.fullmatch(r"[^-=][^=]*", words[1])):
            words = words[1:]
        elif name == "preline":
            rest = words[1:]
            while len(rest) > 1 and re.fullmatch("-[dfr]+", rest[0]):
                rest = rest[1:]
            words = rest
        else:
            break
    return words


def _filtering(commands: list[list[str]]) -> Filtering:
    *before, words = commands
    if len(before) > 1 or (before and os.path.basename(before[0][0]) != "spamc"):
        return Filtering(trouble=f"{before[0][0]} stands before maildrop")
    try:
        options, rest = getopt.getopt(words[1:], MAILDROP_OPTIONS)
    except getopt.GetoptError as error:
        return Filtering(trouble=f"maildrop has no such option: {error}")
    return Filtering(
        program=words[0],
        filter=rest[0] if rest else "",
        arguments=tuple(rest[1:]),
        headers=tuple(value for option, value in options if option == "-A"),
        options=tuple((option, value) for option, value in options if option != "-A"),
        spamc=tuple(before[0]) if before else (),
    )


_UNQUOTED = re.compile(r"[^\s'\"\\|&;<>()$`*?\[#~=%!{}]+|(?<=\S)[#~=%!]")
_VARIABLE = re.compile(r"\$(?:[A-Za-z_][A-Za-z_0-9]*|\{[A-Za-z_][A-Za-z_0-9]*\})")
_TILDE = re.compile(r"(?:(?<=\s)|\A)~(?=/)")


def split(text: str) -> list[list[str]] | None:
    """The words of each command of a pipe, without their quotes; None where the shell would do more than that.

    Variables stay as they are written, and so does a leading "~/".
    """
    pipe: list[list[str]] = [[]]
    word: str | None = None
    at = 0
    while at < len(text):
        char = text[at]
        if char in " \t|":
            if word is not None:
                pipe[-1].append(word)
                word = None
            if char == "|":
                pipe.append([])
            at += 1
            continue
        found = _piece(text, at)
        if found is None:
            return None
        piece, at = found
        word = (word or "") + piece
    if word is not None:
        pipe[-1].append(word)
    return pipe if all(pipe) else None


def _piece(text: str, at: int) -> tuple[str, int] | None:
    """The next part of a word from ``at``, and where it ends; None for what is not understood."""
    char = text[at]
    if char == "'":
        end = text.find("'", at + 1)
        # A variable's name in there is no variable, and would look like one.
        return None if end < 0 or "$" in text[at:end] else (text[at + 1 : end], end + 1)
    if char == '"':
        return _quoted(text, at + 1)
    if char == "\\":
        return (text[at + 1], at + 2) if at + 1 < len(text) and text[at + 1] != "$" else None
    for pattern in (_UNQUOTED, _VARIABLE, _TILDE):
        if found := pattern.match(text, at):
            return found[0], found.end()
    return None


def _quoted(text: str, at: int) -> tuple[str, int] | None:
    """What stands in double quotes, from behind the first one."""
    piece = ""
    while at < len(text):
        char = text[at]
        if char == '"':
            return piece, at + 1
        if char == "$":
            found = _VARIABLE.match(text, at)
            if not found:
                return None
            piece += found[0]
            at = found.end()
        elif char == "`" or text[at : at + 2] == "\\$":
            return None
        elif char == "\\" and text[at + 1 : at + 2] in ('"', "\\", "`"):
            piece += text[at + 1]
            at += 2
        else:
            piece += char
            at += 1
    return None


def open_directory(path: str, below: int | None = None) -> int:
    """Open a directory; ``below`` an open one, part by part and through no symbolic link. Raises OSError."""
    if below is None:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    here = os.open(".", _DIRECTORY, dir_fd=below)
    for part in path.split("/") if path else []:
        try:
            there = os.open(part, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = there
    return here


def read(directory: int, name: str) -> tuple[bytes, os.stat_result]:
    """A file's bytes and state. Raises OSError, also for what is not a regular file or over 64 KiB."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise OSError("is not a regular file")
        data = b""
        while len(data) <= LARGEST and (block := os.read(descriptor, LARGEST + 1)):
            data += block
    finally:
        os.close(descriptor)
    if len(data) > LARGEST:
        raise OSError("is larger than 64 KiB")
    return data, state


def replace(directory: int, name: str, data: bytes, *, uid: int, gid: int, mode: int) -> None:
    """Put ``data`` in a file's place: whoever looks, at any time, finds all of the old or all of the new.

    It is on disk when this returns. Raises OSError.
    """
    temporary = TEMPORARY + name
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    except FileExistsError:  # of a run that was interrupted
        os.unlink(temporary, dir_fd=directory)
        descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            rest = data
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            made = os.fstat(descriptor)
            if (made.st_uid, made.st_gid) != (uid, gid):
                os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode & 0o7777)
            _copy_attributes(directory, name, descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        sweep(directory, name)
        raise
    os.fsync(directory)


def _copy_attributes(directory: int, name: str, to: int) -> None:
    """What xattr(7) keeps beside owner and mode: access lists (acl(5)) and labels, as far as we may set them."""
    try:
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        for attribute in os.listxattr(source):
            with contextlib.suppress(PermissionError):
                os.setxattr(to, attribute, os.getxattr(source, attribute))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
    finally:
        os.close(source)


def remove(directory: int, name: str) -> None:
    """Delete a file, for good. Raises OSError."""
    os.unlink(name, dir_fd=directory)
    os.fsync(directory)


def sweep(directory: int, name: str) -> None:
    """Delete what an interrupted ``replace`` may have left of this file."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(TEMPORARY + name, dir_fd=directory)
