"""DKIM: signatures that RFCs and other programs made are verified, broken ones are told apart, and all in bounded time."""

import base64
import hashlib
import socket
import subprocess
import sys
import threading
import time
import tracemalloc

import corpora
import pytest

from deliver import header_lines, signatures
from deliver.content import authentication
from deliver.message import Message, Source, read_framing
from deliver.rules.model import CannotTell, Signature
from deliver.signatures import NoAnswer, verify

MAX = 1024 * 1024

# The key of RFC 6376 appendix C.2.
RFC_KEY = (
    b"v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYt"
    b"IxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhi"
    b"tdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB"
)


def content(raw: bytes) -> Message:
    source = Source.of(raw)
    return Message(source, read_framing(source.head))


def the_only(name: str, fetch: signatures.Fetch) -> Signature:
    (found,) = verify(content((corpora.needs("dkim-lieser") / name).read_bytes()), 5, MAX, fetch)
    return found


def rfc_key(name: str, _timeout: float) -> bytes | None:
    return RFC_KEY if name == "brisbane._domainkey.example.com." else None


def test_the_signature_of_the_rfc_holds() -> None:
    assert the_only("rfc6376-A.2.eml", rfc_key) == Signature("pass", "example.com")


# RFC 8463 appendix A.2.
FOOTBALL = {
    "brisbane": b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    "test": b"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3"
    b"idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3"
    b"rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB",
}


def test_signatures_by_ed25519_hold() -> None:
    raw = (corpora.needs("dkim-lieser") / "rfc8463-A.3.eml").read_bytes()
    found = verify(content(raw), 5, MAX, lambda name, _timeout: FOOTBALL[name.partition(".")[0]])
    assert found == (Signature("pass", "football.example.com"),) * 2
    found = verify(content(raw.replace(b"hungry", b"angry")), 5, MAX, lambda name, _: FOOTBALL[name.partition(".")[0]])
    assert [one.result for one in found] == ["fail"] * 2


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A private key, and its record in the DNS."""
    path = tmp_path_factory.mktemp("key") / "key.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(path), "2048"], check=True, capture_output=True)
    public = ["openssl", "rsa", "-in", str(path), "-pubout", "-outform", "DER"]
    der = subprocess.run(public, check=True, capture_output=True).stdout
    return path.read_bytes(), b"v=DKIM1; k=rsa; p=" + base64.b64encode(der)


@pytest.mark.parametrize("how", [b"simple", b"relaxed"])
def test_what_a_signature_does_not_cover_anybody_may_have_written(how: bytes, signer: tuple[bytes, bytes]) -> None:
    key, record = signer
    raw = b"From: a@example.com\r\n\r\nhello  you\r\n\r\n"
    signed = signed_by_dkimpy(raw, key, how, length=True)
    (whole,) = verify(content(signed), 1, MAX, lambda _name, _timeout: record)
    assert whole == Signature("pass", "example.com")
    (more,) = verify(content(signed.rstrip() + b"\r\nBuy here!\r\n"), 1, MAX, lambda _name, _timeout: record)
    size = len(b"hello  you\r\n") - (how == b"relaxed")
    assert more == Signature("policy", "example.com", f"it covers only {size} of {size + 11} bytes of the body")
    (changed,) = verify(content(signed.replace(b"hello", b"hullo")), 1, MAX, lambda _name, _timeout: record)
    assert changed.result == "fail"


def test_sha_1_is_not_believed(signer: tuple[bytes, bytes]) -> None:
    key, record = signer
    signed = signed_by_dkimpy(b"From: a@example.com\r\n\r\nhello\r\n", key, b"relaxed", algorithm=b"rsa-sha1")
    (found,) = verify(content(signed), 1, MAX, lambda _name, _timeout: record)
    assert (found.result, found.domain) == ("policy", "example.com")
    assert "SHA-1" in found.detail


def signed_by_dkimpy(
    raw: bytes, key: bytes, how: bytes, *, length: bool = False, algorithm: bytes = b"rsa-sha256"
) -> bytes:
    """In a process of its own, whose dkimpy nothing has changed."""
    program = (
        "import sys, dkim; raw = sys.stdin.buffer.read(); key, how, length, algorithm = sys.argv[1:];"
        "made = dkim.sign(raw, b's', b'example.com', key.encode(), canonicalize=(how.encode(),) * 2,"
        "length=length == 'True', signature_algorithm=algorithm.encode());"
        "sys.stdout.buffer.write(made + raw)"
    )
    words = [key.decode(), how.decode(), str(length), algorithm.decode()]
    done = subprocess.run([sys.executable, "-c", program, *words], input=raw, check=True, capture_output=True)
    return done.stdout


@pytest.mark.parametrize(
    ("name", "result"),
    [("rfc6376-A.2-body_modified.eml", "fail"), ("rfc6376-A.2-header_subject_modified.eml", "fail")],
)
def test_what_was_changed_fails(name: str, result: str) -> None:
    found = the_only(name, rfc_key)
    assert (found.result, found.domain) == (result, "example.com")
    assert found.detail


def test_a_tag_that_is_missing_makes_it_no_signature() -> None:
    assert the_only("rfc6376-A.2-ill_formed-missing_v.eml", rfc_key).result == "neutral"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "there is no key"),
        (b"v=DKIM1; p=", "revoked"),
        (b"v=DKIM1; k=rsa", "no p="),
        (b"v=DKIM1; p=" + b"A" * 3000, "too long"),
        (b"v=DKIM1; p=AAAA", ""),
        (b"\xff\xfe", "no p="),
    ],
)
def test_a_key_that_cannot_be_used_is_an_error_for_good(record: bytes | None, words: str) -> None:
    found = the_only("rfc6376-A.2.eml", lambda _name, _timeout: record)
    assert found.result in {"permerror", "fail"} if record == b"v=DKIM1; p=AAAA" else found.result == "permerror"
    assert words in found.detail


def test_a_dns_that_does_not_answer_is_an_error_for_now() -> None:
    def fetch(_name: str, _timeout: float) -> bytes | None:
        raise NoAnswer("no server answered")

    assert the_only("rfc6376-A.2.eml", fetch) == Signature("temperror", "example.com", "no server answered")


def test_one_deadline_holds_for_all_signatures() -> None:
    signed = (corpora.needs("dkim-lieser") / "rfc6376-A.2.eml").read_bytes()
    header = signed[: signed.index(b"Received:")]
    several = b"".join(header.replace(b"s=brisbane", b"s=s%d" % n) for n in range(5)) + signed[len(header) :]
    asked: list[float] = []

    def fetch(_name: str, timeout: float) -> bytes | None:
        asked.append(timeout)
        time.sleep(min(timeout, 0.2))  # as a slow server does
        raise NoAnswer("late")

    start = time.monotonic()
    found = verify(content(several), 0.5, MAX, fetch)
    assert time.monotonic() - start < 2
    assert [one.result for one in found] == ["temperror"] * 5
    assert asked == sorted(asked, reverse=True)
    assert len(asked) <= 3


def test_a_name_is_asked_for_once_and_no_more_signatures_than_sensible() -> None:
    signed = (corpora.needs("dkim-lieser") / "rfc6376-A.2.eml").read_bytes()
    header = signed[: signed.index(b"Received:")]
    asked: list[str] = []

    def fetch(name: str, _timeout: float) -> bytes | None:
        asked.append(name)
        return RFC_KEY

    assert len(verify(content(header * 50 + signed), 5, MAX, fetch)) == signatures.MOST
    assert asked == ["brisbane._domainkey.example.com."]


def test_a_message_over_the_size_is_not_looked_at() -> None:
    with pytest.raises(CannotTell, match="too large"):
        verify(content(b"DKIM-Signature: v=1\n\n" + b"x" * 100), 5, 100, rfc_key)
    assert verify(content(b"Subject: x\n\n" + b"x" * 100), 5, 100, rfc_key) == ()


@pytest.mark.parametrize(
    "raw",
    [
        b"DKIM-Signature: v=1\nX: y\n" + b" z\n" * 300_000 + b"\n",
        b"DKIM-Signature: v=1\n" * 5000 + b"\n",
        b" begins with a fold\nDKIM-Signature: v=1\n\n",
        b"DKIM-Signature: v=1; d=\xff\xfe; s=; h=:::; b==; bh=\n\n",
        b"DKIM-Signature: \n\n",
        b"no header at all \x00\nDKIM-Signature: v=1; a=rsa-sha256\n\n",
    ],
)
def test_hostile_signatures_do_not_raise_or_take_long(raw: bytes) -> None:
    start = time.process_time()
    try:
        found = verify(content(raw), 5, 10 * MAX, rfc_key)
    except CannotTell:
        found = ()
    assert all(one.result in {"neutral", "permerror", "fail"} for one in found)
    assert time.process_time() - start < 5


def test_blanks_without_end_take_linear_time() -> None:
    signed = (corpora.needs("dkim-lieser") / "rfc6376-A.2.eml").read_bytes()
    relaxed = signed.replace(b"c=simple/simple", b"c=simple/relaxed")
    start = time.process_time()
    (found,) = verify(content(relaxed + b"x" + b" \t" * 400_000 + b"y\n"), 5, MAX, rfc_key)
    assert found.result == "fail"
    assert time.process_time() - start < 5  # dkimpy's own pattern takes minutes


@pytest.mark.parametrize(
    ("body", "simple", "relaxed"),
    [
        (b" C \nD \t E\n\n\n", b" C \r\nD \t E\r\n", b" C\r\nD E\r\n"),  # RFC 6376 section 3.4.5
        (b"", b"\r\n", b""),
        (b"\n\n", b"\r\n", b""),
        (b"a \t\n\t \nb", b"a \t\r\n\t \r\nb\r\n", b"a\r\n\r\nb\r\n"),
        (b"a\rb\r\r\n", b"a\rb\r\r\n", b"a\rb\r\r\n"),
    ],
)
def test_the_canonical_body_is_that_of_rfc_6376(body: bytes, simple: bytes, relaxed: bytes) -> None:
    for name, expected in (("simple", simple), ("relaxed", relaxed)):
        hashed = base64.b64encode(hashlib.sha256(expected).digest()).decode()
        header = f"DKIM-Signature: v=1; a=rsa-sha256; c=simple/{name}; d=example.com; s=brisbane; h=from; bh={hashed}; b=AAAA"
        (found,) = verify(content(header.encode() + b"\nFrom: a@example.com\n\n" + body), 1, MAX, rfc_key)
        assert found.detail == "the signature does not fit"  # and not that the body was changed


@pytest.mark.parametrize("line", [b"x \t y\n", b"\n", b"x\n", b" " * 999 + b"\n"])
def test_several_signatures_of_a_large_body_take_little(line: bytes) -> None:
    header = b"".join(
        b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=brisbane; h=from; bh=AAAA; b=AAAA\n"
        for _ in range(8)
    )
    mail = content(header + b"From: a@example.com\n\n" + line * (4_000_000 // len(line)))
    verify(mail, 1, 10 * MAX, rfc_key)  # loads what it needs
    tracemalloc.start()
    before = time.process_time()
    try:
        found = verify(mail, 1, 10 * MAX, rfc_key)
        assert tracemalloc.get_traced_memory()[1] < 8 * mail.size
    finally:
        tracemalloc.stop()
    assert [one.detail for one in found] == ["the body was changed"] * 8
    assert time.process_time() - before < 2


class Resolver:
    """A DNS server on the loopback that answers each question with a TXT record, a code, or not at all."""

    def __init__(self, record: bytes | None, rcode: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.record, self.rcode = record, rcode
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        import dns.message
        import dns.rrset

        while True:
            packet, address = self.socket.recvfrom(4096)
            if not packet:
                return
            query = dns.message.from_wire(packet)
            answer = dns.message.make_response(query)
            answer.set_rcode(self.rcode)
            if self.record:
                text = '"' + self.record.decode() + '"'
                answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "TXT", text))
            if self.record is not None:
                self.socket.sendto(answer.to_wire(), address)

    def close(self) -> None:
        self.socket.sendto(b"", self.socket.getsockname())
        self.thread.join(5)
        self.socket.close()


@pytest.mark.parametrize(
    ("record", "rcode", "expected"),
    [
        (b"v=DKIM1; p=abc", 0, b"v=DKIM1; p=abc"),
        (b"", 0, None),
        (b"", 3, None),
        (b"", 2, NoAnswer),
        (None, 0, NoAnswer),
    ],
)
def test_the_dns_is_asked(record: bytes | None, rcode: int, expected: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import dns.resolver

    server = Resolver(record, rcode)
    try:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = server.socket.getsockname()[1]
        monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
        if expected is NoAnswer:
            with pytest.raises(NoAnswer):
                signatures.txt_record("x._domainkey.example.org.", 0.5)
        else:
            assert signatures.txt_record("x._domainkey.example.org.", 5.0) == expected
    finally:
        server.close()


def test_a_name_that_no_dns_can_have_has_no_record() -> None:
    assert signatures.txt_record(f"{'a' * 70}._domainkey.example.org.", 1.0) is None


@pytest.mark.parametrize(
    ("signature", "line"),
    [
        (("pass", "example.org", ""), b"dkim=pass header.d=example.org"),
        (("none", "", ""), b"dkim=none"),
        (("fail", "a_b.example", 'the "body"\r\nwas \\ changed'), b'dkim=fail reason="the ?body?was ? changed" header.d=a_b.example'),
        (("permerror", "x; dkim=pass header.d=bank.example", ""), b"dkim=permerror"),
    ],
)
def test_results_are_written_as_rfc_8601_wants_them(signature: tuple[str, str, str], line: bytes) -> None:
    """Section 2.2: nothing that a sender chose ends a result or begins another."""
    written = header_lines.authentication_results("deliver.example.net", [signature])
    assert written == b"Authentication-Results: deliver.example.net;\n\t" + line + b"\n"
    domain = signature[1] if b"header.d" in line else ""
    (read,) = authentication.results([written.partition(b":")[2]], frozenset({"deliver.example.net"}))
    assert (read.method, read.result, read.domain) == ("dkim", signature[0], domain)


def test_each_signature_has_its_result() -> None:
    written = header_lines.authentication_results("a.example", [("pass", "b.example", ""), ("fail", "c.example", "")])
    read = authentication.results([written.partition(b":")[2]], frozenset({"a.example"}))
    assert [(one.result, one.domain) for one in read] == [("pass", "b.example"), ("fail", "c.example")]
