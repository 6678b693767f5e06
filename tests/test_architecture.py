"""Who imports whom, read from the source, and what a delivery may load before it knows that it needs it."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


class Room(NamedTuple):
    """Modules (patterns, without "deliver."), and the rooms whose modules they may import beside their own."""

    modules: str
    may_import: str


ROOMS = {
    # What passes through a delivery, and words and numbers for it. The standard library alone.
    "values": Room("__init__ values errors units exits headers header_lines letters message rules.__init__ rules.model rules.placeholders", ""),
    # The tables of a configuration, as classes.
    "settings": Room("settings", "values"),
    # What is in a message, read within bounds when a rule asks.
    "content": Room("content.*", "values"),
    # The life of a message. Its collaborators arrive as values, so that tests can build them.
    "story": Room("pipeline scan policy actions reply notices qmailscanner rules.evaluate rules.conditions rules.contents rules.fields rules.logic rules.matching rules.moments rules.proofs", "values settings content"),
    # The outside world: scanners, disk, the MTA's queue.
    "scanners": Room("scanners.*", "values content"),
    "adapters": Room("maildir mailbox quota subscriptions answered learned keywords forward programs lists seen signatures", "values"),
    # From files, the environment and the network to values, and back.
    "reading": Room("config tables plausible layers arguments maildrop envelope positions rules.load rules.doubts log lmtp", "values settings"),
    # What only a process that stays needs: scans shared and counted, and LMTP's users.
    "resident": Room("scan_once metrics users gate sockets", "values settings story reading"),
    # The only one that knows every adapter.
    "wiring": Room("wiring", "values settings content story scanners adapters reading resident store backends"),
    # What an administrator does to mailboxes, whole trees of them.
    "admin": Room("admin.*", "values settings content story scanners adapters reading resident wiring"),
    # Other programs' filters, from text to rules.
    "converters": Room("convert.*", "values reading"),
    # Where a message or a person comes in.
    "doors": Room("__main__ client service request letterbox replay commands.*", "values settings story reading resident wiring admin converters"),
    # Quarantine is a store of its own: it could serve another program.
    "store": Room("quarantine.__init__ quarantine.store", ""),
    "backends": Room("quarantine.files quarantine.sqlite", "store"),
    "quarantine": Room("quarantine.*", "values content settings story reading wiring store backends"),
}

ALSO = {
    ("plausible", "quarantine.store"): "the kinds of reasons for which mail is held",
    ("notices", "quarantine.store"): "the kinds of reasons for which mail is held",
    ("qmailscanner", "quarantine.store"): "the kinds of reasons for which mail is held",
    ("quarantine.commands", "admin.progress"): "what all commands show that may take long",
    ("quarantine.commands", "admin.tree"): "the quarantines of a whole tree of mailboxes",
    ("commands.quota", "quota"): "shows what the adapter keeps",
    ("pipeline", "log"): "the log's type",
    ("pipeline", "quarantine.store"): "the store's type",
    ("rules.load", "rules.conditions"): "compiles what it has read, once",
    ("rules.load", "rules.fields"): "what the name of a header field may be",
    ("rules.load", "rules.logic"): "the condition of a rule without any",
    ("tables", "rules.matching"): "what is probably meant by a name that does not exist",
    ("plausible", "rules.matching"): "the same",
    ("tables", "scanners.address"): "how an address is written",
    ("rules.load", "rules.matching"): "where in a file something stands, and what compiling it may cost",
    ("actions", "maildir"): "its error for a folder that cannot be used: the inbox is the answer",
    ("actions", "quarantine.store"): "the store's type",
}
"""Single imports that the rooms do not allow, and why they are right all the same."""

PACKAGES = {
    "click": "commands.* admin.progress quarantine.commands quarantine.__main__",
    "re2": "rules.matching plausible scanners.command convert.procmail_patterns",
    "dkim": "signatures",
    "dns": "signatures",
    "flufl": "content.bounces",
    "tree_sitter": "positions",
    "tree_sitter_toml": "positions",
    "msgspec": "settings tables config layers rules.load replay commands.*",
    "sievelib": "convert.sieve*",
    "clamd": "scanners.*",
    "aiospamc": "scanners.*",
    "oletools": "content.macros",
}
"""Which modules may import which package from outside. Every other package waits for somebody to name its place."""

NOT_BEFORE_NEEDED = "click tree_sitter dkim flufl dns argparse sqlite3 quarantine.sqlite"
"""Modules that most deliveries do without. Their import costs more processor time than the rest of a delivery."""


def sources() -> dict[str, ast.Module]:
    """Every module of the project: "deliver.values", "deliver.rules.__init__"."""
    found = {}
    for package in ("deliver", "quarantine"):
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            found[".".join(path.relative_to(CHECKOUT).with_suffix("").parts)] = ast.parse(path.read_bytes(), str(path))
    return found


SOURCES = sources()


def imports(module: str) -> Iterator[str]:
    """What ``module`` imports, at its top or late: a module of the project, or any other by its first name."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            # `from deliver import quota` imports a module, `from deliver import __version__` a name in one.
            submodules = [name for alias in node.names if is_module(name := f"{base}.{alias.name}")]
            names = submodules if len(submodules) == len(node.names) else [base, *submodules]
        else:
            continue
        for name in names:
            first = name.partition(".")[0]
            package = f"{name}.__init__" in SOURCES
            yield first if first not in ("deliver", "quarantine") else f"{name}.__init__" if package else name


def is_module(name: str) -> bool:
    return name in SOURCES or f"{name}.__init__" in SOURCES


def short(module: str) -> str:
    """As the tables above write it."""
    return module.removeprefix("deliver.")


def matches(module: str, patterns: str) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns.split())


def room(module: str) -> str:
    """The first room that has the module."""
    for name, (patterns, _) in ROOMS.items():
        if matches(module, patterns):
            return name
    pytest.fail(f"In which room is {module}? Add it to ROOMS.")


def stranger(module: str, imported: str) -> str:
    """Why ``module`` may not import ``imported``, or "" where it may."""
    importer, name = short(module), short(imported)
    if imported.startswith(("deliver.", "quarantine.")):
        mine, theirs = room(importer), room(name)
        if theirs == mine or theirs in ROOMS[mine].may_import.split() or (importer, name) in ALSO:
            return ""
        return f"{importer} ({mine}) imports {name} ({theirs})"
    if imported in sys.stdlib_module_names or matches(importer, PACKAGES.get(imported, "")):
        return ""
    return f"{importer} imports {imported}: PACKAGES has another place for it, or none"


def test_modules_import_what_their_room_may() -> None:
    strangers = {why for module in SOURCES for imported in imports(module) if (why := stranger(module, imported))}
    assert not strangers, "\n".join(sorted(strangers))


def test_exceptions_are_needed() -> None:
    needed = {(short(module), short(imported)) for module in SOURCES for imported in imports(module)}
    assert set(ALSO) <= needed


def test_delivery_loads_little() -> None:
    # Isolated, and from this checkout whatever is installed.
    script = (
        "import importlib.util, sys; sys.path.insert(0, sys.argv[1])\n"
        "for name in ('deliver.__main__', 'deliver.wiring', 'deliver.pipeline'): importlib.import_module(name)\n"
        "print(*sorted(set(sys.argv[2:]) & set(sys.modules)))"
    )
    words = [sys.executable, "-I", "-c", script, CHECKOUT, *NOT_BEFORE_NEEDED.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")
