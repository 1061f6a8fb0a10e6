"""The pages: their links lead somewhere, the site lists them all, and the README stays short."""

import ast
import re

import pytest
import yaml
from layers import LEVEL
from pages import DOCS, PAGES, README, ROOT, anchors, doc, links, table

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def entries(nav):
    """The pages of a part of the navigation, in order."""
    for item in nav:
        (target,) = item.values()
        yield from [target] if isinstance(target, str) else entries(target)


def name(page):
    return page.relative_to(ROOT).as_posix()


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    found = links(page.read_text())
    for link in found:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside of the repository"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}: no such heading"
    assert found or name(page) in ("docs/api.md", "docs/architecture.md")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_headings_of_a_page_have_anchors_of_their_own(page):
    found = anchors(page.read_text())
    assert found
    assert len(set(found)) == len(found)


def test_the_site_lists_every_page():
    listed = list(entries(SITE["nav"]))
    assert len(set(listed)) == len(listed)
    assert {page.name for page in DOCS} <= set(listed)
    hook = (ROOT / "docs" / "links.py").read_text()
    assert all(f'"{other}"' in hook for other in set(listed) - {page.name for page in DOCS})


def test_the_home_page_and_the_readme_link_every_page():
    others = {page.name for page in DOCS} - {"index.md"}
    assert {link for link in links(doc("index")) if "/" not in link} == others
    assert {link.removeprefix("docs/") for link in links(README.read_text()) if link.startswith("docs/")} >= others


def test_the_files_that_contributing_names_are_there():
    rows = table("what | where", (ROOT / ".github" / "CONTRIBUTING.md").read_text())
    named = [place for _, places in rows for place in places.split(", ")]
    assert [place for place in named if not (ROOT / "forklight" / place).exists()] == []
    assert len(named) > 40


def rows_of_cases(text):
    """The rows of the table of cases, cell by cell."""
    (body,) = re.findall(r"^\| case \|.*\n\|[ |-]+\n((?:\|.*\n?)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in body.splitlines()]


def test_the_table_of_cases_is_that_of_the_code():
    shown = rows_of_cases(doc("passes"))
    assert len(shown) == 8
    module = ast.parse((ROOT / "forklight" / "algo" / "schedule.py").read_text())
    assert rows_of_cases(ast.get_docstring(module) or "") == shown


def test_the_site_needs_no_network():
    assert SITE["theme"]["font"] is False
    plugins = {plugin if isinstance(plugin, str) else next(iter(plugin)) for plugin in SITE["plugins"]}
    assert plugins == {"search", "mkdocstrings"}


def test_a_step_is_traced_through_files_that_exist_each_named_once():
    rows = table("| file |", doc("architecture"))
    files = [file for _, file, _ in rows]
    assert len(files) > 30
    assert len(set(files)) == len(files)
    assert [file for file in files if not (ROOT / "forklight" / file).is_file()] == []
    assert sum(mark == "→" for mark, _, _ in rows) <= 7


def test_every_layer_of_the_rule_has_a_row():
    layers = table("parts |", doc("architecture"))
    named = {part.strip() for parts, _ in layers for part in re.split(r",(?: then)?", parts)}
    assert named == {part for part in LEVEL if not part.startswith("__")}
