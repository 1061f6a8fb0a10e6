"""Hook of mkdocs: pages link to files outside docs/ as on a code host, and the site holds those files, too.

Markdown files become pages, everything else is copied. `README.md` is the home page of a code host, `index.md` that of
the site: links to the former lead to the latter.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
PAGES = {
    "configs/README.md": "configs.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/LOG.md": "experiments.md",
}
"""Pages of the site by their place in the repository, beside those in docs/."""
PLACES = {page: place for place, page in PAGES.items()}


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages above, and what any page links to."""
    for place, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / place)))
    for page in list(files.documentation_pages()):
        for place in _places(page):
            uri = _uri(place)
            if (ROOT / place).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Rewrites links from places in the repository to places in the site."""
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        place = _resolved(page.file, link[2])
        if place == "README.md":
            return f"{link[1]}{posixpath.relpath('index.md', here or '.')})"
        if not (ROOT / place).is_file():
            return link[0]
        return f"{link[1]}{posixpath.relpath(_uri(place), here or '.')}{link[3]}"

    return LINK.sub(rewritten, markdown)


def _places(page: File) -> list[str]:
    """What a page links to, by its place in the repository."""
    return [_resolved(page, link[2]) for link in LINK.finditer(page.content_string)]


def _resolved(page: File, target: str) -> str:
    """The place in the repository that a relative link of a page leads to."""
    place = PLACES.get(page.src_uri, f"docs/{page.src_uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), target))


def _uri(place: str) -> str:
    """Where the site has a file of the repository."""
    if place == "README.md":
        return "index.md"
    return PAGES.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else f"files/{place}")
