"""The documents: their links and commands lead to something that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "web" / "docs").glob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_commands_lead_to_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    commands = re.findall(r"python3? (scripts/\S+\.py)", text)
    paths = [document.parent / link for link in links] + [ROOT / command for command in commands]
    assert [str(path) for path in paths if not path.exists()] == []


def test_the_page_of_the_architecture_names_files_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:nodes|dreamcache_core)/[\w/]+\.py)`", text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
