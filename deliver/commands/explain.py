"""What applies to one mailbox, and where each value comes from: `deliver check --explain-layers`."""

import json
import math
import os
import tomllib
from typing import Any, NamedTuple

import msgspec

from deliver import config, layers
from deliver.errors import Deferred
from deliver.positions import Path, Positions
from deliver.rules.model import Rule
from deliver.settings import SETTABLE, Config, Span, Table
from deliver.units import span_words


class _File(NamedTuple):
    """One file of the configuration. ``state`` is "" where it applies, else why it does not."""

    whose: str
    path: str
    state: str
    rules: tuple[Rule, ...]
    document: dict[str, Any]
    positions: Positions | None

    def line(self, path: Path) -> int:
        """Where a key stands."""
        return self.positions.line(path) if self.positions else 1


def explained(site: Config, site_path: str, maildir: str, recipient: str) -> dict[str, Any]:
    """Files, rules in the order in which they are asked, and settings, each with whose it is. Raises Deferred."""
    try:
        uid = os.stat(maildir).st_uid
    except OSError as error:
        raise Deferred(f"{maildir}: {error.strerror}") from error
    found = layers.layers(site, recipient, os.path.abspath(maildir), config.personal, uid)
    files = [_file("site", site_path, "", site.rules)]
    for layer in found:
        missing = "" if os.path.lexists(layer.path) else "not there"
        wrong = f"not used: {layer.says.error}" if layer.says.error else ""
        files.append(_file(layer.whose, layer.path, missing or wrong, layer.says.rules))
    return {
        "mailbox": os.path.abspath(maildir),
        "recipient": recipient,
        "files": [
            {"whose": one.whose, "file": one.path, "rules": len(one.rules), "state": one.state or "used"}
            for one in files
        ],
        "rules": _rules(files),
        "settings": _settings(found[-1] if found else site, site, files),
    }


def in_words(said: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [f"{said['mailbox']}, for mail to {said['recipient'] or 'nobody in particular'}", "", "Files:"]
    for one in said["files"]:
        count = f"{one['rules']} rule" + ("" if one["rules"] == 1 else "s")
        state = count if one["state"] == "used" else one["state"]
        lines.append(f"  {one['whose']:8}{one['file']}: {state}")
    lines += ["", "Rules, in the order in which they are asked:"]
    lines += [f"  {one['rule']}  ({one['whose']}, {one['file']}:{one['line']})" for one in said["rules"]] or ["  none"]
    lines += ["", "Settings:"]
    for one in said["settings"]:
        key = f"[{one['table']}] {one['key']}" if one["table"] else one["key"]
        source = f"{one['whose']}, {one['file']}:{one['line']}" if "file" in one else one["whose"]
        lines.append(f"  {key} = {json.dumps(one['value'], default=str)}  ({source})")
    return "\n".join(lines)


def _file(whose: str, path: str, state: str, rules: tuple[Rule, ...]) -> _File:
    if state:
        return _File(whose, path, state, rules, {}, None)
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise Deferred(f"{path}: {error.strerror}") from error
    return _File(whose, path, "", rules, tomllib.loads(text.decode()), Positions(text))


def _rules(files: list[_File]) -> list[dict[str, Any]]:
    site, *others = files
    order = [(site, rule) for rule in site.rules if not rule.after]
    order += [(one, rule) for one in others for rule in one.rules]
    order += [(site, rule) for rule in site.rules if rule.after]
    return [
        {"rule": rule.title, "whose": one.whose, "file": one.path, "line": one.line(("rule", rule.number - 1))}
        for one, rule in order
    ]


def _settings(last: layers.Layer | Config, site: Config, files: list[_File]) -> list[dict[str, Any]]:
    said = []
    for field in msgspec.structs.fields(Config):
        value = getattr(last if field.name in SETTABLE else site, field.name)
        if isinstance(value, Table):
            said += [
                _setting(files, field.encode_name, inner.encode_name, getattr(value, inner.name))
                for inner in msgspec.structs.fields(type(value))
            ]
        elif field.name != "rules" and value is not None:
            said.append(_setting(files, "", field.encode_name if field.name != "scanners" else "scanner", value))
    return said


def _setting(files: list[_File], table: str, key: str, value: object) -> dict[str, Any]:
    """The last file that sets it, in its own words; else the default in ours."""
    path: Path = (table, key) if table else (key,)
    for one in reversed(files):
        there = one.document.get(table, {}) if table else one.document
        if isinstance(there, dict) and key in there:
            found = {"whose": one.whose, "file": one.path, "line": one.line(path)}
            own = there[key]
            return {"table": table, "key": key, "value": "inf" if own == math.inf else own, **found}  # JSON has none
    if isinstance(value, Span):
        value = span_words(value)
    return {"table": table, "key": key, "value": value, "whose": "default"}
