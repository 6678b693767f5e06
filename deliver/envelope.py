"""Who a message is from and for, as each MTA tells it: by options, by environment, by the framing of the message."""

import os
import re
from collections.abc import Mapping

from deliver.arguments import Call
from deliver.errors import Deferred
from deliver.message import Framing
from deliver.values import Envelope


def recipient_of(call: Call, environment: Mapping[str, str]) -> tuple[str, str]:
    """The recipient and the extension (qmail-command(8), local(8), vdelivermail); raises Deferred where nobody says.

    A vpopmail user is told by LOCAL being HOST-EXT: RECIPIENT then names the domain's system user, EXT the mailbox.
    """
    local, host, ext = (environment.get(name, "") for name in ("LOCAL", "HOST", "EXT"))
    virtual = bool(ext and host) and local.lower() == f"{host}-{ext}".lower()
    if call.recipient:
        recipient = call.recipient
    elif virtual:
        recipient = f"{ext}@{host}"
    elif environment.get("RECIPIENT"):
        recipient = environment["RECIPIENT"]
    elif local and host:
        recipient = f"{local}@{host}"
    else:
        raise Deferred(
            "the recipient is unknown: give --recipient, or set EXT and HOST, RECIPIENT, or LOCAL and HOST",
            "4.3.5 Mail filter does not know the recipient",
        )
    if "EXT" in environment and not virtual:
        return recipient, environment["EXT"]
    return recipient, extension_of(ext if virtual else recipient.rpartition("@")[0] or recipient)


def extension_of(local_part: str) -> str:
    """What follows the first "-" or "+"; "" if nothing does."""
    return re.split(r"[-+]", local_part, maxsplit=1)[-1] if re.search(r"[-+]", local_part) else ""


def base_of(environment: Mapping[str, str], directory: str = "") -> str:
    """The directory at which relative paths start: the working directory under qmail (DTLINE is set), else HOME.

    ``directory`` is the working directory of whoever called, "" for our own.
    """
    if "DTLINE" in environment:
        try:
            return directory or os.getcwd()
        except OSError as error:
            raise Deferred(f"the working directory is gone: {error}", "4.2.1 Mailbox is not accessible") from error
    home = environment.get("HOME", "")
    if not home.startswith("/"):
        raise Deferred("HOME is not set, so a relative Maildir is nowhere; give --maildir", "4.3.5 No home directory")
    return home


def maildir_of(call: Call, environment: Mapping[str, str], default: str, directory: str = "") -> str:
    """The absolute path of the Maildir. Raises Deferred."""
    path = call.maildir or default
    return path if path.startswith("/") else os.path.join(base_of(environment, directory), path)


def envelope_of(call: Call, environment: Mapping[str, str], framing: Framing, maildir: str) -> Envelope:
    """The envelope of one delivery. Raises Deferred.

    The sender is --sender, else SENDER, else the framing's Return-Path. Postfix pipe(8) writes MAILER-DAEMON for the
    null sender.
    """
    recipient, extension = recipient_of(call, environment)
    said = call.sender if call.sender is not None else environment.get("SENDER")
    sender = said if said is not None else framing.sender
    known = sender is not None
    sender = "" if sender in (None, "MAILER-DAEMON", "<>") else sender or ""
    delivered_to = _line("Delivered-To: ", environment.get("DTLINE", ""), recipient)
    return_path = _line("Return-Path: ", environment.get("RPLINE", "") if call.sender is None else "", f"<{sender}>")
    loops = tuple(dict.fromkeys((_value(delivered_to), recipient))) if call.loop_check else ()
    return Envelope(
        sender=sender,
        recipient=recipient,
        maildir=maildir,
        extension=extension,
        return_path=return_path if known else b"",
        delivered_to=delivered_to,
        loop_addresses=loops,
        headers=b"".join(_line(name + ": ", "", value.strip()) for name, _, value in _headers(call.headers)),
    )


def _headers(lines: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """maildrop's -A "Name: value"; what is not a header line is a slip in the command line."""
    parts = [line.partition(":") for line in lines]
    for name, colon, _ in parts:
        if not colon or not re.fullmatch(r"[!-9;-~]+", name):
            raise Deferred(f"-A {name!r} is not a header line", "4.3.5 Mail filter is called with an unknown option")
    return parts


def _line(name: str, given: str, value: str) -> bytes:
    """A header line from the MTA's own (``given``) or of our making; control characters become "_", as qmail has it."""
    line = given.rstrip("\n") if given.lower().startswith(name.strip().lower()) else name + value
    return os.fsencode(re.sub(r"[\x00-\x1f\x7f]", "_", line)) + b"\n"


def _value(line: bytes) -> str:
    return os.fsdecode(line).partition(":")[2].strip()
