"""qmail-scanner's own policy: quarantine-events.txt, quarantine-attachments.txt in older versions.

A line is VALUE<TAB>TYPE<TAB>TEXT. With SIZE=n as the type the value is a file's name, or its extension with the dot in
front, for files of n bytes, -1 for any; with Policy-NAME: or Virus-NAME: it is a regular expression for the header
NAME, or for what qmail-scanner found itself, which it gives the form of a header.
"""

import re

from deliver.convert.accepted import accepted
from deliver.convert.model import Conversion, Converted, Reported, Wrong

_SIZE = re.compile(r"(?i)size=(-?[0-9]+)")
_HEADER = re.compile(r"(?i)(policy|virus)-([!-9;-~]+):?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")

# What rules have a condition of their own for; it takes addresses, not the whole field.
_ADDRESSES = {"from": "from", "to": "to", "cc": "cc", "reply-to": "reply-to"}
_PLAIN = {"subject": "subject", "message-id": "message-id", "list-id": "list-id"}
_ENVELOPE = {"mailfrom": "sender", "rcptto": "recipient"}
_TRICKS = {"filelengthtoolong": "too-long", "filedoublebarreled": "double-extension", "fileclsid": "clsid"}
_UNKNOWN = {
    "remoteipaddr": "a delivery is not told the client's address; the server's own Received line may have it,"
    " for `header`",
    "issensitiveandnocrypto": "how a message was encrypted on its way is not known here",
    "cryptodetails": "how a message was encrypted on its way is not known here",
}


def convert(text: str) -> Conversion:
    """Rules, and [attachments] for what belongs there. Raises Wrong where no line is one of qmail-scanner's."""
    reading = _Reading()
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            reading.comments.append(line.strip()[1:].strip())
        elif line.strip():
            reading.take(number, line.rstrip("\r\n"))
    return reading.done()


class _Reading:
    """What has been read so far."""

    def __init__(self) -> None:
        self.comments: list[str] = []
        self._rules: list[Converted] = []
        self._reported: list[Reported] = []
        self._forbidden: dict[str, str] = {}
        self._tricks: list[str] = []
        self._encrypted = False
        self._strange: list[int] = []

    def take(self, number: int, line: str) -> None:
        """One line that is neither blank nor a comment."""
        fields = [field.strip() for field in line.split("\t") if field.strip()]
        if len(fields) < 2 or not (_SIZE.fullmatch(fields[1]) or _HEADER.fullmatch(fields[1])):
            self._strange.append(number)
            self._report(number, line, "expected a value, a type and a text with TABs between, as qmail-scanner does")
            return
        value, kind = fields[:2]
        said = _CONTROL.sub(" ", " ".join(fields[2:])) or "forbidden by policy"
        if size := _SIZE.fullmatch(kind):
            if int(size[1]) >= 0:
                words = "no condition knows the size of one file; without it every file of this name would be held"
                self._report(number, line, words)
            else:
                self._forbidden[_pattern(value)] = said
        elif header := _HEADER.fullmatch(kind):
            self._take_header(number, line, header[2].rstrip(":"), value, said)

    def done(self) -> Conversion:
        """All of it. Raises Wrong."""
        if self._strange and not (self._rules or self._forbidden or self._tricks or self._encrypted):
            raise Wrong(self._strange[0], "no line is VALUE<TAB>TYPE<TAB>TEXT, as in quarantine-events.txt")
        settings: dict[str, dict[str, object]] = {}
        if self._forbidden or self._tricks or self._encrypted:
            table: dict[str, object] = {"forbidden": list(self._forbidden), "tricks": self._tricks}
            settings["attachments"] = {**table, "on-encrypted": "quarantine" if self._encrypted else "ignore"}
        texts = [f"{pattern} was forbidden with the words: {said}" for pattern, said in self._forbidden.items()]
        comments = (*self.comments, *texts)
        return Conversion(tuple(self._rules), tuple(self._reported), settings, comments)

    def _take_header(self, number: int, line: str, name: str, value: str, said: str) -> None:
        low = name.lower()
        if low in _TRICKS:
            self._tricks.append(_TRICKS[low])
        elif low == "zippasswordprotected":
            self._encrypted = True
        elif low in _UNKNOWN:
            self._report(number, line, _UNKNOWN[low])
        else:
            pattern = {"regex": value}
            key = _ENVELOPE.get(low) or _ADDRESSES.get(low) or _PLAIN.get(low)
            when: dict[str, object] = {key: pattern} if key else {"header": {name: pattern}}
            table: dict[str, object] = {"name": said[:100], "sees": "all", "quarantine": said, "when": when}
            made = accepted(number, line, table, tuple(self.comments))
            self.comments = []
            if isinstance(made, Reported):
                self._reported.append(made)
                return
            self._rules.append(made)
            if low in _ADDRESSES:
                words = f"`{key}` looks at addresses alone, not at the names beside them"
                self._reported.append(Reported(number, line, words, warning=True))

    def _report(self, number: int, line: str, words: str) -> None:
        self._reported.append(Reported(number, line, words))


def _pattern(value: str) -> str:
    """Every name that ends in ".pif", or one whole name. Neither has wildcards in qmail-scanner."""
    plain = re.sub(r"([*?\\])", r"\\\1", value)
    return f"*{plain}" if value.startswith(".") else plain
