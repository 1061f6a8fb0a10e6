r"""Finds the final answer in what a model wrote: the last `\boxed{}` or `\fbox{}` after the thought.

The rules, each of which closes a way to be paid for something else than one final answer:

- Only the text after the last `</think>` counts. A `<think>` without its end means that there is no answer.
- The last box counts, braces matched, with blanks allowed between command and brace. If the last box is not closed,
  or has no brace, there is no answer; an earlier box does not step in.
- Boxes that stand side by side, with nothing between them but blanks, separators and "and" / "or", are one list: for
  the gold 5, `\boxed{6}, \boxed{5}` is wrong and `\boxed{5} ... \boxed{5}` is right. So are boxes within one formula,
  words in `\text{}` between them or not. With any other text between them only the last counts, so a corrected answer
  is read as its correction. Repeated boxes count once.
- A doubled backslash, `\\boxed`, is one that was escaped twice.
- A box with `\approx` between it and the one before is its approximation; one with a question mark behind it is
  doubted, and no answer.
- `<|begin_of_box|>5<|end_of_box|>` is a box too.
- Only the last 20,000 characters are searched.
"""

import re
from typing import NamedTuple

WINDOW = 20_000
"""Characters at the end of the answer that are searched."""

_TOKEN = re.compile(r"\\{1,2}(?:boxed|fbox)(?![A-Za-z])\s*(?P<open>\{?)|\\.|[{}]|\$\$?", re.DOTALL)
_COMMAND = re.compile(r"\\{1,2}(?:boxed|fbox)(?![A-Za-z])\s*(?=\{)")
_APPROXIMATELY = re.compile(r"[\s$]*(?:\\approx(?![A-Za-z])|≈)[\s$]*")
_QUESTION = re.compile(r"[\s$*]*(?:\\[)\]])?[\s$*]*\?")
_BOX_TOKENS = (("<|begin_of_box|>", r"\boxed         {"), ("<|end_of_box|>", "}             "))
"""Of GLM, and boxes of the same lengths."""
_FORMULA = {r"\(": True, r"\[": True, r"\)": False, r"\]": False}
_NO_WORDS = re.compile(r"(?:\\(?:text|mbox)\s*\{[^{}$\n]*\}|\\[A-Za-z]+|[^A-Za-z$\n]|[A-Za-z](?![A-Za-z]{2}))*+")
_BETWEEN = re.compile(
    r"(?:[\s,;&$]|\\[,;:!()\[\]\\]|\\q?quad(?![A-Za-z])|(?:\\text\s*\{\s*)?\b(?:and|or)\b(?:\s*\})?)*+", re.IGNORECASE
)


class Extraction(NamedTuple):
    """An extracted answer, or why there is none."""

    answer: str | None
    """The content of the box."""
    reason: str
    """Why there is no answer; empty if there is one."""


class _Box(NamedTuple):
    start: int
    """Where the command begins."""
    content: int
    """Where the content begins."""
    end: int
    """Where the closing brace stands; -1 if the box is not closed."""
    formula: int
    """Number of the formula it stands in; 0 outside of formulas."""


def after_thought(text: str) -> str | None:
    """Returns the text after the last `</think>`; None if a thought is begun but not ended."""
    final = text.rpartition("</think>")[2]
    return None if "<think>" in final else final


def extract_box(text: str) -> Extraction:
    r"""Returns the content of the last box (the joined contents, if several stand side by side).

    Runs in time linear in the length of the text.

    Example:
        >>> extract_box(r"So it is \boxed{\frac{1}{2}}.").answer
        '\\frac{1}{2}'
        >>> extract_box(r"\boxed{5} and then \boxed{6").reason
        'box not closed'
    """
    final = after_thought(text)
    if final is None:
        return Extraction(None, "thought not ended")
    final = _as_boxes(final[-WINDOW:])
    boxes = _boxes(final)
    outer = _outermost(boxes)
    if not outer:
        return Extraction(None, "no box")
    if boxes[outer[-1]].end < 0:
        return Extraction(None, "box not closed")
    contents = _last_contents(final, boxes, outer)
    if not all(contents):
        return Extraction(None, "empty box")
    if _QUESTION.match(final, boxes[outer[-1]].end + 1):
        return Extraction(None, "box in doubt")
    return Extraction(", ".join(contents), "")


class Boxes(NamedTuple):
    """The boxes of a text."""

    total: int
    last: str | None
    """The content of the last one to begin; None if it is not closed, or there is none."""
    end: int
    """The place behind the last one; the text's length if there is none."""


def find_boxes(text: str) -> Boxes:
    """Counts the boxes of a text, nested ones too, and looks at the last one to begin."""
    boxes = _boxes(_as_boxes(text))
    if not boxes or boxes[-1].end < 0:
        return Boxes(len(boxes), None, len(text))
    return Boxes(len(boxes), text[boxes[-1].content : boxes[-1].end], boxes[-1].end + 1)


def first_box_end(text: str) -> int:
    r"""The place behind the first box of a text that is closed, boxes in it included; -1 if there is none.

    Example:
        >>> first_box_end(r"So \boxed{\boxed{5}}, or \boxed{6}.")
        20
    """
    return next((box.end + 1 for box in _boxes(_as_boxes(text)) if box.end >= 0), -1)


def _as_boxes(text: str) -> str:
    """Writes a model's own box tokens as boxes; every place stays where it is."""
    for token, box in _BOX_TOKENS:
        text = text.replace(token, box)
    return text


def _boxes(text: str) -> list[_Box]:
    """All boxes in the order in which they begin, in one pass with a stack of open braces."""
    boxes: list[_Box] = []
    open_braces: list[int | None] = []  # the number of the box that the brace opens, None for a plain brace
    formulas, inside = 0, False
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark == "}":
            number = open_braces.pop() if open_braces else None
            if number is not None:
                boxes[number] = boxes[number]._replace(end=token.start())
        elif mark == "{":
            open_braces.append(None)
        elif mark[0] == "$" or mark in _FORMULA:
            inside = _FORMULA.get(mark, not inside)
            formulas += inside
        elif token.group("open") is not None:
            if token.group("open"):
                open_braces.append(len(boxes))
            boxes.append(_Box(token.start(), token.end(), -1, formulas if inside else 0))
    return boxes


def _outermost(boxes: list[_Box]) -> list[int]:
    """The numbers of the boxes that stand in no other box."""
    kept: list[int] = []
    for number, box in enumerate(boxes):
        if not kept or boxes[kept[-1]].end < box.start:
            kept.append(number)
    return kept


def _unboxed(text: str, boxes: list[_Box], number: int) -> str:
    r"""A box's content without the commands of boxes in it: `\boxed{5}` is 5, of `6, \boxed{5}` nothing is lost."""
    box = boxes[number]
    for inner in boxes[number + 1 :]:
        around = text[box.content : inner.start], text[inner.end + 1 : box.end]
        if not box.content <= inner.start <= inner.end < box.end or any(part.strip() for part in around):
            break
        box = inner
    return _COMMAND.sub("", text[box.content : box.end].strip())


def _last_contents(text: str, boxes: list[_Box], outer: list[int]) -> list[str]:
    """The distinct contents of the last box and of the boxes that belong to it, in order."""
    contents: dict[str, None] = {}
    after: _Box | None = None
    decimal = ""  # an approximation of the box before it
    for number in reversed(outer):
        box = boxes[number]
        if after is not None and box.end >= 0 and _APPROXIMATELY.fullmatch(text, box.end + 1, after.start):
            decimal = rf" \approx {contents.popitem()[0]}"
        elif after is not None and not _belong(text, box, after):
            break
        contents[_unboxed(text, boxes, number) + decimal] = None
        after, decimal = box, ""
    return list(contents)[::-1]


def _belong(text: str, box: _Box, after: _Box) -> bool:
    """Whether a box and the one after it are one list."""
    if not 0 <= box.end < after.start:
        return False
    if _BETWEEN.fullmatch(text, box.end + 1, after.start):
        return True
    return 0 < box.formula == after.formula and _NO_WORDS.fullmatch(text, box.end + 1, after.start) is not None
