"""Links between the Markdown pages of the repository: their files, folders and headings are there.

Sphinx checks links among the site's pages. This checks those from and to all others too, README.md say, and those to
files that are no pages: as a code host resolves them. On the site a page from outside of docs/ is the one that includes
it, or else the file itself, to be downloaded, as are all other files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[1]
# Folders at the top that have pages of ours.
_PLACES = (".", "benchmarks", "conf", "docs", "outputs", "src", "tasks", "tests")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")

# Pages from outside of docs/ -> the page of the site that includes them.
_INCLUDED = {"benchmarks/README.md": "benchmarks.md", "tasks/README.md": "reference/task-data.md"}

log = logging.getLogger(__name__)


def pages(root: Path = ROOT) -> list[Path]:
    """Every Markdown page of the repository; of `outputs` the one that is checked in."""
    found = [*root.glob("*.md"), *(root / "outputs").glob("*.md")]
    for place in _PLACES:
        if place not in (".", "outputs"):
            found += (root / place).rglob("*.md")
    return sorted(found)


def broken(root: Path = ROOT) -> list[str]:
    """A line for each link that leads nowhere: page, line, link and why."""
    return [
        f"{page.relative_to(root)}:{line}: {link}: {why}"
        for page in pages(root)
        for line, link in links(page.read_text(encoding="utf-8"))
        if (why := _fault(page, link, root)) is not None
    ]


def links(text: str) -> Iterator[tuple[int, str]]:
    """Line and address of each link or picture; code is left out."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield from ((number, match[1]) for match in _LINK.finditer(re.sub(r"`[^`]*`", "`", line)))


def _fault(page: Path, link: str, root: Path) -> str | None:
    if re.match(r"[a-z][a-z0-9+.-]*:", link):
        return None  # on the network: `make linkcheck`
    address, _, anchor = link.partition("#")
    target = (page.parent / unquote(address)).resolve() if address else page
    if not target.is_relative_to(root):
        return "outside the repository"
    if not target.exists():
        return "no such file"
    if anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text(encoding="utf-8"))):
        return "no such heading"
    return None


def anchors(text: str) -> set[str]:
    """The anchors that a code host, and MyST likewise, gives the headings of a page."""
    found: dict[str, int] = {}
    names = set()
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if heading is None or fenced:
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(name if count == 0 else f"{name}-{count}")
    return names


def on_the_site(text: str, page: Path, root: Path = ROOT) -> str:
    """A page of docs/ with its links to pages from outside of it as MyST takes them."""

    def moved(match: re.Match[str]) -> str:
        address, _, anchor = match[1].partition("#")
        target = (page.parent / unquote(address)).resolve()
        if target.suffix != ".md" or ":" in address or not target.is_relative_to(root):
            return match[0]
        name = target.relative_to(root).as_posix()
        if name in _INCLUDED:
            below = os.path.relpath(root / "docs" / _INCLUDED[name], page.parent)
            return match[0].replace(match[1], f"{below}#{anchor}" if anchor else below)
        return match[0] if name.startswith("docs/") else match[0].replace(match[1], f"path:{address}")

    return _LINK.sub(moved, text)


def _rewrite(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = on_the_site(source[0], Path(app.srcdir) / f"{name}.md")


def _report(app: Sphinx) -> None:
    for line in broken():
        log.warning(line)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _report)
    app.connect("source-read", _rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
