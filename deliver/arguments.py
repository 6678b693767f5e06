"""The command line of a delivery, as an MTA or a .qmail file writes it."""

from typing import Any, NamedTuple

from deliver.errors import Deferred

_FLAGS = {"--plain": "plain", "--no-loop-check": "loop_check", "--stop-after-spam": "stop_after_spam"}


class Call(NamedTuple):
    """What a command line says; None and "" where it is silent. ``headers`` are lines that maildrop's -A adds."""

    sender: str | None = None
    recipient: str = ""
    maildir: str = ""
    config: str = ""
    plain: bool = False
    loop_check: bool = True
    stop_after_spam: bool = False
    headers: tuple[str, ...] = ()


def read(arguments: list[str]) -> Call:
    """Parse a delivery's command line. Raises Deferred: a slip in a .qmail file must not bounce mail."""
    import getopt

    names = ["config=", "plain", "sender=", "recipient=", "maildir=", "no-loop-check", "stop-after-spam"]
    try:
        options, rest = getopt.gnu_getopt(arguments, "", names)
    except getopt.GetoptError as error:
        raise Deferred(f"command line: {error}", "4.3.5 Mail filter is called with an unknown option") from error
    said: dict[str, Any] = {}
    for option, value in options:
        name = _FLAGS.get(option, option[2:])
        said[name] = value if option not in _FLAGS else name != "loop_check"
    addresses = [argument for argument in rest if "@" in argument]
    # Two recipients would be one mailbox and a loss: Postfix pipe(8) without recipient_limit=1 asks for that.
    if len(addresses) < len(rest) or len({*addresses, *([said["recipient"]] if "recipient" in said else [])}) > 1:
        line = "4.3.5 Mail filter is called with unknown arguments"
        raise Deferred(f"command line: cannot make sense of {rest}", line)
    said.setdefault("recipient", addresses[0] if addresses else "")
    return Call(**said)
