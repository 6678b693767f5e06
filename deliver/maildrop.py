"""Called as `maildrop`: its command line (maildrop(1)), for hosts whose qmailadmin has the name compiled in.

A filter file is a program in maildrop's language, which only maildrop runs. The site's own filter, whose work we do, is
named in [maildrop] replaces; any other is a user's and is left to the real maildrop.
"""

import os
from collections.abc import Sequence

from deliver import arguments as command_line
from deliver.arguments import Call
from deliver.errors import Deferred

SHORT = "aA:d:D:f:mM:V:w:W:t:vh"
"""maildrop's options; those with a colon take a value."""


MARK = "--as-maildrop"
"""What the launcher puts first where it is called by that name."""


def read(arguments: list[str]) -> tuple[Call, str]:
    """What a command line says, ours or, behind MARK, maildrop's; and the filter file it names. Raises Deferred."""
    return read_maildrops(arguments[1:]) if arguments[:1] == [MARK] else (command_line.read(arguments), "")


def read_maildrops(arguments: Sequence[str]) -> tuple[Call, str]:
    """What the command line says to us, and the filter file that it names, "" for none. Raises Deferred.

    -A adds a header line, -f is the sender. An argument behind the filter file that is an address is the recipient
    (qmailadmin's --enable-spamcmd-needs-email). With -d, whose value is the recipient if it is an address, there is no
    filter file: all that follows are the site's own $1, $2, ..., a sender perhaps among them. -m, -M, -v and -h deliver
    nothing, so they are refused; the others change nothing here.
    """
    import getopt

    try:
        options, rest = getopt.getopt(list(arguments), SHORT)
    except getopt.GetoptError as error:
        raise Deferred(
            f"command line of maildrop: {error}", "4.3.5 Mail filter is called with an unknown option"
        ) from error
    said = dict(options)
    for option in ("-m", "-M", "-v", "-h"):
        if option in said:
            line = "4.3.5 Mail filter is called with an option it does not take"
            raise Deferred(f"command line of maildrop: {option} does not deliver a message", line)
    filter_file = rest[0] if rest and "-d" not in said else ""
    addresses = [word for word in ([said["-d"]] if "-d" in said else rest[1:]) if "@" in word]
    call = Call(
        sender=said.get("-f"),
        recipient=addresses[0] if addresses else "",
        headers=tuple(value for option, value in options if option == "-A"),
    )
    return call, filter_file


def is_replaced(filter_file: str, replaces: Sequence[str], directory: str) -> bool:
    """Whether we do the work of this filter; without one the site's configuration is the filter.

    ``directory`` is the caller's working directory, at which a relative path starts.
    """
    path = os.path.normpath(os.path.join(directory, filter_file))
    return not filter_file or any(os.path.normpath(one) == path for one in replaces)


def run_real(program: str, arguments: Sequence[str]) -> None:
    """Become the real maildrop, with standard input as it came. Raises Deferred where it cannot be."""
    if not program:
        raise Deferred(
            "a filter of maildrop's that [maildrop] replaces does not list, and no [maildrop] program to run it",
            "4.3.5 Mail filter does not know this filter file",
        )
    try:
        os.execv(program, [program, *arguments])
    except OSError as error:
        raise Deferred(
            f"[maildrop] program {program}: {error.strerror}", "4.3.5 Mail filter is not configured"
        ) from error
