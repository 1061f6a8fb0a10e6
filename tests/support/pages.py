"""The Markdown pages of the project: their texts, tables, code blocks, headings and links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"
CONFIGS = ROOT / "configs" / "README.md"
PAGES = [README, *DOCS, CONFIGS, ROOT / ".github" / "CONTRIBUTING.md"]


def doc(name):
    """The text of a page in docs/."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def tables(heading, text):
    """The rows of all tables with such a head, as lists of cells without backquotes."""
    found = re.findall(rf"^\| {re.escape(heading)}.*\n\|[ |-]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = "".join(found).splitlines()
    return len(found), [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def table(heading, text):
    """The rows of the only one."""
    count, rows = tables(heading, text)
    assert count == 1
    return rows


def blocks(language, text):
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def named_block(name, text):
    """The code block whose first line is a comment with the name of its file."""
    (found,) = [block for block in re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
                if block.startswith(f"# {name}\n")]  # fmt: skip
    return found


def commands(text):
    """The `forklight` commands, each on one line."""
    return [
        command
        for block in blocks("bash", text)
        for command in block.replace("\\\n", " ").splitlines()
        if command.startswith("forklight ")
    ]


def without_code(text):
    """The text without code blocks and code spans: what looks like Markdown there is none."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def links(text):
    """The targets of relative links and images."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    return [target for target in targets if "://" not in target and not target.startswith("mailto:")]


def anchors(text):
    """The anchors of the headings, as code hosts and the site make them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads]
