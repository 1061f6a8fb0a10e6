r"""Units behind a value: `5\text{ cm}^2`, `9.8\,\mathrm{m/s^2}`, `60\frac{\text{km}}{\text{h}}`, `5 apples`.

What multiplies (`halves`, `lakh`, `factorial`) or belongs to a sentence (`or`, `not`) is no unit.
"""

import re
from collections import Counter
from functools import lru_cache

_POWER = r"(?:\s*\^\s*(?:[0-9]|\{\s*-?[0-9]\s*\}))?"
_ATOM = rf"(?:(?:\\mu\s*)?\\text\{{\s*(?:[A-Za-z][A-Za-z./\s*^0-9\-]*|[A-Za-z])\s*\}}|\\Omega(?![A-Za-z])){_POWER}"
_FRACTION = rf"\\frac\s*\{{\s*{_ATOM}\s*\}}\s*\{{\s*{_ATOM}\s*\}}"
_UNIT = re.compile(rf"\s*(?P<unit>(?:{_ATOM}|{_FRACTION})(?:\s*(?:\\cdot|/)?\s*{_ATOM})*)$")
_SHORT = (
    "cm|mm|km|kg|miles?|feet|ft|inch(?:es)?|hours?|minutes?|seconds?|days?|dollars?|cents?|degrees?|units?"
    "|meters?|mph|km/h|m/s"
)
_BARE_UNIT = re.compile(rf"(?<=[0-9}}\s])\s*(?P<unit>(?:{_SHORT}){_POWER})$")
_BARE_WORDS = re.compile(r"(?<=[0-9}])\s+(?P<unit>[a-z]{4,}(?: [a-z]{3,}){0,2})$")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_PIECE = re.compile(r"[A-Za-z]+|/|\^\s*\{?\s*-?[0-9]|-?[0-9]")
_SENTENCE = """a about above almost and any approximately around at below between but correct either except fewer for
if in incorrect is least less false maybe mod modulo more most nearly neither never no nor not or over perhaps plus
possibly roughly than then times to under unless up when where with without wrong base"""
_QUANTITIES = """billion bn cubed double dozen e eight eighty eleven factorial fifty five fold forty four fourteen giga
grand gross half halve halves hundred i inverse kilo lakh crore mega micro milli million minus multiplied myriad n nano
negative nine ninety one pi power quadrillion reciprocal root score seven seventy six sixty squared ten thirty thousand
three trillion triple twelve twenty twice two x y z zero infinity theta alpha beta gamma lambda sigma omega sqrt cosine
sine tangent log sinh cosh tanh"""
_ORDINALS = """third quarter fourth fifth sixth seventh eighth ninth tenth eleventh twelfth sixteenth twentieth
hundredth thousandth millionth billionth"""
_NAMES = {
    name: symbol
    for symbol, names in {
        "m": "meter meters metre metres",
        "km": "kilometer kilometers kilometre kilometres",
        "cm": "centimeter centimeters centimetre centimetres",
        "mm": "millimeter millimeters millimetre millimetres",
        "s": "second seconds sec secs",
        "min": "minute minutes mins",
        "h": "hour hours hr hrs",
        "kg": "kilogram kilograms",
        "g": "gram grams",
        "l": "liter liters litre litres L",
        "foot": "feet ft",
        "inch": "inches",
        "mile": "miles mi",
        "lb": "pound pounds lbs",
        "ohm": "ohms Ohm Ohms",
        "N": "newton newtons Newton Newtons",
        "J": "joule joules Joule Joules",
        "dollar": "dollars USD usd",
    }.items()
    for name in names.split()
}
_SPEEDS = {"mph": (("mile", 1), ("h", -1)), "kmh": (("km", 1), ("h", -1)), "kph": (("km", 1), ("h", -1))}
_NOT_UNITS = frozenset(_SENTENCE.split() + _QUANTITIES.split() + _ORDINALS.split())


@lru_cache(maxsize=4096)
def split_unit(text: str) -> tuple[str, str]:
    r"""Takes a unit off the end: `5\text{ cm}^2` -> (`5`, `cm2`). The unit comes in one spelling: `m/s` is `m s^{-1}`.

    Example:
        >>> split_unit(r"12\sqrt{13}\text{ feet}"), split_unit(r"5 \text{ or more}"), split_unit("9 apples")
        (('12\\sqrt{13}', 'foot'), ('5 \\text{ or more}', ''), ('9', 'apple'))
    """
    match = _UNIT.search(text) or _BARE_UNIT.search(text) or _BARE_WORDS.search(text)
    if match is None or not text[: match.start()].strip():
        return text, ""
    unit = _spelled(match["unit"])
    return (text[: match.start()].rstrip(" ~"), unit) if unit else (text, "")


def has_prose(text: str) -> bool:
    r"""Whether a `\text{}` holds words of a sentence or a multiplier, as in `5 \text{ is wrong}`."""
    return any(any(map(_no_unit, content.split())) for content in _TEXT.findall(text))


def _no_unit(word: str) -> bool:
    word = word.lower().strip(".,")
    return word in _NOT_UNITS or word.removesuffix("s") in _NOT_UNITS - {"a", "i", "e", "n", "y", "x", "z"}


def _spelled(unit: str) -> str:
    """One spelling of a unit; empty if it is none."""
    words = re.sub(r"\\(?:text|frac|cdot|mu|Omega)|[{}]", " ", unit).replace("/", " ").replace(".", "").split()
    words = [word.partition("^")[0] for word in words]
    if sum(map(str.isalpha, words)) > 3 or any(map(_no_unit, words)):
        return ""
    powers: Counter[str] = Counter()
    for name, power in _pieces(unit):
        powers[name] += power
    return " ".join(f"{name}{power if power != 1 else ''}" for name, power in sorted(powers.items()) if power)


def _pieces(unit: str) -> list[tuple[str, int]]:
    text = re.sub(r"\\frac\s*\{(.*?\})\s*\}\s*\{(.*\})\s*\}", r"\1/\2", unit)
    text = text.replace(r"\Omega", " Omega ").replace(r"\mu", " mu").replace(r"\cdot", " ").replace(r"\text", " ")
    text = re.sub(r"mu\s*\{\s*", "{mu", text).replace(".", "")
    sign, times, found = 1, 1, list[tuple[str, int]]()
    for piece in _PIECE.findall(text.replace("}", " ").replace("{", " ").replace("^ ", "^")):
        low = piece.lower()
        if piece == "/" or low == "per":
            sign = -1
        elif low in ("square", "sq", "cubic"):
            times = 3 if low == "cubic" else 2
        elif piece[0].isalpha():
            whole = _SPEEDS.get(low, ((_name(piece), 1),))
            found += [(name, power * sign * times) for name, power in whole]
            times = 1
        elif found:
            name, power = found.pop()
            found.append((name, power * int(piece.lstrip("^{ "))))
    return found


def _name(word: str) -> str:
    if word == "Omega":
        return word
    if word in _NAMES or word.lower() in _NAMES:
        return _NAMES.get(word) or _NAMES[word.lower()]
    if len(word) <= 3:
        return word if word.isupper() or not word[0].isupper() else word.lower()
    return word.lower().removesuffix("s")
