r"""Plain numbers as fractions: integers, decimals, `\frac{a}{b}`, mixed numbers, powers of ten, repeating decimals."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

RELATIVE_TOLERANCE = Fraction(1, 10**6)
"""Of a decimal against the gold."""

_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+|0,[0-9]{{3,}})"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:"
    rf"(?P<whole>[0-9]+)?\s*\\frac\{{\s*(?P<minus>-?)\s*(?P<above>{_INTEGER})\s*\}}\{{\s*(?P<below>{_INTEGER})\s*\}}"
    rf"|(?:(?P<apart>[0-9]+)\s+)?(?P<over>{_INTEGER})\s*/\s*(?P<under>{_INTEGER})"
    rf"|(?P<decimal>{_DECIMAL})(?:\s*\\times\s*10\^(?:\{{\s*(?P<power>[-+]?[0-9]+)\s*\}}|(?P<digit>[0-9])))?"
    rf"|(?P<before>[0-9]*\.)(?P<fixed>[0-9]*)(?:\\(?:overline|bar)\s*\{{(?P<period>[0-9]+)\}}|\((?P<round>[0-9]+)\)|\\dot\s*\{{?(?P<dot>[0-9])\}}?)"
    rf"|10\^(?:\{{\s*(?P<ten>[-+]?[0-9]+)\s*\}}|(?P<ten_digit>[0-9]))"
    rf")(?P<base>_(?:\{{[0-9]+\}}|[0-9]+))?\s*(?P<percent>\\%)?"
)
_THOUSANDS = re.compile(r"(?<![0-9,.(\[])(?<!\\\{)[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9)\]]|,[0-9]|\\\})")


class Number(NamedTuple):
    """A plain number as written."""

    value: Fraction
    """The value; with a percent sign, the number before it."""
    quantum: Fraction
    """One unit in the last place of a number written with a decimal point (possibly rounded), else 0."""
    percent: bool
    base: str
    """The digits of a base-b number (`"101"`), else empty."""
    radix: str
    """The subscript of a base-b number, else empty."""


@lru_cache(maxsize=4096)
def read_number(text: str) -> Number | None:
    r"""Reads a plain number (ASCII digits, common spelling, without unit); None if the text is anything else.

    Example:
        >>> read_number(r"-1\frac{1}{2}").value, read_number("1,000").value, read_number("32, 349")
        (Fraction(-3, 2), Fraction(1000, 1), None)
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    part = {name: value or "" for name, value in match.groupdict().items()}
    if part["decimal"].startswith("0,"):  # no thousands: a decimal comma
        part["decimal"] = part["decimal"].replace(",", ".")
    part = {name: value.replace(",", "") for name, value in part.items()}
    if part["before"]:
        return _repeating(part)
    part["whole"] = part["whole"] or part["apart"]
    exponent = part["power"] or part["digit"] or part["ten"] or part["ten_digit"] or "0"
    below = part["below"] or part["under"] or "1"
    if abs(int(exponent)) > 9999 or int(below) == 0:
        return None
    if part["whole"] and part["minus"]:
        return None
    if part["base"] and not part["decimal"].isdecimal():
        return None
    if part["apart"] and int(part["over"].replace(",", "")) >= int(below):
        return None
    above = part["above"] or part["over"] or part["decimal"] or "1"
    value = Fraction(f"0{above}" if above.startswith(".") else above.rstrip(".")) / int(below)
    scale = Fraction(10) ** int(exponent)
    value = (value + int(part["whole"] or 0)) * scale
    _, point, places = part["decimal"].partition(".")
    negative = (part["sign"] == "-") != (part["minus"] == "-")
    return Number(
        value=-value if negative else value,
        quantum=scale / 10 ** len(places) if point else Fraction(0),
        percent=bool(part["percent"]),
        base=part["decimal"].lstrip("0") if part["base"] else "",
        radix=part["base"].strip("_{}"),
    )


def _repeating(part: dict[str, str]) -> Number | None:
    """A repeating decimal, which is exact."""
    period = part["period"] or part["round"] or part["dot"]
    if part["base"]:
        return None
    start = Fraction(int(part["before"].rstrip(".") + part["fixed"] or "0"), 10 ** len(part["fixed"]))
    value = start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(part["fixed"]))
    return Number(-value if part["sign"] == "-" else value, Fraction(0), bool(part["percent"]), "", "")


def same_number(gold: Number, answer: Number) -> bool:
    """Whether two plain numbers agree.

    Exact, unless one is a decimal: then within 1e-6 of the gold (of 1, for an integer gold over 1) and within one unit
    in the last place of the coarser decimal, and zero equals only zero. With a percent sign on one side only, 50% is 50
    as well as 0.5: problems ask for either. The base of a base-b number is compared only if both are written with one;
    the digits always.
    """
    if gold.radix and answer.radix and gold.radix != answer.radix:
        return False
    if gold.percent and answer.percent:
        return _close(gold, answer, gold.value, answer.value)
    golds = [gold.value, gold.value / 100] if gold.percent else [gold.value]
    answers = [answer.value, answer.value / 100] if answer.percent else [answer.value]
    return any(_close(gold, answer, g, a) for g in golds for a in answers)


def _close(gold: Number, answer: Number, wanted: Fraction, found: Fraction) -> bool:
    if wanted == found:
        return True
    quantum = max(gold.quantum, answer.quantum)
    if not quantum or 0 in (wanted, found):
        return False
    size = abs(wanted)
    if not gold.quantum and wanted.denominator == 1:
        size = min(size, Fraction(1))
    return abs(wanted - found) <= RELATIVE_TOLERANCE * size and abs(wanted - found) < quantum


def join_thousands(text: str) -> str:
    r"""Takes the commas out of numbers such as `1,000`, except directly within brackets: `(1,000)` is a pair.

    Example:
        >>> join_thousands(r"10,080\\pi"), join_thousands("32, 349"), join_thousands("(12,345)")
        ('10080\\\\pi', '32, 349', '(12,345)')
    """
    return _THOUSANDS.sub(lambda number: number.group().replace(",", ""), text) if "," in text else text
