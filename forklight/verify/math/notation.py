r"""Spellings that need more than a replacement: plain notation, degrees, currencies, sentences around a value."""

import re
from fractions import Fraction

_PLAIN_NAMES = (
    "alpha|beta|theta|pi|phi|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp|sqrt|infinity|oo|inf|cup|cap"
)
_PLAIN = re.compile(rf"(?<![A-Za-z\\])({_PLAIN_NAMES})(?![A-Za-z])")
_PLAIN_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt\s*\(|\\sqrt\s*\(")
_TIMES = re.compile(r"(?<=[0-9A-Za-z)}\]])\s*\*\s*(?=[0-9A-Za-z(\\{-])(?!\*)")
_LOW_MINUS = re.compile(r"\^\s*(-[0-9]+)")
_BRACKET_POWER = re.compile(r"\^\s*\(([^(){}]*)\)")
_DEGREE = r"\s*\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})"
_MINUTES = re.compile(rf"([0-9]+){_DEGREE}\s*([0-9]+(?:\.[0-9]+)?)\s*'(?:\s*([0-9]+(?:\.[0-9]+)?)\s*(?:''|\"))?")
_TRIGONOMETRY = re.compile(
    rf"(\\(?:sin|cos|tan|cot|sec|csc))\s*(\^\s*(?:[0-9]|\{{[0-9]\}}))?\s*[({{]?\s*(-?[0-9]+(?:\.[0-9]+)?|[A-Za-z])"
    rf"{_DEGREE}\s*[)}}]?"
)
_SIGNS = {r"\$": "dollar", "£": "GBP", "€": "EUR", "¥": "JPY", "₹": "INR", r"\pounds": "GBP", r"\euro": "EUR"}
_SIGN = r"\\\$|[£€¥₹]|\\pounds(?![A-Za-z])|\\euro(?![A-Za-z])"
_AMOUNT = r"-?[0-9][0-9.,]*(?:(?:\{,\}|,?\\!|\\,)[0-9]{3})*(?:\.[0-9]+)?"
_CURRENCY = re.compile(rf"\s*(?:(?P<before>{_SIGN})\s*(?P<a>{_AMOUNT})|(?P<b>{_AMOUNT})\s*(?P<after>{_SIGN}))\s*")
_ANY_SIGN = re.compile(r"[£€¥₹]|\\(?:pounds|euro|texteuro|textsterling)(?![A-Za-z])")
_WORDS = """the answer final is are area total number of ways there at intersect intersects intersection value equals
equal to we get have thus so hence therefore maximum minimum sum product length perimeter volume probability angle
radius point points solution solutions result it that its expected distance time price cost speed height width side
slope remainder degree exact simplified which gives and"""
_VOCABULARY = frozenset(_WORDS.split())
_LEADING_TEXT = re.compile(r"\\text\{([^{}]*)\}[\s:]*(?=\S)")
_LEADING_WORDS = re.compile(r"((?:[A-Za-z]+[\s:]+){1,8})(?=\S)")
_ASIDE = re.compile(r"\s*\(\s*\\text\{([^{}]*)\}\s*\)$")


def from_plain(text: str) -> str:
    r"""Writes plain notation as LaTeX: `2*pi*sqrt(3)` -> `2\cdot \pi\cdot \sqrt{3}`, `10^-3` -> `10^{-3}`."""
    text = _LOW_MINUS.sub(r"^{\1}", _BRACKET_POWER.sub(r"^{\1}", text))
    text = _brace_roots(text)
    text = _TIMES.sub(r"\\cdot ", text)
    if r"\text" in text:
        return text
    return _PLAIN.sub(
        lambda name: {"infinity": r"\infty ", "inf": r"\infty ", "oo": r"\infty "}.get(name[1], rf"\{name[1]} "), text
    )


def _brace_roots(text: str) -> str:
    """Writes the brackets behind a root as braces, with one pass per root."""
    for _ in range(text.count("sqrt")):
        match = _PLAIN_ROOT.search(text)
        if match is None:
            break
        depth = 1
        for place in range(match.end(), len(text)):
            depth += (text[place] == "(") - (text[place] == ")")
            if depth == 0:
                text = rf"{text[: match.start()]}\sqrt{{{text[match.end() : place]}}}{text[place + 1 :]}"
                break
        else:
            break
    return text


def without_degrees(text: str) -> str:
    r"""Writes minutes of arc as a fraction of a degree, and the degrees of `\sin 30^\circ` as what they are."""
    text = _MINUTES.sub(_arc, text)
    return _TRIGONOMETRY.sub(lambda m: rf"{m[1]}{m[2] or ''}{{(\frac{{\pi}}{{180}} \cdot {m[3]})}}", text)


def _arc(match: re.Match[str]) -> str:
    value = int(match[1]) + Fraction(match[2]) / 60 + Fraction(match[3] or 0) / 3600
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def currency_as_unit(text: str) -> str:
    r"""Writes the currency of an amount as a unit, `£5` as `5\text{GBP}`; in formulas its sign is dropped."""
    match = _CURRENCY.fullmatch(text)
    if match:
        return rf"{match['a'] or match['b']}\text{{{_SIGNS[match['before'] or match['after']]}}}"
    return _ANY_SIGN.sub("", text)


def without_sentence(text: str) -> str:
    r"""Takes words off that say no more than that the value is the answer.

    Example:
        >>> without_sentence(r"\text{The answer is } 5"), without_sentence(r"\text{not } 5")
        ('5', '\\text{not } 5')
    """
    for pattern in (_LEADING_TEXT, _LEADING_WORDS):
        match = pattern.match(text)
        if match and match.end() < len(text) and _says_nothing(match[1]):
            text = text[match.end() :]
    aside = _ASIDE.search(text)
    return text[: aside.start()] if aside and aside.start() and _says_nothing(aside[1]) else text


def _says_nothing(words: str) -> bool:
    named = list(re.findall("[A-Za-z]+", words.lower()))
    return any(len(word) > 1 for word in named) and _VOCABULARY.issuperset(named)
