"""A hook of mkdocs: what pages link to outside of docs/ is part of the site, so that links work in the repository too.

README.md stands for the site's first page. ARCHITECTURE.md and its like become pages; other files are copied.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md"} | {f"{name}.md": f"{name.lower()}.md" for name in ("ARCHITECTURE", "CONTRIBUTING")}
PAGES["CHANGELOG.md"] = "changelog.md"

_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.S | re.M)


def on_files(files: Files, config: Any) -> Files:
    """Adds the project's own pages, and the other files that pages link to, with what these link to."""
    from mkdocs.structure.files import File

    waiting = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    added = set(waiting) | {"README.md"}
    links = [target for page, text in waiting.items() for target in _targets(page, text)]
    links += [page for page, place in PAGES.items() if place != "index.md"]
    while links:
        target = links.pop()
        if target in added or target.startswith("docs/") or not (ROOT / target).is_file():
            continue
        added.add(target)
        if target.endswith(".md"):
            text, place = (ROOT / target).read_text(encoding="utf-8"), PAGES.get(target, target)
            files.append(File.generated(config, place, content=_moved(text, target, place)))
            links += _targets(target, text)
        else:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def _targets(page: str, text: str) -> list[str]:
    """Returns the places in the repository that a page links to."""
    return [_in_repository(page, link) for _, link, _, _ in _LINK.findall(_CODE.sub("", text))]


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links that leave docs/ into links of the site."""
    place = page.file.src_uri
    if page.file.generated_by:
        return markdown
    # Without the comment that generated pages begin with: a page's name in the navigation is its first line.
    return _moved(re.sub(r"\A<!--.*?-->\s*", "", markdown), f"docs/{place}", place)


def _in_repository(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _moved(text: str, page: str, place: str) -> str:
    """Returns a page's text with links as they are in the site.

    Args:
        text: The page in Markdown.
        page: Its path in the repository.
        place: Its path in the site.
    """

    def link(found: re.Match[str]) -> str:
        target = _in_repository(page, found[2])
        target = PAGES.get(target, target.removeprefix("docs/"))
        return f"{found[1]}{posixpath.relpath(target, posixpath.dirname(place) or '.')}{found[3] or ''}{found[4]}"

    parts = _CODE.split(text)
    return "".join(_plain_bars(part) if number % 2 else _LINK.sub(link, part) for number, part in enumerate(parts))


def _plain_bars(code: str) -> str:
    """Returns code as tables of the site take it: git forges want a backslash before a bar, the site shows it."""
    return code if "```" in code else code.replace("\\|", "|")
