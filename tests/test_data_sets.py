"""Data sets by name: their records, their downloads (from a faulty server on this machine), their checks."""

import hashlib
import io
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from kunet import data
from kunet.data import sets
from kunet.data.sets import SETS, DataSet, File

# What is served


class Handler(BaseHTTPRequestHandler):
    """Files with Range and If-Range; the server's attributes say what goes wrong."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        faults, path = self.server.faults, self.path.lstrip("/")
        asked = self.headers.get("Range")
        self.server.asked.append((path, asked))
        if path not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[path]
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        first = 0
        same = self.headers.get("If-Range") == tag or "ignore if-range" in faults
        if asked and "ignore range" not in faults and same:
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if "no tag" not in faults:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        last = min(len(content), first + faults.get("drop after", len(content)))
        self.close_connection = last < len(content)
        self.server.served += last - first
        self.wfile.write(content[first:last])
        if "interrupt" in faults:
            time.sleep(0.3)  # let what was sent arrive
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(5)  # the signal has to be there before the connection breaks, on a busy machine too

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine: ``files``, ``faults`` (see Handler), what was ``asked``, bytes ``served``."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.faults, server.asked, server.served = {}, {}, [], 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.handle_error = lambda *_: None  # who asked may hang up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def png(seed: int, width: int = 64, height: int = 48) -> bytes:
    """Noise, so that no archive shrinks it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


IMAGES = {f"Tiny/{i:02d}.png": png(i, 160, 120) for i in range(12)}
ARCHIVE = zipped(IMAGES)  # about 690 kB
SHA256 = "sha256:" + hashlib.sha256(ARCHIVE).hexdigest()


@pytest.fixture
def tiny(server, monkeypatch):
    """Register the set "tiny", of 12 images in one zip on the server; fields may be changed."""

    def register(content: bytes = ARCHIVE, name: str = "tiny.zip", checksum: str | None = None, **fields):
        server.files[name] = content
        known = dict(
            name="tiny", title="Tiny", task="denoise", use="test", images=12, clean=r"(?:.*/)?(\d\d)\.png",
            sizes=((160, 120),), megabytes=1, licence="CC0", page=server.url,
            files=(File(f"{server.url}/{name}", checksum),),
        )  # fmt: skip
        monkeypatch.setitem(SETS, "tiny", DataSet(**known | fields))
        return SETS["tiny"]

    return register


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def left(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# Records


@pytest.mark.parametrize("data_set", SETS.values(), ids=SETS)
def test_records_are_whole(data_set):
    assert SETS[data_set.name] is data_set and data_set.name == data_set.name.lower()
    assert data_set.images > 0 and data_set.licence and data_set.page.startswith("https://")
    assert data_set.use in ("train", "validation", "test")
    for pattern in filter(None, (data_set.clean, data_set.degraded)):
        assert re.compile(pattern).groups == 1
    assert bool(data_set.files) != bool(data_set.by_hand), "fetched by a program or by hand, not both"
    assert len({file.name for file in data_set.files}) == len(data_set.files)
    for file in data_set.files:
        assert file.checksum is None or re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.checksum)
        assert file.url.startswith("https://") or file.checksum, "what comes unencrypted is held to a checksum"
    if data_set.kind == "images":
        assert len(data_set.files) == data_set.images
        assert all(re.fullmatch(data_set.clean, file.name) for file in data_set.files)


@pytest.mark.parametrize(
    "name,clean,degraded",
    [
        ("cbsd68", "3096.png", None),
        ("mcmaster", "McM/18.tif", None),
        ("urban100", "Urban100_HR/img_001.png", None),
        ("div2k", "DIV2K_train_HR/0800.png", None),
        ("div2k_valid", "DIV2K_valid_HR/0801.png", None),
        ("lsdir", "0085000/0084991.png", None),
        ("lsdir", "HR/train/0001000/0000001.png", None),
        ("reds", "train/train_sharp/239/00000099.png", "train/train_blur_jpeg/239/00000099.jpg"),
        ("reds_valid", "val/val_sharp/000/00000000.png", "val/val_blur_jpeg/000/00000000.jpg"),
        (
            "sidd_small",
            "SIDD_Small_sRGB_Only/Data/0001_001_S6_00100_00060_3200_L/GT_SRGB_010.PNG",
            "SIDD_Small_sRGB_Only/Data/0001_001_S6_00100_00060_3200_L/NOISY_SRGB_010.PNG",
        ),
        ("rain100l", "rain_data_test_Light/norain/norain-7.png", "rain_data_test_Light/rain/X2/norain-7x2.png"),
        ("raintrainl", "norain/norain-7.png", "rain/norain-7.png"),
        ("rain100h", "Rain100H/norain-007.png", "Rain100H/rainy/rain-007.png"),
        ("raintrainh", "norain-1800.png", "rain-1800.png"),
    ],
)
def test_the_layouts(name, clean, degraded):
    one = re.fullmatch(SETS[name].clean, clean)
    assert one and not re.fullmatch(SETS[name].degraded or "$^", clean)
    if degraded:
        other = re.fullmatch(SETS[name].degraded, degraded)
        assert other[1] == one[1] and not re.fullmatch(SETS[name].clean, degraded)


def test_div2k_is_split_as_published():
    names = [f"{i:04d}.png" for i in range(1, 901)]
    parts = [[n for n in names if re.fullmatch(SETS[s].clean, n)] for s in ("div2k", "div2k_valid")]
    assert parts == [names[:800], names[800:]]


def row(s: DataSet) -> str:
    """A set's line in the page's table."""
    files = ", ".join(f"[{file.name}]({file.url})" for file in s.files) or "by hand"
    if s.kind == "images":
        files = f"each image from `{s.files[0].url.rsplit('/', 1)[0]}/`"
    return (
        f"| `{s.name}` | [{s.title}]({s.page}) | {s.task}, {s.use} | {s.count} | {s.size} | {s.licence} | {files} |"
        f" {s.download} | {s.checksums} |"
    )


def test_the_page_lists_them():
    page = (ROOT / "book" / "data.md").read_text()
    assert "\n".join(row(s) for s in SETS.values()) in page
    assert all(s.by_hand in page for s in SETS.values())


def test_list(kunet, tiny, tmp_path):
    tiny()
    (tmp_path / "tiny").mkdir()
    lines = kunet("data", "list", "--to", tmp_path).stdout.splitlines()
    rows = {line.split()[0]: line for line in lines[1:]}
    assert set(rows) == set(SETS) and lines[0].split()[0] == "name"
    assert rows["tiny"].endswith(str(tmp_path / "tiny")) and "12 images" in rows["tiny"] and "CC0" in rows["tiny"]
    assert rows["kodak24"].endswith("  no") and rows["lsdir"].endswith("no; by hand")
    assert "24,000 pairs" in rows["reds"] and "long side 2040" in rows["div2k"]


def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, kunet, kunet.cli, kunet.train, kunet.data.sets; print({'requests', 'pooch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# Downloads


def test_fetch(kunet, server, tiny, tmp_path):
    tiny(checksum=SHA256)
    result = kunet("data", "fetch", "tiny", "--to", tmp_path)
    assert result.returncode == 0 and "published checksum" in result.stdout, result
    assert "tiny.zip" in result.stderr and "100%" in result.stderr  # the bars
    assert listing(tmp_path / "tiny") == IMAGES
    assert left(tmp_path) == {f"tiny/{name}" for name in IMAGES} | {"tiny.json"}, "no archive, no temporary file"
    entry = json.loads((tmp_path / "tiny.json").read_text())["tiny.zip"]
    assert f"sha256:{entry['sha256']}" == SHA256 and entry["bytes"] == len(ARCHIVE) == server.served
    assert stat.S_IMODE((tmp_path / "tiny").stat().st_mode) & 0o055 == 0o055 & ~umask()
    again = kunet("data", "fetch", "TINY", "--to", tmp_path)
    assert again.returncode == 0 and "already" in again.stdout and server.served == len(ARCHIVE)
    assert kunet("data", "check", "tiny", "--to", tmp_path).returncode == 0


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_quiet(kunet, tiny, tmp_path):
    tiny()
    assert kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet").stderr == ""


@pytest.mark.parametrize("kind", ["tar.gz", "images"])
def test_other_kinds(kunet, server, tiny, tmp_path, kind):
    if kind == "images":
        names = [name.split("/")[1] for name in IMAGES]
        server.files |= {name.split("/")[1]: content for name, content in IMAGES.items()}
        lines = "".join(f"{hashlib.sha256(server.files[n]).hexdigest()}  {n}\n" for n in names)
        tiny(files=tuple(File(f"{server.url}/{n}") for n in names), digest=hashlib.sha256(lines.encode()).hexdigest())
    else:
        tiny(tarred(*((tarfile.TarInfo(name), content) for name, content in IMAGES.items())), "tiny.tar.gz")
    result = kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert result.returncode == 0, result
    found = {Path(name).name: content for name, content in listing(tmp_path / "tiny").items()}
    assert found == {Path(name).name: content for name, content in IMAGES.items()}


def test_images_with_the_wrong_digest(refused, server, tiny, tmp_path):
    names = [name.split("/")[1] for name in IMAGES]
    server.files |= {name.split("/")[1]: content for name, content in IMAGES.items()}
    tiny(files=tuple(File(f"{server.url}/{n}") for n in names), digest="0" * 64)
    assert "not the published ones" in refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert not left(tmp_path)


def test_a_download_that_breaks_is_resumed(refused, kunet, server, tiny, tmp_path):
    tiny(checksum=SHA256)
    server.faults["drop after"] = 300_000
    line = refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert f"{server.url}/tiny.zip: the connection broke; 0.3 MB are kept" in line and "go on" in line
    part = tmp_path / ".tiny.download" / "tiny.zip.part"
    have = part.stat().st_size
    assert 200_000 < have <= 300_000 and part.read_bytes() == ARCHIVE[:have] and not (tmp_path / "tiny").exists()
    server.served, server.faults = 0, {}
    result = kunet("data", "fetch", "tiny", "--to", tmp_path)
    assert result.returncode == 0, result
    assert server.asked[-1] == ("tiny.zip", f"bytes={have}-") and server.served == len(ARCHIVE) - have
    assert listing(tmp_path / "tiny") == IMAGES


def test_it_may_break_again_and_again(refused, kunet, server, tiny, tmp_path):
    tiny(checksum=SHA256)
    server.faults["drop after"] = 200_000
    sizes = []
    while len(sizes) < 3:
        refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
        sizes.append((tmp_path / ".tiny.download" / "tiny.zip.part").stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2] < len(ARCHIVE)
    assert kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet").returncode == 0
    assert listing(tmp_path / "tiny") == IMAGES and server.served < 1.3 * len(ARCHIVE)


def test_an_interrupted_download_is_resumed(kunet, server, tiny, tmp_path):
    tiny(checksum=SHA256)
    server.faults = {"drop after": 300_000, "interrupt": True}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which workers of a test runner ignore
    try:
        assert kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet").returncode == 130
    finally:
        signal.signal(signal.SIGINT, before)
    part = tmp_path / ".tiny.download" / "tiny.zip.part"
    have = part.stat().st_size
    assert have and part.read_bytes() == ARCHIVE[:have]
    server.served, server.faults = 0, {}
    assert kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet").returncode == 0
    assert server.served == len(ARCHIVE) - have and listing(tmp_path / "tiny") == IMAGES


@pytest.mark.parametrize("fault", ["ignore range", "no tag"])
def test_a_server_that_cannot_resume(refused, kunet, server, tiny, tmp_path, fault):
    tiny(checksum=SHA256)
    server.faults = {"drop after": 300_000, fault: True}
    line = refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert ("kept" in line) == (fault != "no tag")
    server.served, server.faults = 0, {fault: True}
    assert kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet").returncode == 0
    assert server.served == len(ARCHIVE) and listing(tmp_path / "tiny") == IMAGES


@pytest.mark.parametrize("fault", ["honest", "ignore if-range"])
def test_a_file_that_changed_meanwhile_is_not_mixed(refused, kunet, server, tiny, tmp_path, fault):
    tiny()
    server.faults["drop after"] = 300_000
    refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    new = {name: png(100 + i, 160, 120) for i, name in enumerate(IMAGES)}
    server.files["tiny.zip"], server.faults = zipped(new), {fault: True}
    assert kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet").returncode == 0
    assert listing(tmp_path / "tiny") == new


def test_a_wrong_checksum_keeps_nothing(refused, tiny, tmp_path):
    tiny(checksum="md5:" + "0" * 32)
    line = refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert "has not the checksum published (md5:000" in line and "nothing of it is kept" in line
    assert not left(tmp_path) and not (tmp_path / "tiny").exists()


def test_without_a_checksum_the_first_download_is_trusted(kunet, refused, server, tiny, tmp_path):
    tiny()
    result = kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    ledger = tmp_path / "tiny.json"
    assert "nobody published" in result.stdout and str(ledger) in result.stdout
    before = ledger.read_text()
    (tmp_path / "tiny").rename(tmp_path / "old")
    server.files["tiny.zip"] = zipped({name: png(200 + i, 160, 120) for i, name in enumerate(IMAGES)})
    line = refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert "recorded at the first download" in line
    assert ledger.read_text() == before and not (tmp_path / "tiny").exists()
    for damaged in ("{", "[]", '{"tiny.zip": 3}', '{"tiny.zip": {}}'):
        ledger.write_text(damaged)
        assert "delete it to trust anew" in refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    ledger.unlink()
    assert kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet").returncode == 0


def test_no_file_no_server(refused, server, tiny, tmp_path):
    tiny()
    server.files.clear()
    assert "tiny.zip: the server says 404 Not Found" in refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    tiny(files=(File("http://127.0.0.1:9/tiny.zip"),))
    assert "no connection to the server" in refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert not left(tmp_path)


def encrypted(content: bytes, password: bytes) -> bytes:
    """A zip of 00.png, encrypted as PKWARE's APPNOTE 6.3, section 6.1 says (zipfile reads but does not write it)."""
    keys = [0x12345678, 0x23456789, 0x34567890]
    crc = lambda byte, value: zlib.crc32(bytes([byte]), value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    def update(byte):
        keys[0] = crc(byte, keys[0])
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc(keys[1] >> 24, keys[2])

    def encrypt(byte):
        key = (keys[2] | 2) & 0xFFFF
        update(byte)
        return byte ^ ((key * (key ^ 1)) >> 8 & 0xFF)

    for byte in password:
        update(byte)
    check = zlib.crc32(content).to_bytes(4, "little")
    secret = bytes(encrypt(byte) for byte in bytes(11) + check[3:] + content)
    sizes = check + len(secret).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    common = bytes([20, 0, 1, 0]) + bytes(6) + sizes + (6).to_bytes(2, "little") + bytes(2)
    local = b"PK\3\4" + common + b"00.png" + secret
    central = b"PK\1\2" + bytes([20, 0]) + common + bytes(14) + b"00.png"
    end = b"PK\5\6" + bytes(4) + b"\1\0\1\0" + len(central).to_bytes(4, "little") + len(local).to_bytes(4, "little")
    return local + central + end + bytes(2)


def test_an_encrypted_archive(kunet, refused, tiny, tmp_path):
    content = png(0, 160, 120)
    tiny(encrypted(content, b"secret"), images=1, password="secret")
    result = kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert result.returncode == 0 and listing(tmp_path / "tiny") == {"00.png": content}, result
    tiny(encrypted(content, b"secret"), images=1, password="guess")
    assert "damaged" in refused("data", "fetch", "tiny", "--to", tmp_path / "other", "--quiet")


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def zip_link() -> bytes:
    info = zipfile.ZipInfo("00.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return file.getvalue()


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("a.zip", ARCHIVE[:-1000], "damaged, or no archive"),
        ("a.zip", ARCHIVE[:100_000] + bytes(1000) + ARCHIVE[101_000:], "damaged"),
        ("a.zip", b"<html>please log in</html>", "damaged, or no archive"),
        ("a.zip", zipped({"../out.png": png(0)}), "leads out of its folder"),
        ("a.zip", zipped({"a/../../out.png": png(0)}), "leads out of its folder"),
        ("a.zip", zipped({"/tmp/out.png": png(0)}), "leads out of its folder"),
        ("a.zip", zipped({"..\\out.png": png(0)}), "leads out of its folder"),
        ("a.zip", zip_link(), "a link or device"),
        ("a.zip", zipped({"00.png": bytes(10_000_000)}), "more than 20 times"),
        ("a.zip", zipped({"00.png": b"x", "00.png/01.png": b"y"}), "twice"),
        ("a.tar.gz", tarred(link("00.png", "/etc/passwd")), "a link or device"),
        ("a.tar.gz", tarred(link("00.png", "/etc/passwd", tarfile.LNKTYPE)), "a link or device"),
        ("a.tar.gz", tarred(link("00.png", "", tarfile.FIFOTYPE)), "a link or device"),
        ("a.tar.gz", tarred((tarfile.TarInfo("../out.png"), png(0))), "leads out of its folder"),
        ("a.tar.gz", tarred((tarfile.TarInfo("00.png"), bytes(10_000_000))), "more than 20 times"),
        ("a.tar.gz", tarred((tarfile.TarInfo("00.png"), b"a"), (tarfile.TarInfo("00.png"), b"b")), "twice"),
        ("a.tar.gz", tarred((tarfile.TarInfo("00.png"), png(0)))[:-200], "damaged"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,  # which hold the time
)
def test_evil_and_broken_archives(refused, tiny, tmp_path, name, content, words):
    tiny(content, name)
    line = refused("data", "fetch", "tiny", "--to", tmp_path / "in" / "here", "--quiet")
    assert words in line and "the archive was deleted, nothing is unpacked" in line
    assert not left(tmp_path), "nothing is left, inside or outside"


def test_another_layout_than_expected(refused, tiny, tmp_path):
    tiny(images=13)
    line = refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert "12 clean images, not 13" in line and left(tmp_path) == {".tiny.download/tiny.zip"}


def test_a_full_disk(kunet, refused, server, tiny, tmp_path):
    tiny(checksum=SHA256)
    part = tmp_path / ".tiny.download" / "tiny.zip.part"
    part.parent.mkdir()
    part.symlink_to("/dev/full")  # every write fails as on a full disk
    line = refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert "cannot be written (the disk is full)" in line
    part.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, hard))
    try:
        line = refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written (File too large); 0.2 MB are kept" in line and part.stat().st_size == 250_000
    server.served = 0
    assert kunet("data", "fetch", "tiny", "--to", tmp_path, "--quiet").returncode == 0
    assert server.served == len(ARCHIVE) - 250_000


def test_a_folder_that_is_there_is_never_touched(refused, server, tiny, tmp_path):
    tiny()
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "mine.txt").write_text("mine")
    line = refused("data", "fetch", "tiny", "--to", tmp_path, "--quiet")
    assert "is there already, but not whole (0 clean images, not 12)" in line
    assert listing(tmp_path) == {"tiny/mine.txt": b"mine"} and not server.asked


def test_sets_that_a_person_has_to_fetch(refused, tmp_path):
    line = refused("data", "fetch", "lsdir", "--to", tmp_path)
    assert "by hand" in line and "https://huggingface.co/ofsoundof/LSDIR" in line and str(tmp_path / "lsdir") in line
    assert "no data set 'kodak' (did you mean 'kodak24'?)" in refused("data", "fetch", "kodak")
    assert "required: VERB" in refused("data")


# Checks


@pytest.fixture
def paired(tmp_path, monkeypatch):
    """A whole set of 4 pairs, in the folder of its name."""
    names = dict(clean=r"norain/norain-(\d+)\.png", degraded=r"rain/norain-(\d+)x2\.png")
    monkeypatch.setitem(
        SETS, "wet", DataSet(name="wet", title="Wet", task="derain", use="test", images=4, licence="", page="", **names)
    )  # fmt: skip
    for i in range(4):
        for j, name in enumerate((f"norain/norain-{i}.png", f"rain/norain-{i}x2.png")):
            path = tmp_path / "wet" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(10 * i + j))
    return tmp_path / "wet"


def test_check(kunet, refused, paired, tmp_path):
    for words in ((paired,), ("wet", "--to", tmp_path), (paired.parent / "wet" / ".." / "wet",)):
        result = kunet("data", "check", *words)
        assert result.returncode == 0 and "Wet, 4 pairs; whole" in result.stdout
    damaged, moved = paired / "rain" / "norain-0x2.png", paired / "rain" / "norain-3x2.png"
    content = bytearray(damaged.read_bytes())
    content[2000] ^= 1
    damaged.write_bytes(content)
    (paired / "norain" / "norain-1.png").write_bytes(png(1, 60, 48))
    moved.rename(tmp_path / "away.png")
    line = refused("data", "check", paired, "--quiet")
    assert "3 degraded images, not 4 | 3: has no partner" in line and "norain-0x2.png" in line and "and 1 more" in line
    problems = sets.check(SETS["wet"], paired)
    assert len(problems) == 4 and any("is 60x48 pixels, its partner 64x48" in p for p in problems)
    (paired / "norain" / "norain-01.png").write_bytes(png(0))
    assert "5 clean images, not 4" in sets.check(SETS["wet"], paired)
    (paired / "norain" / "norain-2.png").write_text("no image")
    assert any("damaged, or no image" in p for p in sets.check(SETS["wet"], paired))


def test_check_of_sizes_and_doubles(refused, tiny, tmp_path):
    tiny()
    folder = tmp_path / "tiny"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02d}.png").write_bytes(png(i, 120, 160) if i == 5 else png(i, 160, 120))
    line = refused("data", "check", folder, "--quiet")
    assert "05.png: is 120x160 pixels, not 160x120" in line
    (folder / "copy").mkdir()
    (folder / "copy" / "00.png").write_bytes(png(0, 160, 120))
    assert "is the same image as" in refused("data", "check", folder, "--quiet")


def test_check_of_any_folder(kunet, refused, tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    assert "1 images (no data set goes by this folder's name)" in kunet("data", "check", tmp_path).stdout
    (tmp_path / "b.png").write_bytes(png(0)[:1000])
    assert "b.png: cannot be read as an image" in refused("data", "check", tmp_path)
    assert "no data set" in refused("data", "check", tmp_path / "none")
    assert "kunet data fetch kodak24" in refused("data", "check", "kodak24", "--to", tmp_path)


# Where images are read


def test_recipes_find_sets_by_name(refused, paired, monkeypatch, tmp_path):
    monkeypatch.setenv("KUNET_DATA", str(tmp_path))
    train, held = data.load_photos(["wet"], held_out=1)
    assert len(train) == 3 and len(held) == 1
    assert (train[1] == np.asarray(Image.open(paired / "norain" / "norain-2.png"))).all(), "the clean side alone"
    assert [(a.name, b.name) for a, b in sets.pairs("WET")][3] == ("norain-3x2.png", "norain-3.png")
    assert data.load_pairs(["wet"])[0][0].shape == (48, 64, 6)
    line = refused("train", "--recipe", "quick", "--data", "[kodak24]", "--out", tmp_path / "run", "--quiet")
    assert "kodak24: is not here" in line and "kunet data fetch kodak24" in line and str(tmp_path / "kodak24") in line
    with pytest.raises(ValueError, match="no pairs"):
        sets.pairs("kodak24")
    monkeypatch.chdir(paired)
    (paired / "wet").mkdir()
    (paired / "wet" / "mine.png").write_bytes(png(0))
    assert [p.name for p in data.list_images("wet")] == ["mine.png"], "a folder's path wins over a name"


def test_evaluate_a_set_by_name(kunet, paired, monkeypatch, tmp_path):
    monkeypatch.setenv("KUNET_DATA", str(tmp_path))
    result = kunet("evaluate", "wet", "--quiet")
    assert result.returncode == 0 and "wet: 4 images, sigma 50" in result.stdout, result


def test_a_set_with_an_image_missing_is_not_read(paired, monkeypatch, tmp_path):
    monkeypatch.setenv("KUNET_DATA", str(tmp_path))
    (paired / "norain" / "norain-0.png").rename(paired / "norain" / "norain-9.png")
    with pytest.raises(ValueError, match="not every image has its partner"):
        sets.pairs("wet")
    (paired / "norain" / "norain-9.png").unlink()
    with pytest.raises(ValueError, match="holds 3 of 4 images"):
        sets.clean_images("wet")


def test_where_data_live(monkeypatch, tmp_path):
    monkeypatch.delenv("KUNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sets.root() == tmp_path / "kunet" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sets.root() == tmp_path / ".cache" / "kunet" / "data"
    monkeypatch.setenv("KUNET_DATA", "~/images")
    assert sets.root() == tmp_path / "images" and sets.root(tmp_path / "to") == tmp_path / "to"
