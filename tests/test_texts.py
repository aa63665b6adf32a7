"""README and docs/: what they link to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def links(text: Path) -> list[str]:
    """Links and pictures of a text that are no web addresses."""
    return re.findall(r"\]\((?!https?://)([^)\s#]+)", text.read_text())


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_lead_to_files(text):
    assert not [link for link in links(text) if not (text.parent / link).exists()]


def test_links_are_seen():
    found = links(TEXTS[0])
    assert any(link.startswith("docs/") for link in found)
    assert any(link.endswith(".png") for link in found)
