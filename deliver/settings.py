"""The settings: one class for each table of a configuration, one field for each key, spelled with hyphens in TOML."""

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from deliver.rules.model import Rule

NOTICE_WORDS = tuple("what event reason from to subject date id virus size message-id".split())
"""What a template of [notices] may have in braces."""


class Size(int):
    """Bytes, written "256 KiB"."""


class Span(float):
    """Seconds, written "5 min"."""


class Folder(str):
    """A folder's name as a mail client shows it."""


class Address(str):
    """Where a scanner listens, or the service: unix:/path or tcp:host:port."""


class QuotaLimit(str):
    """A limit as the site writes it, "100 MB, 10000 messages"; "" for none."""


class Table(msgspec.Struct, frozen=True, rename="kebab"):
    """What every table is: keys with hyphens for fields with underscores."""


class VirusScanner(Table, frozen=True):
    """What every scanner for viruses has."""

    max_size: Size = Size(25 * 1024 * 1024)
    timeout: Span = Span(150)
    on_virus: Literal["quarantine", "discard", "bounce", "mark"] = "quarantine"
    on_failure: Literal["defer", "deliver", "quarantine"] = "defer"
    defer_for: Span = Span(2 * 86400)
    on_skipped: Literal["deliver", "quarantine", "bounce"] = "deliver"


class SpamScanner(Table, frozen=True):
    """What every scanner for spam has."""

    max_size: Size = Size(256 * 1024)
    timeout: Span = Span(120)
    user: str = ""
    on_failure: Literal["defer", "deliver", "quarantine"] = "deliver"
    defer_for: Span = Span(2 * 86400)
    on_skipped: Literal["deliver", "quarantine", "bounce"] = "deliver"


class Clamd(VirusScanner, frozen=True):
    """The table [clamd]."""

    address: Any = ("unix:/run/clamav/clamd.ctl",)


class Spamd(SpamScanner, frozen=True):
    """The table [spamd]."""

    address: Any = ("tcp:127.0.0.1:783",)


class Command(VirusScanner, frozen=True):
    """A [[scanner]] of kind "command": a program."""

    kind: Literal["command"] = "command"
    name: str = ""
    preset: Literal["", "clamdscan", "clamscan", "f-prot", "savscan", "uvscan"] = ""
    command: tuple[str, ...] = ()
    codes: dict[str, Literal["clean", "virus", "skipped", "failed"]] = {}
    pattern: str = ""


class Icap(VirusScanner, frozen=True):
    """A [[scanner]] of kind "icap"."""

    kind: Literal["icap"] = "icap"
    name: str = ""
    address: Any = ("tcp:127.0.0.1:1344",)
    service: str = "avscan"
    method: Literal["RESPMOD", "REQMOD"] = "RESPMOD"
    preview: Size = Size(1024)
    max_size: Size = Size(5 * 1024 * 1024)


class Rspamd(SpamScanner, frozen=True):
    """A [[scanner]] of kind "rspamd"."""

    kind: Literal["rspamd"] = "rspamd"
    name: str = ""
    address: Any = ("tcp:127.0.0.1:11333",)
    soft_reject: Literal["failed", "clean"] = "failed"
    max_size: Size = Size(10 * 1024 * 1024)


class Spam(Table, frozen=True):
    """The table [spam]."""

    required_score: Literal["scanner"] | float = "scanner"
    folder: Folder = Folder("Spam")
    delete_above: float = 12.0
    mark_read: bool = False
    trust_header: str = ""


class Quota(Table, frozen=True):
    """The table [quota]."""

    limit: QuotaLimit = QuotaLimit("")
    command: tuple[str, ...] = ()
    warn_at: Annotated[int, msgspec.Meta(ge=1, le=100)] = 90
    warning: str = (
        "Your mailbox is nearly full.\n\nPlease delete messages that you no longer need, and empty the trash."
    )
    over: Literal["bounce", "defer"] = "bounce"
    spam_over: Literal["quarantine", "discard", "defer"] = "quarantine"


class Quarantine(Table, frozen=True):
    """The table [quarantine]."""

    directory: str = "{maildir}/deliver/quarantine"
    keep: Span = Span(30 * 86400)
    keep_by: dict[str, Span] = {}

    def keep_for(self, kind: str, recipient: str) -> float:
        """Seconds for which mail held for a reason of that kind (quarantine.store.KINDS) stays: the most specific key.

        "virus a@example.org" is before "virus example.org", these are before the address, the domain and the kind.
        """
        whose = (recipient.lower(), recipient.rpartition("@")[2].lower())
        for key in (*(f"{kind} {one}" for one in whose), *whose, kind):
            if key in self.keep_by:
                return self.keep_by[key]
        return self.keep


Measure = Literal["quarantine", "bounce", "discard", "mark", "ignore"]
"""What may be done with a message that [attachments] objects to."""


class Attachments(Table, frozen=True):
    """The table [attachments]. ``forbidden`` are globs of file names, ``types`` globs of media types as detected."""

    forbidden: tuple[str, ...] = ("*.exe", "*.scr", "*.pif")
    tricks: tuple[Literal["double-extension", "clsid", "too-long", "disguised"], ...] = (
        "double-extension",
        "clsid",
        "too-long",
        "disguised",
    )
    types: tuple[str, ...] = ()
    on_forbidden: Measure = "quarantine"
    on_encrypted: Measure = "mark"
    on_macro: Measure = "mark"
    on_ambiguous: Measure = "quarantine"
    on_too_big: Measure = "mark"

    def measure(self, kind: str) -> str:
        """What the setting for this kind of objection says."""
        return str(getattr(self, f"on_{kind.replace('-', '_')}"))


class Forward(Table, frozen=True):
    """The table [forward]."""

    sender: Literal["keep"] | tuple[str, ...] = "keep"


class Authentication(Table, frozen=True):
    """The table [authentication]."""

    name: str = "deliver.{hostname}"
    trusted: tuple[str, ...] = ()

    def ours(self) -> str:
        """The authserv-id (RFC 8601 section 2.5) under which we write."""
        return self.name.replace("{hostname}", os.uname().nodename)


class Dkim(Table, frozen=True):
    """The table [dkim]: what verifying a message's signatures may cost."""

    timeout: Span = Span(10)
    max_size: Size = Size(10 * 1024 * 1024)


class Service(Table, frozen=True):
    """The table [service]."""

    socket: str = "/run/deliver/deliver.sock"
    lmtp: tuple[Address, ...] = (Address("unix:/run/deliver/lmtp.sock"),)
    metrics: tuple[Address, ...] = ()
    messages: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50
    bytes: Size = Size(1024 * 1024 * 1024)
    connections: Annotated[int, msgspec.Meta(ge=1, le=10000)] = 200
    idle: Span = Span(300)


USER_PLACEHOLDERS = ("{user}", "{domain}", "{recipient}")
"""What the texts of [users] may hold: the address asked for and its parts, without an extension."""


class Users(Table, frozen=True):
    """The table [users]."""

    maildir: str = ""
    command: tuple[str, ...] = ()
    passwd: bool = False


class Maildrop(Table, frozen=True):
    """The table [maildrop]: for a host whose qmailadmin calls us by that name."""

    replaces: tuple[str, ...] = ()
    program: str = ""


class Expire(Table, frozen=True):
    """The table [expire], for `deliver expire`: how long mail stays; no time at all is for ever.

    ``apart`` are patterns of directories, those that hold a Maildir, which are left alone.
    """

    read: Span = Span(0)
    unread: Span = Span(365 * 86400)
    sent: Span = Span(180 * 86400)
    trash: Span = Span(14 * 86400)
    spam: Span = Span(14 * 86400)
    apart: tuple[str, ...] = msgspec.field(default=(), name="except")


class Learn(Table, frozen=True):
    """The table [learn], for `deliver learn`: what is told to spamd, and how fast.

    ``ignore`` are patterns of folders that say nothing; ``apart`` patterns of directories that hold a Maildir.
    """

    after: Span = Span(86400)
    most: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 500
    pause: Span = Span(0.1)
    ignore: tuple[str, ...] = (
        *("Trash*", "Deleted*", "Drafts*", "Sent*"),
        *("Papierkorb*", "Gel*scht*", "Corbeille*", "Papelera*", "Cestino*", "Prullenbak*"),
    )
    apart: tuple[str, ...] = msgspec.field(default=(), name="except")


class Notices(Table, frozen=True):
    """The table [notices]: who hears of mail that did not arrive, and in which words."""

    to: tuple[Literal["admin", "recipient", "sender"], ...] = ()
    about: tuple[Literal["virus", "policy", "unscanned", "spam", "quota", "rule"], ...] = ("virus", "policy")
    admin: str = ""
    sender: str = msgspec.field(default="postmaster@{domain}", name="from")
    every: Span = Span(3600)
    subject: str = "Message {what}: {subject}"
    text: str = ""
    html: str = ""


class Log(Table, frozen=True):
    """The table [log]. The last two are qmail-scanner's own logs, for programs that read them."""

    to: str = "syslog"
    subject: bool = False
    quarantine_log: str = ""
    mailstats: str = ""


class User(Table, frozen=True):
    """The table [user]: what a user's own file may set beside rules, and the programs that its rules may name."""

    may_set: tuple[
        Literal[
            "spam.required-score",
            "spam.folder",
            "spam.mark-read",
            "spam.delete-above",
            "attachments.on-forbidden",
            "attachments.on-encrypted",
            "attachments.on-macro",
            "attachments.on-ambiguous",
            "attachments.on-too-big",
        ],
        ...,
    ] = ("spam.required-score",)
    may_run: tuple[str, ...] = ()


class Programs(dict[str, tuple[str, ...]]):
    """The table [programs]: argument lists by the names that rules say."""


class Lists(dict[str, str]):
    """The table [lists]: files of addresses by the names that rules say; a bare file name lies beside each Maildir."""


class Config(Table, frozen=True):
    """A whole configuration. ``clamd`` and ``spamd`` are None where the table is missing: no table, no function."""

    maildir: str = "Maildir"
    user_rules: str = "mailfilter.toml"
    domain_rules: str = ""
    deadline: Span = Span(300)
    clamd: Clamd | None = None
    spamd: Spamd | None = None
    spam: Spam = Spam()
    quota: Quota = Quota()
    quarantine: Quarantine = Quarantine()
    attachments: Attachments | None = None
    forward: Forward = Forward()
    authentication: Authentication = Authentication()
    service: Service = Service()
    users: Users | None = None
    maildrop: Maildrop = Maildrop()
    expire: Expire | None = None
    learn: Learn = Learn()
    notices: Notices = Notices()
    log: Log = Log()
    user: User = User()
    programs: Programs = Programs()
    lists: Lists = Lists()
    scanners: tuple[Command | Icap | Rspamd, ...] = ()
    dkim: Dkim = Dkim()
    rules: tuple[Rule, ...] = ()


TOP = ("maildir", "user-rules", "domain-rules", "deadline")
"""The keys that stand above the first table."""

SETTABLE = {
    "spam": ("required-score", "folder", "mark-read", "delete-above"),
    "attachments": ("on-forbidden", "on-encrypted", "on-macro", "on-ambiguous", "on-too-big"),
}
"""The keys, by their tables, that another file than the site's can ever set."""

TABLES: dict[str, type[Table]] = {
    "dkim": Dkim,
    "clamd": Clamd,
    "spamd": Spamd,
    "spam": Spam,
    "quota": Quota,
    "quarantine": Quarantine,
    "attachments": Attachments,
    "forward": Forward,
    "authentication": Authentication,
    "service": Service,
    "users": Users,
    "maildrop": Maildrop,
    "expire": Expire,
    "learn": Learn,
    "notices": Notices,
    "log": Log,
    "user": User,
}
"""The tables by their names, but for those whose keys the site makes up."""

KINDS_OF_SCANNER: dict[str, type[Command | Icap | Rspamd]] = {"command": Command, "icap": Icap, "rspamd": Rspamd}
"""The kinds of [[scanner]]."""


class Personal(NamedTuple):
    """What a user's own file says: rules, settings that the site lets users have, and what was wrong.

    ``error`` is a line for the X-Filter-Error header, "" where the file is fine or missing. A table that it does not
    have is None.
    """

    rules: tuple[Rule, ...] = ()
    spam: Spam | None = None
    error: str = ""
    attachments: Attachments | None = None


def settings_of(config: Config, scanner: str) -> VirusScanner | SpamScanner | None:
    """The settings of the scanner of this name; None for a name that is none, such as a trusted header's."""
    named = {"clamd": config.clamd, "spamd": config.spamd, **{one.name: one for one in config.scanners}}
    return named.get(scanner)


def one_by_one(config: Config) -> Iterator[tuple[str, str, Config]]:
    """Each scanner, and of a pool each member: name, address ("" for a program), and the settings with it alone."""
    named: list[tuple[str, str, Any]] = [("clamd", "clamd", config.clamd), ("spamd", "spamd", config.spamd)]
    named += [(one.name, "scanners", one) for one in config.scanners]
    nobody = msgspec.structs.replace(config, clamd=None, spamd=None, scanners=())
    for name, key, one in named:
        for address in getattr(one, "address", ("",)) if one else ():
            alone = msgspec.structs.replace(one, address=(address,)) if address else one
            changed = {key: (alone,) if key == "scanners" else alone}
            yield name, address, msgspec.structs.replace(nobody, **changed)
