"""Bytes from a URL to a whole, checked file, against a server that misbehaves."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Files, serve_files

from midwatch.engine.download import Link, Tools, fetch
from midwatch.errors import DownloadError

CONTENT = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def _tools(**options: object) -> Tools:
    return Tools(pause=lambda seconds: None, **options)  # type: ignore[arg-type]


def _link(files: Files, path: str = "/a.whl", sha256: str = SHA256) -> Link:
    return Link(url=files.url + path, sha256=sha256)


def _gets(files: Files) -> list[str | None]:
    return [wanted for method, _, wanted in files.asked if method == "GET"]


def test_a_download_is_whole_and_reports_its_progress(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with serve_files(content={"/a.whl": CONTENT}) as files:
        path = fetch(_link(files), tmp_path / "a.whl", _tools(progress=lambda *args: seen.append(args)))
    assert path.read_bytes() == CONTENT
    assert ("downloading", len(CONTENT), len(CONTENT)) in seen
    assert ("checking", len(CONTENT), len(CONTENT)) in seen
    assert [item.name for item in tmp_path.iterdir()] == ["a.whl"]


def test_a_cut_connection_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    with serve_files(content={"/a.whl": CONTENT}, cut_after=[1_000_000, 500_000]) as files:
        path = fetch(_link(files), tmp_path / "a.whl", _tools())
        assert _gets(files) == [None, "bytes=1000000-", "bytes=1500000-"]
    assert path.read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_is_read_from_the_start(tmp_path: Path) -> None:
    with serve_files(content={"/a.whl": CONTENT}, ranges=False, cut_after=[2_000_000]) as files:
        path = fetch(_link(files), tmp_path / "a.whl", _tools())
        assert _gets(files) == [None, "bytes=2000000-"]
    assert path.read_bytes() == CONTENT


def test_a_download_that_keeps_breaking_gives_up_with_a_next_step_and_a_later_run_goes_on(tmp_path: Path) -> None:
    pauses: list[float] = []
    with serve_files(content={"/a.whl": CONTENT}, cut_after=[1_000_000, 0, 0, 0]) as files:
        with pytest.raises(DownloadError, match="run the same command again"):
            fetch(_link(files), tmp_path / "a.whl", Tools(pause=pauses.append))
        assert pauses == [1.0, 2.0]
        assert not (tmp_path / "a.whl").exists()
        fetch(_link(files), tmp_path / "a.whl", _tools())
        assert _gets(files)[-1] == "bytes=1000000-"
    assert (tmp_path / "a.whl").read_bytes() == CONTENT


def test_a_whole_part_of_an_earlier_run_is_only_checked(tmp_path: Path) -> None:
    (tmp_path / f"a.whl.{SHA256[:12]}.part").write_bytes(CONTENT)
    with serve_files(content={"/a.whl": CONTENT}) as files:
        fetch(_link(files), tmp_path / "a.whl", _tools())
    assert (tmp_path / "a.whl").read_bytes() == CONTENT


def test_a_part_of_other_bytes_is_never_continued(tmp_path: Path) -> None:
    (tmp_path / "a.whl.0123456789ab.part").write_bytes(b"x" * 1000)
    with serve_files(content={"/a.whl": CONTENT}) as files:
        fetch(_link(files), tmp_path / "a.whl", _tools())
        assert _gets(files) == [None]


def test_wrong_bytes_are_deleted_and_both_hashes_are_said(tmp_path: Path) -> None:
    with serve_files(content={"/a.whl": b"something else"}) as files, pytest.raises(DownloadError) as caught:
        fetch(_link(files), tmp_path / "a.whl", _tools())
    assert SHA256 in caught.value.what
    assert hashlib.sha256(b"something else").hexdigest() in caught.value.what
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before_a_byte_is_written(tmp_path: Path) -> None:
    with serve_files(content={"/a.whl": CONTENT}) as files, pytest.raises(DownloadError) as caught:
        fetch(_link(files), tmp_path / "a.whl", _tools(free_bytes=lambda path: 5_000_000), spare_bytes=4_000_000)
    assert "5 MB free, and 7 MB are needed" in caught.value.what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_while_writing_is_said(tmp_path: Path) -> None:
    (tmp_path / f"a.whl.{SHA256[:12]}.part").symlink_to("/dev/full")
    with serve_files(content={"/a.whl": CONTENT}) as files, pytest.raises(DownloadError, match="became full"):
        fetch(_link(files), tmp_path / "a.whl", _tools())
    assert not (tmp_path / "a.whl").exists()


@pytest.mark.parametrize(("status", "says"), [(404, "Check the name"), (401, "login"), (403, "forbids")])
def test_a_refusal_says_what_to_do(tmp_path: Path, status: int, says: str) -> None:
    with serve_files(content={"/a.whl": CONTENT}, statuses=[status]) as files:
        with pytest.raises(DownloadError, match=f"answered {status}.*{says}"):
            fetch(_link(files), tmp_path / "a.whl", _tools())
        assert len(files.asked) == 1


def test_a_passing_fault_of_the_server_is_tried_again(tmp_path: Path) -> None:
    with serve_files(content={"/a.whl": CONTENT}, statuses=[503]) as files:
        fetch(_link(files), tmp_path / "a.whl", _tools())
        assert len(files.asked) == 2


def test_an_absent_network_is_said(tmp_path: Path) -> None:
    with serve_files() as files:
        gone = files.url
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(Link(url=f"{gone}/a.whl", sha256=SHA256), tmp_path / "a.whl", _tools())


def test_a_file_url_is_copied_and_checked(tmp_path: Path) -> None:
    source = tmp_path / "an index" / "a.whl"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    fetch(Link(url=source.as_uri(), sha256=SHA256), tmp_path / "out" / "a.whl", _tools())
    assert (tmp_path / "out" / "a.whl").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="cannot be read"):
        fetch(Link(url=(tmp_path / "no.whl").as_uri(), sha256=SHA256), tmp_path / "b.whl", _tools())


def test_other_kinds_of_url_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="ftp"):
        fetch(Link(url="ftp://127.0.0.1/a.whl", sha256=SHA256), tmp_path / "a.whl", _tools())


def test_a_process_killed_half_way_leaves_what_the_next_one_continues(tmp_path: Path) -> None:
    import threading

    script = (
        "import sys; from pathlib import Path; from midwatch.engine.download import Link, Tools, fetch\n"
        "tools = Tools(progress=lambda *a: print(a, flush=True))\n"
        "fetch(Link(url=sys.argv[1], sha256=sys.argv[2]), Path(sys.argv[3]), tools)"
    )
    target = tmp_path / "a.whl"
    with serve_files(content={"/a.whl": CONTENT}, cut_after=[2_500_000], hold=threading.Event()) as files:
        arguments = [sys.executable, "-c", script, files.url + "/a.whl", SHA256, str(target)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                if "2097152" in line:
                    process.kill()
                    break
        files.hold.set()
        assert not target.exists()
        fetch(_link(files), target, _tools())
        assert _gets(files)[-1].startswith("bytes=")
    assert target.read_bytes() == CONTENT


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_of_the_users_own_authority_is_trusted_when_named_and_refused_when_not(tmp_path: Path) -> None:
    import ssl
    from http.server import HTTPServer, SimpleHTTPRequestHandler
    from threading import Thread

    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (tmp_path / "a.whl").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

    class QuietServer(HTTPServer):
        def handle_error(self, *_: object) -> None:  # a refused handshake is what the test is about
            pass

    server = QuietServer(("127.0.0.1", 0), Quiet)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{server.server_address[1]}/a.whl"
    try:
        with pytest.raises(DownloadError, match="certificate.*not trusted.*pip config set global.cert"):
            fetch(Link(url=url, sha256=SHA256), tmp_path / "out" / "a.whl", _tools())
        trusted = Link(url=url, sha256=SHA256, ca_file=str(tmp_path / "cert.pem"))
        assert fetch(trusted, tmp_path / "out" / "a.whl", _tools()).read_bytes() == CONTENT
        careless = Link(url=url, sha256=SHA256, insecure_tls=True)
        assert fetch(careless, tmp_path / "out" / "b.whl", _tools()).read_bytes() == CONTENT
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
