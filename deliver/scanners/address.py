"""Where a daemon listens: "unix:/path", "tcp:host:port" or "tcp:[IPv6]:port"."""

import contextlib
import re
import socket
from typing import NamedTuple

_PATH_LIMIT = 107  # bytes: sun_path holds 108 with its NUL (unix(7))
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")
_PORT = re.compile(r"[0-9]{1,5}")
_PORT_LIMIT = 65535


class UnixAddress(NamedTuple):
    """A UNIX stream socket; ``path`` is absolute and at most 107 bytes long."""

    path: str

    def __str__(self) -> str:
        """As it is written in the configuration."""
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    """``host`` is a name, an IPv4 or an IPv6 address (without brackets), ``port`` 1 to 65535."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is written in the configuration."""
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse(text: str) -> Address:
    """Read an address; ValueError says what was expected."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        return _unix(text, rest)
    if scheme == "tcp":
        return _tcp(text, rest)
    raise ValueError(f'"{text}" is not an address: write "unix:/path/of/socket" or "tcp:host:port"')


def meant(text: str) -> str:
    """The address that is probably meant by one that is none, "" where that cannot be told."""
    scheme, colon, rest = text.strip().partition(":")
    plain = scheme.lower() + colon + rest.removeprefix("//")
    for guess in (plain, f"unix:{plain}", f"tcp:{plain}"):
        with contextlib.suppress(ValueError):
            return str(parse(guess))
    return ""


def _unix(text: str, path: str) -> UnixAddress:
    if not path.strip("/") or not path.startswith("/") or "\0" in path:
        raise ValueError(f'"{text}" is not an address: behind "unix:" an absolute path is expected')
    if len(path.encode("utf-8", "surrogateescape")) > _PATH_LIMIT:
        raise ValueError(f'"{text}" is not an address: a socket\'s path has at most {_PATH_LIMIT} bytes')
    return UnixAddress(path)


def _tcp(text: str, rest: str) -> TcpAddress:
    host, colon, port = rest.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or not 1 <= int(port) <= _PORT_LIMIT:
        raise ValueError(f'"{text}" is not an address: a port from 1 to {_PORT_LIMIT} is expected at its end')
    if host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1]):
        return TcpAddress(host[1:-1], int(port))
    if _is_ipv6(host):
        raise ValueError(f'"{text}" is not an address: write an IPv6 address in brackets, "tcp:[{host}]:{port}"')
    if not _HOST.fullmatch(host):
        raise ValueError(f'"{text}" is not an address: "{host}" is neither a host name nor an IP address')
    return TcpAddress(host, int(port))


def _is_ipv6(host: str) -> bool:
    address, percent, zone = host.partition("%")  # RFC 4007 section 11: fe80::1%eth0
    if percent and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", zone):
        return False
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):  # ValueError: a NUL or a character outside ASCII
        return False
    return True
