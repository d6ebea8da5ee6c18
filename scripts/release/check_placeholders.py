"""What only the owner can fill in before the pack is published. Fails while any of it is missing.

`python3 scripts/release/check_placeholders.py`. All of it is in pyproject.toml: `[project.urls] Repository`, and in
`[tool.comfy]` `PublisherId`, `Icon` and `Banner`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[2]


def unfilled(project: Mapping[str, Any]) -> list[str]:
    """What is missing, in sentences. `project`: the content of pyproject.toml."""
    comfy, urls = project["tool"]["comfy"], project["project"].get("urls", {})
    problems = []
    if not urls.get("Repository", "").startswith("https://github.com/"):
        problems.append("[project.urls] Repository: write the repository's address, https://github.com/….")
    if not comfy.get("PublisherId"):
        problems.append("[tool.comfy] PublisherId: write the publisher that you registered on registry.comfy.org.")
    for name, file in (("Icon", "icon.svg"), ("Banner", "banner.svg")):
        if not comfy.get(name, "").startswith("https://"):
            problems.append(f"[tool.comfy] {name}: write the public address of web/docs/images/{file}.")
    return problems


def main() -> None:
    problems = unfilled(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    sys.exit("\n".join(problems) if problems else None)


if __name__ == "__main__":
    main()
