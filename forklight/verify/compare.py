r"""Whether an answer equals its gold. Runs in the worker process only: everything that touches SymPy may hang or grow.

Lists and chains of equations are taken apart here, so that Math-Verify sees single values, and its verdict is checked
behind: it compares to six decimal places absolutely, which makes 10^{-20} equal 10^{-30}, reads any equation as its
right side, and drops the case of letters.
"""

import re
from collections import Counter
from itertools import pairwise

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]
from math_verify import LatexExtractionConfig, parse, verify  # type: ignore[import-untyped]

from forklight.verify.latex import unwrap_text
from forklight.verify.numbers import has_prose, read_number, split_unit
from forklight.verify.quick import quick
from forklight.verify.structure import Items, is_name, split_items, split_relation

MAX_ITEMS = 200

# Units are taken off before (`split_unit`): Math-Verify's own table makes `2s` 2 and `a + b + c` unreadable.
_NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
_CONFIG = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=_NORMALIZATION)]
_TOLERANCE = sympy.Float("1e-6", 50)
_EXACT = sympy.Float("1e-40", 50)
_JUXTAPOSED = re.compile(r"[0-9.]\s+[0-9]|[0-9]_|[^\x00-\x7f]")
_SET_OR_RELATION = re.compile(r"\\(?:begin|cup|cap|setminus|mathbb|in|le|ge|ne)(?![A-Za-z])|[<>]|\\\{.*(?:\||\\mid|:)")
_EQUALITIES = {"=", r"\approx"}
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_WORD_OR_COMMAND = re.compile(r"\\text\{[^{}]*\}|\\[A-Za-z]+")


class GoldNotUnderstood(Exception):
    """The gold cannot be parsed, so no answer can be judged by it."""


def equal(gold: str, answer: str) -> bool:
    """Whether the answer equals the gold. Both in the common spelling and within the caps.

    Raises:
        GoldNotUnderstood: If the gold is needed as an expression and cannot be parsed.
    """
    gold, answer = unwrap_text(gold), unwrap_text(answer)
    decided = quick(gold, answer)
    if decided is not None:
        return decided
    gold, answer = _MEMBER.sub("", gold, count=1), _MEMBER.sub("", answer, count=1)
    wanted, found = _with_signs(split_items(gold)), _with_signs(split_items(answer))
    if len(wanted.items) == len(found.items) > 1:
        return _equal_lists(wanted, found)
    if _is_equation(wanted) or _is_equation(found):
        return _equal_relations(gold, answer)
    if len(wanted.items) != len(found.items):
        # A list is no value. Only a set, an interval or a vector may be written in another form.
        return bool(_SET_OR_RELATION.search(gold) or _SET_OR_RELATION.search(answer)) and _equal_values(gold, answer)
    if (wanted.items[0], found.items[0]) != (gold, answer):
        return equal(wanted.items[0], found.items[0])
    return _equal_relations(gold, answer)


def _is_equation(listed: Items) -> bool:
    return len(listed.items) == 1 and listed.brackets is None and "=" in split_relation(listed.items[0]).signs


def _with_signs(listed: Items) -> Items:
    r"""Writes `a \pm b` as the two values that it stands for."""
    items: list[str] = []
    for item in listed.items:
        twofold = item.count(r"\pm") == 1 and r"\mp" not in item
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
    names_dropped = all(named[0]) and not any(named[1])  # `AB=4, CD=5` answered by `4, 5`
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
    if found.signs and not wanted.signs and set(found.signs) <= _EQUALITIES:
        return _equal_chain(gold, found.parts, found.signs)
    if wanted.signs and not found.signs and set(wanted.signs) <= _EQUALITIES:
        if is_name(wanted.parts[0]):
            return any(equal(part, answer) for part in wanted.parts[1:])
        return _numeric(wanted.parts) and any(equal(part, answer) for part in wanted.parts)
    if wanted.signs and found.signs and set(wanted.signs) | set(found.signs) <= _EQUALITIES:
        if _same_name(wanted.parts[0], found.parts[0]):
            return equal(wanted.parts[-1], _chain(found.parts[1:], found.signs[1:]))
        if _numeric(wanted.parts):
            return all(any(equal(part, other) for part in wanted.parts) for other in found.parts)
    if found.signs and not wanted.signs and not _SET_OR_RELATION.search(gold) and split_items(gold).brackets is None:
        return False  # a relation is no value
    return _equal_values(gold, answer)


def _numeric(parts: tuple[str, ...]) -> bool:
    return all(read_number(split_unit(part)[0]) for part in parts)


def _chain(parts: tuple[str, ...], signs: tuple[str, ...]) -> str:
    """The text of a chain of relations, put together again."""
    return parts[0] + "".join(f"{sign} {part}" for sign, part in zip(signs, parts[1:], strict=True))


def _equal_chain(gold: str, parts: tuple[str, ...], signs: tuple[str, ...]) -> bool:
    r"""A gold without equation against `name = value`, `name = value = value` or `value \approx decimal`.

    Every value of the chain has to be right, so neither `6 = 5` nor `x = 6 = 5` is 5. What follows `\approx` has to
    be within 1 % of the value before it.
    """
    values = list(parts)
    if is_name(parts[0]):
        if len(parts) == 2:
            return equal(gold, parts[1])
        values, signs = values[1:], signs[1:]
    elif "=" in signs:
        return False
    exact = len(values) - sum(sign == r"\approx" for sign in signs)
    if exact < 1 or any(sign == r"\approx" for sign in signs[: exact - 1]):
        return False
    return all(equal(gold, value) for value in values[:exact]) and all(
        _near(before, after) for before, after in pairwise(values[exact - 1 :])
    )


def _near(value: str, decimal: str) -> bool:
    number = read_number(split_unit(decimal)[0])
    parsed = _parse(split_unit(value)[0])
    if number is None or not (isinstance(parsed, sympy.Expr) and parsed.is_number):
        return False
    exact = sympy.N(parsed.doit(), 15)
    return bool(abs(exact - sympy.Rational(number.value)) <= abs(exact) / 100)


def _same_name(name: str, other: str) -> bool:
    return is_name(name) and re.sub(r"\s", "", name) == re.sub(r"\s", "", other)


def _parse(text: str) -> sympy.Basic | sympy.MatrixBase | None:
    """Parses one value with Math-Verify; None if it is not understood."""
    if not text or _JUXTAPOSED.search(text):
        return None  # `5 6` would be read as 5 + 6, `101_2` as 101
    found = parse(
        rf"\boxed{{{text}}}",
        _CONFIG,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # the parent process keeps the time
    )
    if not found:
        return None
    value = found[0]
    if isinstance(value, sympy.Expr | sympy.MatrixBase):
        if value.has(sympy.zoo, sympy.nan):
            return None
        # The parser's symbols differ by what else it saw in the text, and its `i` is a symbol.
        names = {symbol: sympy.Symbol(symbol.name, real=True) for symbol in value.free_symbols}
        value = value.subs({symbol: sympy.I if name.name == "i" else name for symbol, name in names.items()})
    return value


def _equal_values(gold: str, answer: str) -> bool:
    """Compares two texts as mathematical objects."""
    (gold, unit), (answer, other_unit) = split_unit(gold), split_unit(answer)
    if unit and other_unit and unit != other_unit:
        return False
    wanted = _parse(gold)
    if wanted is None:
        raise GoldNotUnderstood(gold)
    found = _parse(answer)
    if found is None or has_prose(answer) or _cases_differ(gold, answer):
        return False
    decimal = "." in gold or "." in answer
    if isinstance(wanted, sympy.MatrixBase):
        return _equal_matrices(wanted, found, answer, decimal)
    if _constant(wanted) and _constant(found):
        return _equal_constants(wanted, found, decimal)
    return not _apart(wanted, found) and _verify(wanted, found)


def _constant(value: object) -> bool:
    return isinstance(value, sympy.Expr) and bool(value.is_number)


def _equal_constants(gold: sympy.Expr, answer: sympy.Expr, decimal: bool) -> bool:
    """Exact, or within 1e-6 of the gold if one is a decimal; zero equals only zero."""
    gold, answer = gold.doit(), answer.doit()
    if gold == answer:
        return not gold.has(sympy.nan, sympy.zoo)
    if not decimal and gold.is_Rational and answer.is_Rational:
        return False
    wanted, found = sympy.N(gold, 60), sympy.N(answer, 60)
    if not (_finite(wanted) and _finite(found)):
        return False
    apart = abs(wanted - found)
    if wanted == 0 or found == 0:
        return bool(apart < _EXACT) and sympy.simplify(gold - answer) == 0
    return bool(apart <= (_TOLERANCE if decimal else _EXACT) * abs(wanted))


def _finite(value: sympy.Expr) -> bool:
    return bool(value.is_number and value.is_finite)


def _equal_matrices(gold: sympy.MatrixBase, answer: object, text: str, decimal: bool) -> bool:
    """Entry by entry; a vector may be answered as `(a, b)`."""
    if isinstance(answer, sympy.MatrixBase):
        if gold.shape != answer.shape:
            return False
        return all(_equal_entries(g, a, decimal) for g, a in zip(gold.flat(), answer.flat(), strict=True))
    listed = split_items(text)
    if 1 not in gold.shape or listed.brackets != ("(", ")") or len(listed.items) != len(gold.flat()):
        return False
    parsed = [_parse(item) for item in listed.items]
    return all(a is not None and _equal_entries(g, a, decimal) for g, a in zip(gold.flat(), parsed, strict=True))


def _equal_entries(gold: sympy.Basic, answer: sympy.Basic, decimal: bool) -> bool:
    if _constant(gold) and _constant(answer):
        return _equal_constants(gold, answer, decimal)
    return not _apart(gold, answer) and _verify(gold, answer)


def _verify(gold: object, answer: object) -> bool:
    if isinstance(gold, sympy.Symbol) and isinstance(answer, sympy.Expr):
        answer = answer.doit()  # Math-Verify compares symbols by their print, and `x+0` prints as such
    return bool(verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None))


def _apart(gold: object, answer: object) -> bool:
    """Whether two formulas differ by more than 1e-6 of the gold at a point where both have a value."""
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    for numerator in (7, 19):
        point = {symbol: sympy.Rational(numerator + place, 11) for place, symbol in enumerate(symbols)}
        wanted, found = sympy.N(gold.subs(point), 30), sympy.N(answer.subs(point), 30)
        if _finite(wanted) and _finite(found) and abs(wanted - found) > _TOLERANCE * abs(wanted):
            return True
    return False


def _cases_differ(gold: str, answer: str) -> bool:
    """Whether some letter is a capital in one text and small in the other."""
    letters, others = (Counter(_WORD_OR_COMMAND.sub(" ", text)) for text in (gold, answer))
    return any(
        letter.isalpha() and letter not in others and letter.swapcase() in others and letter.swapcase() not in letters
        for letter in letters
    )
