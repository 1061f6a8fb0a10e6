r"""Whether two texts are the same single value, by Math-Verify. Runs in the worker process only.

Math-Verify's verdict is checked behind: it compares to six decimal places absolutely, which makes 10^{-20} equal
10^{-30}, and drops the case of letters.
"""

import re
from collections import Counter
from functools import lru_cache
from itertools import product

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import ConversionConfig  # type: ignore[import-untyped]
from math_verify import verify  # type: ignore[import-untyped]
from math_verify.parser import get_last_eq, should_treat_as_complex  # type: ignore[import-untyped]

from forklight.verify.math.numbers import read_number
from forklight.verify.math.structure import split_items
from forklight.verify.math.units import has_prose, split_unit

# Units are taken off before (`split_unit`): Math-Verify's own table makes `2s` 2 and `a + b + c` unreadable.
_NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_CASES_DIFFER = ConversionConfig(lowercase_symbols=False)
MAX_SYMBOLS = 4
"""Unknowns of two functions that are compared sign by sign."""

_SLOW = (sympy.Sum, sympy.Product, sympy.Integral)
_TOLERANCE = sympy.Float("1e-6", 50)
_EXACT = sympy.Float("1e-40", 50)
_JUXTAPOSED = re.compile(r"[0-9.]\s+[0-9]|[0-9]_|[^\x00-\x7f]")
# What Math-Verify takes for the gamma function and for Euler's number, in another name.
_MISREAD = [(re.compile(r"\\gamma(?![A-Za-z])"), r"\\varsigma"), (re.compile(r"(?<![A-Za-z\\])E(?=_)"), r"\\text{E}")]
_GREEK = re.compile(r"\\([A-Za-z][a-z]+)")
_MARK = re.compile(r"(?<=[A-Za-z)}])(?:'|\^\{?(?:\\prime|\\top|T|\*|\\dagger)\}?(?![A-Za-z0-9]))")
_INVERSE = re.compile(r"[fghFGH]\^\{-1\}\s*\(|\\(?:sin|cos|tan|cot|sec|csc)\s*\^\{-1\}")
_DROPPED = re.compile(r"\\(?:not|hat|widehat|tilde|cancel)(?![A-Za-z])")  # what the parser reads over
_WORD_OR_COMMAND = re.compile(r"\\text\{[^{}]*\}|\\[A-Za-z]+")


class GoldNotUnderstood(Exception):
    """The gold cannot be parsed, so no answer can be judged by it."""


def equal_values(gold: str, answer: str) -> bool:
    """Compares two texts in the common spelling as mathematical objects.

    Raises:
        GoldNotUnderstood: If the gold cannot be parsed.
    """
    (gold, unit), (answer, other_unit) = split_unit(gold), split_unit(answer)
    if unit and other_unit and unit != other_unit:
        return False
    number = read_number(gold)
    if number is not None and number.radix:
        return False  # what is no number itself has no digits to compare with those of a base-b number
    wanted = _parse(gold)
    if wanted is None:
        raise GoldNotUnderstood(gold)
    found = _parse(answer)
    if found is None or has_prose(answer) or _DROPPED.search(answer) or _cases_differ(gold, answer):
        return False
    if any(marks(gold) != marks(answer) for marks in (_marks, _inverses)):
        return False
    decimal = "." in gold or "." in answer
    if isinstance(wanted, sympy.MatrixBase):
        return _equal_matrices(wanted, found, answer, decimal)
    if _constant(wanted) and _constant(found):
        return _equal_constants(wanted, found, decimal)
    return not _apart(wanted, found) and (_verify(wanted, found) or _equal_where_real(wanted, found))


def readable(text: str) -> bool:
    """Whether Math-Verify understands a text in the common spelling."""
    return _parse(split_unit(text)[0]) is not None


def near(value: str, decimal: str) -> bool:
    """Whether a decimal is within 1 % of a value."""
    number = read_number(split_unit(decimal)[0])
    parsed = _parse(split_unit(value)[0])
    if number is None or not (isinstance(parsed, sympy.Expr) and parsed.is_number):
        return False
    exact = sympy.N(parsed.doit(), 15)
    return bool(abs(exact - sympy.Rational(number.value)) <= abs(exact) / 100)


@lru_cache(maxsize=256)
def _parse(text: str) -> sympy.Basic | sympy.MatrixBase | None:
    """Parses one value with Math-Verify; None if it is not understood."""
    if not text or _JUXTAPOSED.search(text):
        return None  # `5 6` would be read as 5 + 6, `101_2` as 101
    for pattern, name in _MISREAD:
        text = pattern.sub(name, text)
    found = _sympy(text)
    if found is None:
        return None
    value = found.doit() if isinstance(found, sympy.MatrixExpr) else found
    if isinstance(value, sympy.Expr | sympy.MatrixBase):
        if value.has(sympy.zoo, sympy.nan):
            return None
        # The parser's symbols differ by what else it saw in the text, and its `i` is a symbol.
        names = {symbol: sympy.Symbol(symbol.name, real=True) for symbol in value.free_symbols}
        value = value.subs({symbol: sympy.I if name.name == "i" else name for symbol, name in names.items()})
    return value


def _sympy(text: str) -> sympy.Basic | sympy.MatrixBase | None:
    """Reads a text as Math-Verify does, but with capitals as other letters than small ones; None if it cannot be."""
    percent = text.endswith(r"\%")
    text = normalize_latex(text.removesuffix(r"\%"), config=_NORMALIZATION)
    for part in dict.fromkeys([text, get_last_eq(text)]):
        try:
            found = latex2sympy(
                part,
                is_real=not should_treat_as_complex(part),
                normalization_config=None,
                conversion_config=_CASES_DIFFER,
            )
        except MemoryError:
            raise
        except Exception:  # ANTLR and SymPy raise almost any type
            continue
        return found / 100 if percent and isinstance(found, sympy.Expr) else found
    return None


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
    if gold.has(*_SLOW) and answer.has(*_SLOW):
        return False  # numbers of both take seconds; Math-Verify compares them term by term
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    for numerator in (7, 19):
        point = {symbol: sympy.Rational(numerator + place, 11) for place, symbol in enumerate(symbols)}
        wanted, found = sympy.N(gold.subs(point), 30), sympy.N(answer.subs(point), 30)
        if _finite(wanted) and _finite(found) and abs(wanted - found) > _TOLERANCE * abs(wanted):
            return True
    return False


def _equal_where_real(gold: object, answer: object) -> bool:
    r"""Whether two functions of real numbers have the same domain and values: `\sqrt{1/n}` is `1/\sqrt{n}`.

    Equal for positive numbers by SymPy; for the other signs it looks at some points, so `\sqrt{x^2}` is not `x`.
    """
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not 0 < len(symbols) <= MAX_SYMBOLS:
        return False
    positive = {symbol: sympy.Symbol(f"{symbol.name}_", positive=True) for symbol in symbols}
    if sympy.simplify(gold.subs(positive) - answer.subs(positive)) != 0:
        return False
    for signs in product((1, -1), repeat=len(symbols)):
        for numerator in (7, 19):
            point = {
                symbol: sign * sympy.Rational(numerator + place, 11)
                for place, (symbol, sign) in enumerate(zip(symbols, signs, strict=True))
            }
            wanted, found = sympy.N(gold.subs(point), 30), sympy.N(answer.subs(point), 30)
            real = [bool(value.is_real and value.is_finite) for value in (wanted, found)]
            if real[0] != real[1] or (real[0] and abs(wanted - found) > _TOLERANCE * abs(wanted)):
                return False
    return True


def _cases_differ(gold: str, answer: str) -> bool:
    """Whether some letter is a capital in one text and small in the other."""
    names, others = ({*_WORD_OR_COMMAND.sub(" ", text), *_GREEK.findall(text)} for text in (gold, answer))
    swapped = {name: name[:1].swapcase() + name[1:] for name in names if name.isalpha()}
    return any(name not in others and other in others and other not in names for name, other in swapped.items())


def _marks(text: str) -> Counter[str]:
    """Primes, transposes and stars of names, which Math-Verify does not read as such."""
    return Counter(mark.strip("^{}").replace(r"\prime", "'") for mark in _MARK.findall(text))


def _inverses(text: str) -> int:
    """Inverse functions, which Math-Verify takes for powers."""
    return len(_INVERSE.findall(text))
