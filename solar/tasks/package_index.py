"""Debian's package index as data: tags to synopsis, and sections as topics.

The index changes with each point release, so the first reading freezes the few fields used into
CACHE/package_index/packages.jsonl.xz; its first line has the date. Later readings use that copy
until somebody deletes it. Descriptions are their maintainers', under each package's free licence.
"""

import contextlib
import datetime
import json
import lzma
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from solar.errors import SolarError
from solar.packages import cache_dir
from solar.tasks.task import Source

# Sections that say what a program is for; the others say in which language it is written.
TOPICS = (
    "admin", "comm", "database", "editors", "electronics", "fonts", "games", "graphics", "hamradio",
    "mail", "math", "net", "science", "sound", "text", "utils", "video", "web",
)  # fmt: skip
LEAST_TAGS = 4
APT_LISTS = Path("/var/lib/apt/lists")
APT_HELPER = "/usr/lib/apt/apt-helper"


def read_index() -> tuple[list[dict[str, Any]], str]:
    """The frozen packages (name, source, section, tags, synopsis) and the date of freezing.

    Raises SolarError with the command to run when there is neither a frozen copy nor an index.
    """
    frozen = cache_dir() / "package_index" / "packages.jsonl.xz"
    if not frozen.is_file():
        _freeze(frozen)
    first, *lines = lzma.decompress(frozen.read_bytes()).decode("utf-8").splitlines()
    return [json.loads(line) for line in lines], json.loads(first)["frozen"]


def _freeze(target: Path) -> None:
    lists = sorted(APT_LISTS.glob("*_main_binary-*_Packages*"))
    if not lists:
        raise SolarError(
            f"the Debian package index is not in {APT_LISTS}: run `apt-get update` and again, or "
            f"copy {target} from a Debian machine"
        )
    # apt may keep the lists in any compression; its own helper reads them all.
    command = [APT_HELPER, "cat-file", *map(str, lists)]
    try:
        text = subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8")
    except (OSError, subprocess.CalledProcessError) as error:
        raise SolarError(f"cannot read the Debian package index: {error}") from error
    packages = parse_index(text)
    head = json.dumps({"frozen": datetime.date.today().isoformat(), "packages": len(packages)})
    body = "\n".join([head, *(json.dumps(package) for package in packages)]) + "\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(lzma.compress(body.encode("utf-8"), preset=1))
        os.replace(scratch, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)


def parse_index(text: str) -> list[dict[str, Any]]:
    """Packages of an index in deb822 form, by name; of several versions the first tagged one stays.

    The records of security and stable updates repeat a package without its tags.
    """
    packages: dict[str, dict[str, Any]] = {}
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): ?(.*(?:\n[ \t].*)*)", block, re.MULTILINE))
        synopsis = (fields.get("Description") or fields.get("Description-en") or "").split("\n")[0]
        if "Package" not in fields or "Section" not in fields or not synopsis:
            continue
        tags = [tag.strip() for tag in fields.get("Tag", "").split(",")]
        known = packages.get(fields["Package"])
        if known is not None and (known["tags"] or "Tag" not in fields):
            continue
        packages[fields["Package"]] = {
            "name": fields["Package"],
            "source": fields.get("Source", fields["Package"]).split(" ")[0],
            "section": fields["Section"],
            "tags": [tag for tag in tags if tag],
            "synopsis": synopsis,
        }
    return [packages[name] for name in sorted(packages)]


def package_synopses() -> Source:
    """Slots to a sentence: packages with at least four tags; name, section, tags, synopsis."""
    packages, frozen = read_index()
    seen: set[str] = set()
    rows = []
    for package in packages:
        if len(package["tags"]) >= LEAST_TAGS and package["synopsis"] not in seen:
            seen.add(package["synopsis"])
            rows.append({**package, "tags": ", ".join(package["tags"])})
    return Source({"all": rows}, None, f"Debian package index of {frozen}, tagged packages")


def package_topics() -> Source:
    """Synopsis to section, one package per source package, in 18 topical sections."""
    packages, frozen = read_index()
    seen: set[str] = set()
    rows = []
    for package in packages:
        if package["section"] in TOPICS and package["source"] not in seen:
            seen.add(package["source"])
            rows.append({**package, "text": package["synopsis"], "label": package["section"]})
    return Source({"all": rows}, None, f"Debian package index of {frozen}, topical sections")
