"""The files in archives that Python cannot read: 7z, rar, cab, lzh, iso, cpio and more, by the system's libarchive.

By ctypes instead of its program bsdtar(1), which gives up at the first file that is encrypted or damaged, or whose name
it cannot write, and does not say which are encrypted. It runs in a child (``limited``), since a large library in C
reads what strangers send; of its formats only the one that the file's first bytes name is there.
"""

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from deliver.content import rar
from deliver.content.bounds import HEAD, RATIO, UNPACKED_CAP, Bounds
from deliver.content.filetypes import worth_all
from deliver.content.unpack import Entry, unpacked_name

_SECONDS = 2.5
_MEMORY = 224 * 1024 * 1024  # bytes of addresses, some 60 MiB of them Python's and the libraries' own
_PIECE = 64 * 1024
_LIBRARY = "libarchive.so.13"  # this soname since version 3.0 (2011)
_NOT_THERE = "libarchive is not installed (Debian's package libarchive13)"
_OF_ITS_OWN = b"data"  # how libarchive calls the file in a compressed file

# archive_read_support_format_...(3), archive_read_support_filter_...(3). None here starts a program.
_READERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "application/x-7z-compressed": (("7zip",), ()),
    "application/vnd.rar": (("rar", "rar5"), ()),
    "application/vnd.ms-cab-compressed": (("cab",), ()),
    "application/x-lzh-compressed": (("lha",), ()),
    "application/x-iso9660-image": (("iso9660",), ()),
    "application/x-cpio": (("cpio",), ()),
    "application/x-archive": (("ar",), ()),
    "application/x-xar": (("xar",), ()),
    "application/x-rpm": (("cpio",), ("rpm", "gzip", "bzip2", "xz", "lzma", "zstd")),
    "application/x-compress": (("raw",), ("compress",)),
    "application/x-lzip": (("raw",), ("lzip",)),
    "application/x-lzma": (("raw",), ("lzma",)),
    "application/zstd": (("raw",), ("zstd",)),
    "application/x-lz4": (("raw",), ("lz4",)),
}

# archive.h, archive_entry.h
_OK, _EOF, _WARN, _FATAL = 0, 1, -20, -30
_DIRECTORY, _TYPE = 0o040000, 0o170000

# What the child writes: a letter, a number and so many bytes, again and again. N: a file's name (1: it is encrypted);
# C: a piece of what the file with this number holds; S: the size that all files say they have; B: a bomb; W: words, why
# something is missing, P: all is encrypted, the names, too; and Z at the end, without which it did not get there.
_FRAME = struct.Struct("<cQI")


def entries(data: bytes, kind: str, name: str, bounds: Bounds) -> Iterator[Entry]:
    """The files in an archive of one of the kinds in LIBARCHIVE_READS."""
    from deliver.content import limited

    most = bounds.bytes + bounds.files * (HEAD + 512)
    arguments = [kind, str(bounds.files), str(max(bounds.bytes, 0)), "all" if bounds.whole else "heads"]
    output, cut = limited.run("libarchive", arguments, data, min(_SECONDS, bounds.left()), most)
    names: list[tuple[str, bool]] = []
    pieces: dict[int, list[tuple[int, int]]] = {}  # not copied: it may be much
    ended = False
    at = 0
    while at + _FRAME.size <= len(output):
        letter, number, length = _FRAME.unpack_from(output, at)
        start, at = at + _FRAME.size, at + _FRAME.size + length
        if letter == b"N":
            names.append((output[start:at].decode("utf-8", "replace"), bool(number)))
        elif letter == b"C":
            pieces.setdefault(number, []).append((start, at))
        elif letter == b"S":
            bounds.sizes(number, len(data))
        elif letter == b"B":
            bounds.sizes(number, number // RATIO - 1)
        elif letter == b"P":
            names.append(("", True))
        elif letter == b"W":
            bounds.exceed(f"an archive cannot be read: {output[start:at].decode('utf-8', 'replace')[:200]}")
        elif letter == b"Z":
            ended = True
    if not ended:
        bounds.exceed(f"an archive cannot be read: {cut or 'its reader failed'}")
    elif not names:
        bounds.exceed("an archive cannot be read: nothing was found in it")
    view = memoryview(output)
    for index, (path, encrypted) in enumerate(names):
        content = b"".join([view[start:end] for start, end in pieces.get(index, ())])  # copied once
        if len(content) > HEAD:
            bounds.take(len(content))
        yield Entry(path or ("" if encrypted else unpacked_name(name) or "data"), encrypted, content)


def missing() -> str:
    """Why there is no library, "" where there is one."""
    import ctypes

    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return _NOT_THERE
    return ""


def main(arguments: Sequence[str]) -> None:
    """In the child: read the archive on standard input, and write the frames."""
    import ctypes

    from deliver.content.limited import confine

    kind, files, size, extent = arguments
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        _write(b"W", _NOT_THERE.encode())
        _write(b"Z")
        return
    data = mmap.mmap(0, 0, access=mmap.ACCESS_READ)
    confine(_SECONDS, _MEMORY)
    try:
        _Reader(library, kind, data).write(int(files), int(size), extent == "all")
    except MemoryError:
        _write(b"W", b"it needs too much memory")
    _write(b"Z")


def _write(letter: bytes, held: bytes = b"", number: int = 0) -> None:
    view = memoryview(_FRAME.pack(letter, number, len(held)) + held)
    while view:
        view = view[os.write(1, view) :]


class _Reader:
    """One archive on standard input, read from its front as often as wanted."""

    def __init__(self, library: Any, kind: str, data: mmap.mmap) -> None:
        import ctypes

        self._call = library
        self._kind = kind
        self._data = data
        self._said: set[str] = set()
        self._archive: Any = None
        self._buffer = ctypes.create_string_buffer(_PIECE)
        pointer = ctypes.c_void_p
        for name, result, *types in (
            ("read_new", pointer),
            ("read_open_fd", ctypes.c_int, pointer, ctypes.c_int, ctypes.c_size_t),
            ("read_next_header", ctypes.c_int, pointer, ctypes.POINTER(pointer)),
            ("read_data", ctypes.c_ssize_t, pointer, pointer, ctypes.c_size_t),
            ("read_has_encrypted_entries", ctypes.c_int, pointer),
            ("read_free", ctypes.c_int, pointer),
            ("error_string", ctypes.c_char_p, pointer),
            ("filter_bytes", ctypes.c_int64, pointer, ctypes.c_int),
            ("entry_pathname_utf8", ctypes.c_char_p, pointer),
            ("entry_pathname", ctypes.c_char_p, pointer),
            ("entry_size", ctypes.c_int64, pointer),
            ("entry_filetype", ctypes.c_uint, pointer),
            ("entry_is_encrypted", ctypes.c_int, pointer),
        ):
            function = getattr(library, f"archive_{name}")
            function.restype, function.argtypes = result, types
        for name in _READERS[kind][0]:
            getattr(library, f"archive_read_support_format_{name}").argtypes = [pointer]
        for name in _READERS[kind][1]:
            getattr(library, f"archive_read_support_filter_{name}").argtypes = [pointer]

    def write(self, files: int, size: int, all_of_each: bool) -> None:
        """First all names, which cost little; then what the files hold, as far as time and memory go."""
        locked = rar.locked(self._data) if self._kind == "application/vnd.rar" else rar.Locked(frozenset())
        if locked.all:
            _write(b"P")
            return
        contents: dict[int, tuple[int, str]] = {}  # by its place in the archive: the number of its name, and that
        number = total = 0
        for place, entry in enumerate(self._entries()):
            path = self._path(entry)
            if self._call.archive_entry_filetype(entry) & _TYPE == _DIRECTORY:
                continue
            if number >= files:
                self._say("it holds too many files")
                break
            encrypted = path in locked.names or bool(self._call.archive_entry_is_encrypted(entry))
            _write(b"N", path, int(encrypted))
            total += max(self._call.archive_entry_size(entry), 0)
            if not encrypted:
                contents[place] = number, path.decode("utf-8", "replace")
            number += 1
        _write(b"S", b"", total)
        left = size
        for place, _entry in enumerate(self._entries()):
            if place not in contents:
                continue
            number, name = contents.pop(place)
            left -= self._content(number, name, left, all_of_each)
            if left <= 0:
                self._say("it holds too much")
            if left <= 0 or not contents:
                break

    def _content(self, number: int, name: str, left: int, all_of_it: bool) -> int:
        """Write a file's head, or all of it as far as there is room ``left``; the bytes that count."""
        head = b"".join(self._pieces(HEAD))
        _write(b"C", head, number)
        if len(head) < HEAD:
            return 0
        if all_of_it or worth_all(head, [name]):
            size = 0
            for piece in self._pieces(left):
                _write(b"C", piece, number)
                size += len(piece)
            return size
        if _READERS[self._kind][0] == ("raw",):
            self._probe()
        return 0

    def _probe(self) -> None:
        """One compressed file says nowhere how large it is."""
        size = 0
        for piece in self._pieces(UNPACKED_CAP + 1):
            size += len(piece)
            if self._call.archive_filter_bytes(self._archive, -1) > UNPACKED_CAP // RATIO:
                return
        if size > UNPACKED_CAP:
            _write(b"B", b"", size)

    def _pieces(self, most: int) -> Iterator[bytes]:
        """At most so many bytes of the file that is to be read now."""
        while most > 0:
            size = self._call.archive_read_data(self._archive, self._buffer, min(_PIECE, most))
            if size <= 0:
                if size < 0:
                    self._failed()
                return
            most -= size
            yield self._buffer.raw[:size]

    def _entries(self) -> Iterator[Any]:
        """What stands before each file, from the first on, as far as it can be read."""
        import ctypes

        formats, filters = _READERS[self._kind]
        call = self._call
        self._archive = call.archive_read_new()
        for name in formats:
            getattr(call, f"archive_read_support_format_{name}")(self._archive)
        for name in filters:
            getattr(call, f"archive_read_support_filter_{name}")(self._archive)
        os.lseek(0, 0, os.SEEK_SET)
        code = call.archive_read_open_fd(self._archive, 0, _PIECE)
        entry = ctypes.c_void_p()
        while code > _FATAL:
            code = call.archive_read_next_header(self._archive, ctypes.byref(entry))
            if code in {_OK, _WARN}:
                yield entry
            elif code == _EOF:
                break
        if code <= _FATAL:
            self._failed()
        call.archive_read_free(self._archive)

    def _failed(self) -> None:
        if self._call.archive_read_has_encrypted_entries(self._archive) > 0:
            if "all" not in self._said:
                self._said.add("all")
                _write(b"P")
            return
        self._say((self._call.archive_error_string(self._archive) or b"it is damaged").decode("utf-8", "replace"))

    def _say(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            _write(b"W", words.encode())

    def _path(self, entry: Any) -> bytes:
        # A name that its own character set does not explain is shown as its bytes.
        found = self._call.archive_entry_pathname_utf8(entry) or self._call.archive_entry_pathname(entry) or b""
        return b"" if found == _OF_ITS_OWN and _READERS[self._kind][0] == ("raw",) else bytes(found)
