r"""Whether an answer equals its gold. Runs in the worker process only: everything that touches SymPy may hang or grow.

Lists and chains of equations are taken apart here, so that Math-Verify sees single values: by itself it reads any
equation as its right side.
"""

import re
from itertools import pairwise

from forklight.verify.math.expression import equal_values, near
from forklight.verify.math.intervals import as_interval
from forklight.verify.math.latex import unwrap_text
from forklight.verify.math.numbers import join_thousands, read_number
from forklight.verify.math.quick import is_words, quick
from forklight.verify.math.structure import Items, is_name, is_sum_of_names, split_items, split_relation
from forklight.verify.math.units import split_unit

MAX_ITEMS = 200

_SET_OR_RELATION = re.compile(r"\\(?:begin|cup|cap|setminus|mathbb|in|le|ge|ne)(?![A-Za-z])|[<>]|\\\{.*(?:\||\\mid|:)")
_EQUALITIES = {"=", r"\approx"}
_COMMAND = re.compile(r"\\[A-Za-z]+")
_RUN = re.compile("[A-Za-z]{2}")
_LETTER = re.compile("[A-Za-z]")
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])\s*")


_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_DERIVATIVE = re.compile(
    r"\\frac\s*\{\s*(?:d|\\partial)(?![A-Za-z]{2})[^{}]*\}\s*\{\s*(?:d|\\partial)|[A-Za-z]'|\\d?dot(?![A-Za-z])"
)
_APPLIED = re.compile(r"[A-Za-z]\s*\([A-Za-z]\)")
_MATRIX = re.compile(r"\\begin\{(pmatrix|bmatrix|array\}\{c+)\}(.*)\\end\{(?:pmatrix|bmatrix|array)\}", re.DOTALL)


def equal(gold: str, answer: str) -> bool:
    """Whether the answer equals the gold. Both in the common spelling and within the caps.

    Raises:
        GoldNotUnderstood: If the gold is needed as an expression and cannot be parsed.
    """
    gold, answer = unwrap_text(gold), unwrap_text(answer)
    decided = quick(gold, answer)
    if decided is not None:
        return decided.equal
    gold, answer = join_thousands(gold), join_thousands(answer)
    gold, answer = as_interval(gold, answer), as_interval(answer, gold)
    gold, answer = _MEMBER.sub("", gold, count=1), _MEMBER.sub("", answer, count=1)
    if "[" not in gold and r"\begin" not in gold:
        answer = _vector(answer)
    wanted, found = _with_signs(split_items(gold)), _with_signs(split_items(answer))
    if [items.brackets for items in (wanted, found)].count((r"\{", r"\}")) == 1 and (
        r"\emptyset" in (*wanted.items, *found.items)
    ):
        return False  # the set of the empty set
    if len(wanted.items) == len(found.items) > 1:
        return _equal_lists(wanted, found)
    if _is_equation(wanted) or _is_equation(found):
        return _equal_relations(gold, answer)
    if len(wanted.items) != len(found.items):
        # A list is no value. Only a set, an interval or a vector may be written in another form.
        return bool(_SET_OR_RELATION.search(gold) or _SET_OR_RELATION.search(answer)) and equal_values(gold, answer)
    if (wanted.items[0], found.items[0]) != (gold, answer):
        return equal(wanted.items[0], found.items[0])
    return _equal_relations(gold, answer)


def last_value(text: str) -> str | None:
    r"""The last exact value of a derivation: 11 of `x = 5+5+1 = 11 \approx 11.0`; None if the text is no such chain.

    All that comes before must be names and terms without unknowns, so of `x^2-1 = 0` there is none.
    """
    parts, signs = split_relation(text)
    if "=" not in signs or not set(signs) <= _EQUALITIES:
        return None
    exact = parts[: signs.index(r"\approx") + 1] if r"\approx" in signs else parts
    known = all(is_name(part) or not _LETTER.search(_COMMAND.sub("", part)) for part in exact[:-1])
    return exact[-1] if known and len(exact) > 1 else None


def _is_equation(listed: Items) -> bool:
    return len(listed.items) == 1 and listed.brackets is None and "=" in split_relation(listed.items[0]).signs


def _with_signs(listed: Items) -> Items:
    r"""Writes `a \pm b` as the two values that it stands for."""
    items: list[str] = []
    for item in listed.items:
        twofold = item.count(r"\pm") == 1 and r"\mp" not in item and r"\{" not in item
        items += [item.replace(r"\pm", sign).removeprefix("+").strip() for sign in "+-"] if twofold else [item]
    return Items(tuple(items), listed.brackets)


def _equal_lists(gold: Items, answer: Items) -> bool:
    """Compares lists of the same length: in order within round or square brackets, else in any order."""
    if len(gold.items) > MAX_ITEMS:
        return False
    kinds = {gold.brackets, answer.brackets}
    if len(kinds) == 2 and kinds not in ({None, ("(", ")")}, {None, (r"\{", r"\}")}):
        return False
    named = [[split_relation(item).signs for item in listed.items] for listed in (gold, answer)]
    left_out = all(named[0]) and not any(named[1])  # `AB=4, CD=5` answered by `4, 5`
    if all(named[1]) and not any(named[0]) and gold.brackets == ("(", ")"):
        return all(map(equal, gold.items, _in_order_of_names(answer.items)))
    names_dropped = left_out and len({split_relation(item).parts[0] for item in gold.items}) > 1
    if names_dropped or kinds - {None, (r"\{", r"\}")}:
        return all(map(equal, gold.items, answer.items))
    left = list(answer.items)
    for item in gold.items:
        match = next((other for other in left if equal(item, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _equal_relations(gold: str, answer: str) -> bool:
    """Compares single values, either of which may stand in an equation `name = value`."""
    wanted, found = split_relation(gold), split_relation(answer)
    if found.signs and is_words(gold) and _RUN.search(found.parts[0]):
        return False  # of `No = Yes` neither is the name of the other
    if found.signs and not wanted.signs and set(found.signs) <= _EQUALITIES:
        return _equal_chain(gold, found.parts, found.signs)
    if wanted.signs and not found.signs and set(wanted.signs) <= _EQUALITIES:
        named = [number for number, part in enumerate(wanted.parts[:-1]) if is_name(part)]
        if named:
            return any(equal(part, answer) for part in wanted.parts[named[-1] + 1 :])
        return _numeric(wanted.parts) and any(equal(part, answer) for part in wanted.parts)
    if wanted.signs and found.signs and set(wanted.signs) | set(found.signs) <= _EQUALITIES:
        heads = wanted.parts[0], found.parts[0]
        if any(
            _DERIVATIVE.search(text) or _APPLIED.fullmatch(head)
            for text, head in zip((gold, answer), heads, strict=True)
        ):
            same = _same_text(*heads) and len(wanted.parts) == len(found.parts) == 2
            return same and equal(wanted.parts[1], found.parts[1])
        if _same_name(wanted.parts[0], found.parts[0]):
            return equal(wanted.parts[-1], _chain(found.parts[1:], found.signs[1:]))
        if _numeric(wanted.parts):
            return all(any(equal(part, other) for part in wanted.parts) for other in found.parts)
        if len(found.signs) > len(wanted.signs):
            return False  # of `6 = x = 5` only the last equation would be read
    if found.signs and not wanted.signs and not _SET_OR_RELATION.search(gold) and split_items(gold).brackets is None:
        return False  # a relation is no value
    return equal_values(gold, answer)


def _numeric(parts: tuple[str, ...]) -> bool:
    return all(read_number(split_unit(part)[0]) for part in parts)


def _chain(parts: tuple[str, ...], signs: tuple[str, ...]) -> str:
    """The text of a chain of relations, put together again."""
    return parts[0] + "".join(f"{sign} {part}" for sign, part in zip(signs, parts[1:], strict=True))


def _equal_chain(gold: str, parts: tuple[str, ...], signs: tuple[str, ...]) -> bool:
    r"""A gold without equation against `name = value`, `name = value = value` or `value \approx decimal`.

    Every value of the chain has to be right: `\sqrt{4} = 2` is 2, but neither `6 = 5` nor `x = 6 = 5` is 5. What
    follows `\approx` has to be within 1 % of the value before it.
    """
    if len(parts) == 2 and is_name(parts[1]) and not is_name(parts[0]) and not is_name(gold):
        parts = parts[::-1]  # 5 = x
    values = list(parts)
    if is_name(parts[0]) or is_sum_of_names(parts[0]):
        if len(parts) == 2:
            return equal(gold, parts[1])
        while len(values) > 1 and (is_name(values[0]) or is_sum_of_names(values[0])):
            values, signs = values[1:], signs[1:]
    exact = len(values) - sum(sign == r"\approx" for sign in signs)
    if exact < 1 or any(sign == r"\approx" for sign in signs[: exact - 1]):
        return False
    return all(equal(gold, value) for value in values[:exact]) and all(
        near(before, after) for before, after in pairwise(values[exact - 1 :])
    )


def _same_text(one: str, other: str) -> bool:
    return re.sub(r"\s", "", one) == re.sub(r"\s", "", other)


def _vector(text: str) -> str:
    """Writes a matrix of one row or column as `(a, b)`."""
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match[2]:
        return text
    rows = [row.strip() for row in re.split(r"\\\\", match[2]) if row.strip()]
    cells = rows if not any("&" in row for row in rows) else rows[0].split("&") if len(rows) == 1 else []
    return f"({', '.join(cell.strip() for cell in cells)})" if len(cells) > 1 else text


def _in_order_of_names(items: tuple[str, ...]) -> list[str]:
    """The items of `y=2, x=1` without their names, in the order of the alphabet if these are neighbours in it."""
    split = [split_relation(item) for item in items]
    names = [relation.parts[0] for relation in split]
    values = [_chain(relation.parts[1:], relation.signs[1:]) for relation in split]
    if "".join(sorted(names)) in _ALPHABET and len(set(names)) == len(names):
        values = [value for _, value in sorted(zip(names, values, strict=True))]
    return values


def _same_name(name: str, other: str) -> bool:
    return is_name(name) and re.sub(r"\s", "", name) == re.sub(r"\s", "", other)
