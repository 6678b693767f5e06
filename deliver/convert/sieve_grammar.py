"""What sievelib 1.6 does not know of Sieve, declared in its own way: tests and actions with all of their arguments."""

from typing import Any, ClassVar

from sievelib import commands

EXTENSIONS = (
    "body copy date duplicate editheader encoded-character enotify envelope environment ereject fileinto imap4flags "
    "index mailbox regex reject relational spamtest spamtestplus subaddress vacation vacation-seconds variables "
    "virustest"
).split()
"""All that is asked for in a script's name, so that a missing `require` hides nothing."""

_Argument = dict[str, Any]


def _tag(name: str, *values: str, **more: Any) -> _Argument:
    return {"name": name, "type": ["tag"], "values": list(values), "required": False, **more}


def _strings(name: str) -> _Argument:
    return {"name": name, "type": ["string", "stringlist"], "required": True}


def _string(name: str) -> _Argument:
    return {"name": name, "type": ["string"], "required": True}


# RFC 5231 has i;ascii-numeric; RFC 5233 :user and :detail; RFC 5260 section 6 :index and :last.
_COMPARATOR = _tag("comparator", ":comparator", extra_arg={"type": "string"})
_MATCH = _tag(
    "match-type",
    ":is",
    ":contains",
    ":matches",
    ":regex",
    ":count",
    ":value",
    extra_arg={"type": "string", "valid_for": [":count", ":value"]},
)
_PART = _tag("address-part", ":all", ":localpart", ":domain", ":user", ":detail")
_INDEX = _tag("index", ":index", extra_arg={"type": "number"})
_LAST = _tag("last", ":last")


class HeaderCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5228 section 5.7."""

    args_definition: ClassVar[list[_Argument]] = [
        _COMPARATOR,
        _MATCH,
        _INDEX,
        _LAST,
        _strings("header-names"),
        _strings("key-list"),
    ]


class AddressCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5228 section 5.1."""

    args_definition: ClassVar[list[_Argument]] = [
        _COMPARATOR,
        _PART,
        _MATCH,
        _INDEX,
        _LAST,
        _strings("header-names"),
        _strings("key-list"),
    ]


class EnvelopeCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5228 section 5.4."""

    args_definition: ClassVar[list[_Argument]] = [
        _COMPARATOR,
        _PART,
        _MATCH,
        _strings("header-names"),
        _strings("key-list"),
    ]


class BodyCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5173."""

    args_definition: ClassVar[list[_Argument]] = [
        _COMPARATOR,
        _MATCH,
        _tag(
            "body-transform",
            ":raw",
            ":content",
            ":text",
            extra_arg={"type": "stringlist", "valid_for": [":content"]},
        ),
        _strings("key-list"),
    ]


_ZONE = _tag("zone", ":zone", ":originalzone", extra_arg={"type": "string", "valid_for": [":zone"]})


class DateCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5260 section 4."""

    args_definition: ClassVar[list[_Argument]] = [
        _ZONE,
        _COMPARATOR,
        _MATCH,
        _INDEX,
        _LAST,
        _string("header-name"),
        _string("date-part"),
        _strings("key-list"),
    ]


class CurrentdateCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5260 section 5."""

    args_definition: ClassVar[list[_Argument]] = [
        _ZONE,
        _COMPARATOR,
        _MATCH,
        _string("date-part"),
        _strings("key-list"),
    ]


class DuplicateCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 7352."""

    args_definition: ClassVar[list[_Argument]] = [
        _tag("handle", ":handle", extra_arg={"type": "string"}),
        _tag("header", ":header", extra_arg={"type": "string"}),
        _tag("uniqueid", ":uniqueid", extra_arg={"type": "string"}),
        _tag("seconds", ":seconds", extra_arg={"type": "number"}),
        _LAST,
        _string("nothing"),  # see sieve_source
    ]


class SpamtestCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5235 section 2."""

    args_definition: ClassVar[list[_Argument]] = [_tag("percent", ":percent"), _COMPARATOR, _MATCH, _string("value")]


class VirustestCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5235 section 3."""

    args_definition: ClassVar[list[_Argument]] = [_COMPARATOR, _MATCH, _string("value")]


class StringCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5229 section 5."""

    args_definition: ClassVar[list[_Argument]] = [_COMPARATOR, _MATCH, _strings("source"), _strings("key-list")]


class IhaveCommand(commands.TestCommand):  # type: ignore[misc]
    """RFC 5463 section 4."""

    args_definition: ClassVar[list[_Argument]] = [_strings("capabilities")]


class ErejectCommand(commands.ActionCommand):  # type: ignore[misc]
    """RFC 5429 section 2.1."""

    args_definition: ClassVar[list[_Argument]] = [_string("text")]


class AddheaderCommand(commands.ActionCommand):  # type: ignore[misc]
    """RFC 5293 section 4."""

    args_definition: ClassVar[list[_Argument]] = [_LAST, _string("name"), _string("value")]


class DeleteheaderCommand(commands.ActionCommand):  # type: ignore[misc]
    """RFC 5293 section 5."""

    args_definition: ClassVar[list[_Argument]] = [
        _INDEX,
        _LAST,
        _COMPARATOR,
        _MATCH,
        _string("name"),
        {"name": "value", "type": ["string", "stringlist"], "required": False},
    ]


commands.add_commands(
    [
        HeaderCommand,
        AddressCommand,
        EnvelopeCommand,
        BodyCommand,
        DateCommand,
        CurrentdateCommand,
        DuplicateCommand,
        SpamtestCommand,
        VirustestCommand,
        StringCommand,
        IhaveCommand,
        ErejectCommand,
        AddheaderCommand,
        DeleteheaderCommand,
    ]
)
