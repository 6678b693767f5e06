"""Whose rules and settings apply to one mailbox: the site's, then its domain's, then its owner's."""

import os
import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from deliver.settings import Attachments, Config, Personal, Spam

Reader = Callable[[str, Config, int, bool], Personal]
"""See config.personal."""

# What can be a domain, and no path: a recipient may be anything that an MTA lets pass.
_DOMAIN = re.compile(r"[\w-]+(?:\.[\w-]+)*")


class Layer(NamedTuple):
    """One file and what it says. ``whose`` is "domain" or "owner"; the others are the settings with this file's."""

    whose: str
    path: str
    says: Personal
    spam: Spam
    attachments: Attachments | None = None


def layers(config: Config, recipient: str, maildir: str, read: Reader, uid: int) -> list[Layer]:
    """The files below the site's that apply, from the outermost to the owner's, missing ones as well.

    ``uid`` is the user who may have written them, beside root. Raises Deferred.
    """
    files = [("domain", domain_file(config, recipient)), ("owner", owners_file(config, maildir))]
    return stacked(config, files, read, uid)


def stacked(config: Config, files: list[tuple[str, str]], read: Reader, uid: int = 0) -> list[Layer]:
    """What files say, given as whose they are and their path, "" for none.

    Each sets what it may for those behind it. What is wrong with one costs that one alone. Raises what ``read`` raises.
    """
    found: list[Layer] = []
    for whose, path in files:
        if path:
            says = read(path, config, uid, whose == "domain")
            attachments = says.attachments or config.attachments
            config = msgspec.structs.replace(config, spam=says.spam or config.spam, attachments=attachments)
            found.append(Layer(whose, path, says, config.spam, attachments))
    return found


def together(config: Config, found: list[Layer]) -> Personal:
    """All layers as one: rules in their order, the last word on each setting, every error."""
    errors = [f"{os.path.basename(one.path)}: {one.says.error}; {_LEFT[one.whose]}" for one in found if one.says.error]
    rules = tuple(rule for one in found for rule in one.says.rules)
    last = found[-1] if found else config
    return Personal(rules, last.spam, "; ".join(errors), last.attachments)


_LEFT = {"domain": "the domain's rules were left out", "owner": "the site's rules alone were applied"}


def domain_file(config: Config, recipient: str) -> str:
    """The path of the file for a recipient's domain, "" where there is none: no template, or a domain that is none."""
    domain = recipient.rpartition("@")[2].lower() if "@" in recipient else ""
    if not config.domain_rules or not _DOMAIN.fullmatch(domain):
        return ""
    return config.domain_rules.replace("{domain}", domain)


def owners_file(config: Config, maildir: str) -> str:
    """The path of the owner's own file, beside the Maildir; "" where the site has none."""
    return os.path.join(os.path.dirname(os.path.normpath(maildir)), config.user_rules) if config.user_rules else ""
