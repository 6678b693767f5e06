"""An LMTP client (RFC 2033) that reads a reply for each recipient; smtplib.LMTP reads one for all."""

import socket
from collections.abc import Sequence
from typing import Self

PATIENCE = 60.0  # seconds for each reply


class Client:
    """One conversation with "unix:/path" or "tcp:host:port", or over a connected socket."""

    def __init__(self, door: str | socket.socket) -> None:
        if isinstance(door, socket.socket):
            self.connection = door
        elif door.startswith("unix:"):
            self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.connection.settimeout(PATIENCE)
            self.connection.connect(door.removeprefix("unix:"))
        else:
            host, _, port = door.removeprefix("tcp:").rpartition(":")
            self.connection = socket.create_connection((host.strip("[]"), int(port)))
        self.connection.settimeout(PATIENCE)
        self._buffer = b""
        self.greeting = self.reply()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def reply(self) -> str:
        """The next reply, its lines joined; "" at the end of the connection."""
        lines = []
        while True:
            while b"\r\n" not in self._buffer:
                try:
                    block = self.connection.recv(65536)
                except ConnectionResetError:
                    block = b""
                if not block:
                    return ""
                self._buffer += block
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            lines.append(line.decode())
            if line[3:4] != b"-":
                return "\n".join(lines)

    def say(self, *commands: str) -> list[str]:
        """Send commands in one piece; the reply to each."""
        self.connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
        return [self.reply() for _ in commands]

    def begin(self, sender: str, recipients: Sequence[str], more: str = "") -> list[str]:
        """MAIL, RCPT and DATA, pipelined; the replies to RCPT. LHLO must have been said."""
        rcpt = [f"RCPT TO:<{recipient}>" for recipient in recipients]
        _, *said, data = self.say(f"MAIL FROM:<{sender}>{more}", *rcpt, "DATA")
        assert data[:3] == "354" or not any(one.startswith("250") for one in said), data
        return said

    def send(self, sender: str, recipients: Sequence[str], content: bytes, more: str = "") -> list[str]:
        """One message, with LF line ends; each recipient's reply, in order: to RCPT where it was refused there."""
        said = self.begin(sender, recipients, more)
        if any(one.startswith("250") for one in said):
            self.connection.sendall(on_the_wire(content))
        return [self.reply() if one.startswith("250") else one for one in said]


def on_the_wire(content: bytes) -> bytes:
    """With CRLF, dots stuffed, and the end (RFC 5321 section 4.5.2). A last line without its LF gets one."""
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"
