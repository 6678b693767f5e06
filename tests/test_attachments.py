"""The files that come with a message, wherever they are: in archives, in messages, in texts, in Outlook's wrapper."""

import base64
import binascii
import io
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import corpora
import packed
import pytest
import servers
from packed import zipped

from deliver.content import attachments, tnef
from deliver.content.attachments import File
from deliver.content.bounds import Bounds

EXE = b"MZ\x90\x00" + bytes(range(256)) * 20
PE = "application/vnd.microsoft.portable-executable"


def tarred(*files: tuple[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


def part(name: str, data: bytes, kind: str = "application/octet-stream") -> bytes:
    head = f'Content-Type: {kind}; name="{name}"\nContent-Transfer-Encoding: base64\n\n'
    return head.encode() + base64.encodebytes(data)


def message(*parts: bytes, text: bytes = b"see there\n") -> bytes:
    head = b"From: a@example.org\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=B\n\n"
    return head + b"".join(b"--B\n%s\n" % one for one in (b"Content-Type: text/plain\n\n" + text, *parts)) + b"--B--\n"


def ways(read: attachments.Attached) -> list[tuple[str, str]]:
    return [(one.archive, one.path) for one in read.files]


def test_the_whole_way_into_an_archive() -> None:
    inner = tarred(("docs/letter.exe", EXE))
    read = attachments.read([message(part("a.zip", zipped(("in/b.tar.gz", inner))))])
    assert ways(read) == [
        ("", ""),
        ("a.zip", "in/b.tar.gz"),
        ("a.zip", "in/b.tar.gz/b.tar"),
        ("a.zip", "in/b.tar.gz/b.tar/docs/letter.exe"),
    ]
    assert read.files[3] == File(("letter.exe",), "", PE, "a.zip", path="in/b.tar.gz/b.tar/docs/letter.exe")
    assert read.unread == ""


def test_a_message_in_an_archive_and_one_attached_under_another_type() -> None:
    letter = message(part("b.zip", zipped(("evil.exe", EXE))))
    read = attachments.read([message(part("a.zip", zipped(("saved/one.eml", letter))))])
    assert ways(read) == [
        ("", ""),
        ("a.zip", "saved/one.eml"),
        ("a.zip", "saved/one.eml/b.zip"),
        ("a.zip", "saved/one.eml/b.zip/evil.exe"),
    ]
    read = attachments.read([message(part("one.eml", letter))])
    assert ways(read) == [("", ""), ("one.eml", "b.zip"), ("one.eml", "b.zip/evil.exe")]


def test_messages_in_each_other_end() -> None:
    letter = message(part("evil.exe", EXE))
    for number in range(8):
        letter = message(part(f"{number}.eml", letter))
    read = attachments.read([letter])
    assert "too deep" in read.unread
    assert len(read.files) == 6


def test_encryption_is_named_and_marked() -> None:
    locked = packed.zip_of(b"x.exe", bytes(40), 28, flags=1)
    read = attachments.read([message(part("a.zip", locked), part("b.rar", packed.rar((b"y", bytes(16), True))))])
    assert read.encrypted == {"zip", "rar"}
    assert [(one.path, one.encrypted) for one in read.files if one.archive] == [("x.exe", True), ("y", True)]
    read = attachments.read([message(part("b.rar", packed.rar(header=True)))])
    assert read.encrypted == {"rar"}
    assert [(one.names, one.encrypted) for one in read.files] == [(("b.rar",), False), ((), True)]


def uuencoded(name: str, data: bytes) -> bytes:
    lines = (binascii.b2a_uu(data[at : at + 45]) for at in range(0, len(data), 45))
    return b"begin 644 " + name.encode() + b"\n" + b"".join(lines) + b"`\nend\n"


def test_uuencode_in_the_text() -> None:
    text = b"hello\nbegin 644 of it all\nand more\n" + uuencoded("a.zip", zipped(("evil.exe", EXE))) + b"bye\n"
    for raw in (b"Subject: x\n\n" + text, message(text=text)):
        read = attachments.read([raw])
        assert ways(read) == [("", ""), ("a.zip", "evil.exe")]
        assert read.files[0].names == ("a.zip",)


def test_uuencode_by_a_program(tmp_path: Path) -> None:
    program = servers.needs("uuencode")
    (tmp_path / "x").write_bytes(EXE)
    for option in ([], ["-m"]):
        done = subprocess.run([program, *option, "x", "evil.exe"], cwd=tmp_path, capture_output=True, check=True)
        found = list(attachments.contents([b"\n" + done.stdout + b"\nbye\n"]))
        assert found[1:] == [("evil.exe", EXE)]


def test_uuencode_that_others_sent() -> None:
    folder = corpora.needs("mime-james-mime4j") / "mimetools-testmsgs"
    read = attachments.read([(folder / "uu-zeegee.msg").read_bytes()])
    assert [(one.names, one.detected) for one in read.files] == [
        (("up.gif",), "image/gif"),
        (("zeegee.gif",), "image/gif"),
    ]


def test_yenc_in_the_text() -> None:
    """http://www.yenc.org/yenc-draft.1.3.txt: each byte plus 42; NUL, LF, CR and "=" behind an "=" and plus 64."""
    letters = b"".join(
        b"=" + bytes([(byte + 106) % 256]) if (byte + 42) % 256 in b"\x00\n\r=" else bytes([(byte + 42) % 256])
        for byte in EXE
    )
    lines = b"\r\n".join(letters[at : at + 128] for at in range(0, len(letters), 128))
    # Where a line ends behind an "=", the next begins with the other half; both readers join lines first.
    text = b"=ybegin line=128 size=%d name=evil.exe\r\n%s\r\n=yend size=%d\r\n" % (len(EXE), lines, len(EXE))
    assert list(attachments.contents([b"\n" + text]))[1:] == [("evil.exe", EXE)]


@pytest.mark.parametrize("shift", range(3))
def test_a_large_file_in_yenc_of_nothing_but_escapes_takes_little_memory(shift: int) -> None:
    # "=}" stands for "=", which no piece may part.
    content = b"a" * shift + bytes([(61 - 42) % 256]) * 150_000
    text = b"\nbegin\n=ybegin line=128 size=1 name=a.bin\n" + b"\x8b" * shift + b"=}" * 150_000 + b"\n=yend\n"
    tracemalloc.start()
    try:
        found = list(attachments.contents([text]))
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()
    assert found[1:] == [("a.bin", content)]


def attribute(level: int, kind: int, held: bytes) -> bytes:
    size = len(held).to_bytes(4, "little")
    return bytes([level]) + kind.to_bytes(4, "little") + size + held + (sum(held) % 65536).to_bytes(2, "little")


def wrapped(*files: tuple[str, str, bytes]) -> bytes:
    """[MS-OXTNEF]: a short name, a long one among the properties, and what the file holds."""
    made = b"\x78\x9f\x3e\x22\x01\x00" + attribute(1, 0x00089006, b"\x00\x00\x01\x00")
    for short, long, content in files:
        name = long.encode("utf-16-le") + b"\x00\x00"
        property_ = (0x3707001F).to_bytes(4, "little") + (1).to_bytes(4, "little") + len(name).to_bytes(4, "little")
        properties = (2).to_bytes(4, "little") + (0x37050003).to_bytes(4, "little") + (1).to_bytes(4, "little")
        properties += property_ + name + bytes(-len(name) % 4)
        made += attribute(2, 0x00069002, bytes(14)) + attribute(2, 0x00018010, short.encode() + b"\x00")
        made += attribute(2, 0x0006800F, content) + attribute(2, 0x00069005, properties)
    return made


def test_the_files_in_winmail_dat() -> None:
    inner = zipped(("evil.exe", EXE))
    data = wrapped(("LONGNA~1.ZIP", "long name.zip", inner), ("B.TXT", "b.txt", b"text"))
    read = attachments.read([message(part("winmail.dat", data, "application/ms-tnef"))])
    assert ways(read) == [
        ("", ""),
        ("winmail.dat", "long name.zip"),
        ("winmail.dat", "long name.zip/evil.exe"),
        ("winmail.dat", "b.txt"),
    ]


def test_winmail_dat_as_another_program_reads_it(tmp_path: Path) -> None:
    program = servers.needs("tnef")
    path = tmp_path / "winmail.dat"
    path.write_bytes(wrapped(("A.EXE", "a b.exe", EXE), ("B.TXT", "b.txt", b"text")))
    subprocess.run([program, "-C", str(tmp_path), str(path)], check=True, capture_output=True)
    found = dict(tnef.files(path.read_bytes()))
    assert found == {"a b.exe": EXE, "b.txt": b"text"}
    assert sorted(one.name for one in tmp_path.iterdir() if one != path) == sorted(found)


def test_damage_in_winmail_dat_raises_nothing() -> None:
    data = wrapped(("A.EXE", "a b.exe", EXE[:64]), ("B.TXT", "b.txt", b"text"))
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        list(tnef.files(bytes(damaged)))
        list(tnef.files(data[:at]))


def test_all_contents() -> None:
    letter = message(part("c.txt", b"inner"))
    raw = message(part("a.zip", zipped(("dir/b.exe", EXE), ("c.eml", letter))), part("page", b"<html>", "text/html"))
    found = list(attachments.contents([raw[:1000], raw[1000:]]))
    assert found[0] == ("text/plain", b"see there\n")
    assert [name for name, _ in found] == [
        "text/plain", "a.zip", "a.zip/dir/b.exe", "a.zip/c.eml", "a.zip/c.eml/text/plain", "a.zip/c.eml/c.txt", "page",
    ]  # fmt: skip
    held = dict(found)
    assert held["a.zip/dir/b.exe"] == EXE
    assert held["a.zip/c.eml/c.txt"] == b"inner"
    assert held["page"] == b"<html>"


def test_contents_say_what_is_left_out() -> None:
    bounds = Bounds()
    found = list(attachments.contents([message(part("a.zip", zipped(("z", bytes(70_000_000)))))], bounds))
    assert "archives hold too much" in bounds.exceeded
    assert sum(len(data) for _, data in found) < 70_000_000


def test_contents_hold_one_file_at_a_time() -> None:
    files = tuple((f"{number}", bytes([number]) * 4_000_000) for number in range(12))
    raw = message(part("a.zip", zipped(*files)))
    tracemalloc.start()
    try:
        sizes = [len(data) for _, data in attachments.contents([raw])]
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert sizes[2:] == [4_000_000] * 12


def test_what_is_not_worth_it_is_not_read() -> None:
    """Of a picture or a text that is attached only the front is decoded: what ordinary mail has costs nothing."""
    picture = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40_000
    raw = message(part("a.png", picture), part("a.csv", b"1;2\n" * 1_000_000, "text/csv"))
    tracemalloc.start()
    try:
        read = attachments.read(raw[at : at + 65536] for at in range(0, len(raw), 65536))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert [one.detected for one in read.files] == ["image/png", "text/plain"]
    assert read.unread == ""


def test_an_archive_that_is_not_all_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "ARCHIVE_CAP", 20_000)
    read = attachments.read(
        [
            message(
                part("a.zip", zipped(("evil.exe", EXE), ("b", bytes(EXE[1:] * 9)))) * 1,
                part("c.pdf", b"%PDF-1.4" + EXE * 9),
            )
        ]
    )
    assert "too large" in read.unread


def test_all_files_of_all_test_messages() -> None:
    for path in corpora.messages():
        attachments.read([path.read_bytes()])
