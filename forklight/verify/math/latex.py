r"""Puts answers and golds into one spelling before they are compared. Text in, text out; no mathematics, no SymPy.

What is levelled: Unicode (full-width forms, superscripts, vulgar fractions, signs), LaTeX layout (`\left`, `\,`, `$`),
synonyms (`\dfrac`, `\mbox`, `\leq`), typographic thousands separators (`1{,}000`, `1\,000`, `1,\!000`), `1e5`, closing
punctuation. Plain commas and blanks between digits stay, so `32, 349` is a list of two.
"""

import re
import unicodedata
from functools import lru_cache

from forklight.verify.math.notation import currency_as_unit, from_plain, without_degrees, without_sentence

_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "≤": r"\le ", "≥": r"\ge "}  # noqa: RUF001
    | {"≠": r"\ne ", "≈": r"\approx ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in "}  # noqa: RUF001
    | {"±": r"\pm ", "∅": r"\emptyset ", "→": r"\to ", "°": r"^\circ ", "…": r"\ldots ", "θ": r"\theta "}
    | {"\N{FRACTION SLASH}": "/", "\0": " "}
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_ROOT = re.compile(r"√\s*([0-9]+|[A-Za-z])")

_NOT_LETTER = "(?![A-Za-z])"
_RULES = [
    # thousands separators: only typographic ones, only before exactly three digits
    (r"(?<=[0-9])(?:\{,\}|,\\!|\\[,;:])\s*(?=[0-9]{3}(?![0-9]))", ""),
    (r"\{,\}", ","),
    # layout
    (r"\\!\s*|\\\$|\$|(?<!\\)\\[()\[\]]", ""),
    (r"\\phantom\s*\{[^{}]*\}", " "),
    (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
    (rf"\\(?:tiny|scriptsize|footnotesize|small|normalsize|[lL]arge|LARGE|[hH]uge|bf|rm|it|sf|tt){_NOT_LETTER}\s?", ""),
    (rf"\\(?:scriptstyle|boldmath|strut|mathstrut|nolimits|underline|ensuremath|smash){_NOT_LETTER}\s?", ""),
    (r"\\[hv]space\*?\s*\{[^{}]*\}", " "),
    (r"\\&", ", "),
    (r"\\not\s*=", r"\\ne "),
    (rf"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits){_NOT_LETTER}\s?", ""),
    (rf"(?:(?<!\\)\\[,;:> ]|~|\\q?quad{_NOT_LETTER}|\s)+", " "),  # runs as one: rules below look back over blanks
    # synonyms
    (rf"\\[dtc]frac{_NOT_LETTER}", r"\\frac"),
    (rf"\\[dt]binom{_NOT_LETTER}", r"\\binom"),
    (
        r"\\(?:text(?:normal|bf|it|rm|sf|tt|sc|up)|[mh]box|emph|bm|math(?:rm|bf|it|sf|tt)|boldsymbol|operatorname)\*?\s*(?=\{)",
        r"\\text",
    ),
    (r"\\text\s+\{", r"\\text{"),
    (r"\\text\{\s*\}", " "),
    (r"\\text\{([ied])\}", r"\1"),
    (rf"\\lg{_NOT_LETTER}", r"\\log_{10} "),
    (r"\\log\s*_\s*([0-9A-Za-z]|\{[^{}]*\})\s*", r"\\log_{\1} "),
    (r"\\log_\{\{([^{}]*)\}\}", r"\\log_{\1}"),
    (rf"\\(?:leq(?:slant)?|le){_NOT_LETTER}|<=", r"\\le "),
    (rf"\\(?:geq(?:slant)?|ge){_NOT_LETTER}|>=", r"\\ge "),
    (rf"\\neq?{_NOT_LETTER}|!=", r"\\ne "),
    (rf"\\lt{_NOT_LETTER}", "<"),
    (rf"\\gt{_NOT_LETTER}", ">"),
    (rf"\\lbrace{_NOT_LETTER}", r"\\{"),
    (rf"\\rbrace{_NOT_LETTER}", r"\\}"),
    (rf"\\langle{_NOT_LETTER}", "("),
    (rf"\\rangle{_NOT_LETTER}", ")"),
    (rf"\\varnothing{_NOT_LETTER}|\\\{{\s*\\\}}", r"\\emptyset "),
    (rf"\\[lc]?dots[a-z]?{_NOT_LETTER}|\.\.\.", r"\\ldots "),
    (r"\*\*", "^"),
    (rf"\^\s*(?:\\circ{_NOT_LETTER}|\{{\s*\\circ\s*\}})|\\degrees?{_NOT_LETTER}", ""),
    (r"\s+", " "),
    (r"\s*,?\s*\\text\{[\s,]*(?:and|or)[\s,]*\}", ", "),
    (r"\s*\\text\{\s*(?:percent(?:age)?|pct)\s*\}|\s*(?<![A-Za-z\\])(?:percent(?:age)?|pct)(?![A-Za-z])", r"\\%"),
    (r"\s*(?<!\\)%|\s+\\%", r"\\%"),
    # arguments without braces
    (r"\\frac\s*([0-9]|\\pi|(?<=\s)[A-Za-z])\s*(?=[{0-9A-Za-z\\])", r"\\frac{\1}"),
    (r"\\frac\s*(\{[^{}]*\})\s*([0-9A-Za-z]|\\pi)", r"\\frac\1{\2}"),
    (r"\\frac\s+\{", r"\\frac{"),
    (r"\\binom\s*([0-9])\s*([0-9])", r"\\binom{\1}{\2}"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*([0-9])", r"\\sqrt{\1}"),
    # 1e5
    (r"(?<![A-Za-z0-9.])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]\+?(-?[0-9]+)(?!\.?[0-9A-Za-z])", r"\1 \\times 10^{\2}"),
    (r"\\cdot 10\^", r"\\times 10^"),
    # one blank, none beside a separator
    (r"\s+", " "),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z!%{}$])")
_LINES = re.compile(r"[^\S\n]*\n\s*\n\s*")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_CLOSING = re.compile(r"[.,;:\s\\]+$")
_AROUND = [("`", "`"), ("'", "'"), ('"', '"')]
_BARE_AND = re.compile(r"\s*,?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*")
_ALL_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_SINGLE_LETTERS = re.compile(r"[^A-Za-z]*(?:[A-Za-z](?![A-Za-z])[^A-Za-z]*)*")
_NUMBER_IN_TEXT = re.compile(r"([0-9][0-9.,]*)\s*([A-Za-z ]+)")


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    r"""Returns the text in the common spelling. The caller bounds the length.

    Example:
        >>> clean(r"$\left( \dfrac12,\; 1{,}000 \right)$.")
        '( \\frac{1}{2}, 1000 )'
        >>> clean("5²")
        '5^{2}'
    """
    text = currency_as_unit(_LINES.sub(", ", text.strip()))
    if not text.isascii():
        text = _ascii(text)
    if "circ" in text:
        text = without_degrees(text)
    if r"\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    text = from_plain(text)
    if r"\text" not in text:
        text = _BARE_AND.sub(", ", text)
    text = _strip(without_sentence(_strip(text)))
    return _strip(unwrap_text(text))


def _ascii(text: str) -> str:
    """Writes Unicode forms as ASCII or LaTeX where they have one. Other characters, foreign digits too, stay."""
    text = _RAISED_RUN.sub(lambda run: f"^{{{run.group().translate(_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{run.group().translate(_LOWERED)}}}", text)
    # A vulgar fraction must not join the digit before it: 1½ is 1 + 1/2, and NFKC would make it 11/2.
    text = "".join(_vulgar(character) if unicodedata.category(character) == "No" else character for character in text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")  # zero width
    return _ROOT.sub(r"\\sqrt{\1}", text).replace("√", r"\sqrt ")


def _vulgar(character: str) -> str:
    above, slash, below = unicodedata.normalize("NFKC", character).partition("\N{FRACTION SLASH}")
    return rf"\frac{{{above}}}{{{below}}}" if slash and below else character


def _strip(text: str) -> str:
    text = _CLOSING.sub("", text.strip())
    while text.startswith("{") and _closing_brace(text) == len(text) - 1:
        text = text[1:-1].strip()
    for opening, closing in _AROUND:
        if len(text) > 2 and text[0] == opening and text[-1] == closing and not {opening, closing} & {*text[1:-1]}:
            text = text[1:-1].strip()
    return text.removeprefix(r"\approx").removeprefix("=").strip()


def _closing_brace(text: str) -> int:
    """The place of the brace that closes the first one; -1 if there is none."""
    depth = 0
    for match in _BRACES.finditer(text):
        depth += (match.group() == "{") - (match.group() == "}")
        if depth == 0 and match.group() in "{}":
            return match.start()
    return -1


def unwrap_text(text: str) -> str:
    r"""Takes a `\text{}` around the whole off, unless it holds words.

    Example:
        >>> [unwrap_text(text) for text in (r"\text{(C)}", r"\text{2 hours}", r"\text{east}")]
        ['(C)', '2 \\text{hours}', '\\text{east}']
    """
    whole = _ALL_TEXT.fullmatch(text)
    if whole is None:
        return text
    content = _BARE_AND.sub(", ", whole.group(1)).strip()
    if _SINGLE_LETTERS.fullmatch(content):
        return content
    number = _NUMBER_IN_TEXT.fullmatch(content)
    return rf"{number.group(1)} \text{{{number.group(2)}}}" if number else text
