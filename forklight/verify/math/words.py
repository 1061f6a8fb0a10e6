r"""Words with one meaning in several spellings: numerals, weekdays, dates, times of day, set phrases of mathematics."""

import re
from functools import lru_cache

_NAMES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
_NUMERALS = {name: number for number, name in enumerate(_NAMES.split())}
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_SHORT = {name[:3]: name for name in (*_DAYS, *_MONTHS)} | {"sept": "september", "tues": "tuesday", "thurs": "thursday"}
_PHRASES = {
    phrase: meaning
    for meaning, phrases in {
        "does not exist": ("dne", "does not exist", "doesn't exist", "do not exist"),
        "infinity": ("infinity", "infinite", "infinitely many", "infinitely many solutions", r"\infty", r"+\infty"),
        "all reals": (
            *("all real numbers", "all reals", "the real numbers", "real numbers", "every real number", r"\mathbb{r}"),
            *(r"(-\infty,\infty)", r"(-\infty,+\infty)", "all real numbers x"),
        ),
        "empty": (r"\emptyset", "empty set", "the empty set", "no solution", "no solutions"),
    }.items()
    for phrase in phrases
}
_CLOCK = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?\s*([ap])\.?\s?m\.?|([0-9]{1,2}):([0-9]{2})")
_DATE = re.compile(r"(?P<m>[a-z]{3,9})\.?\s(?P<d>[0-9]{1,2})(?:st|nd|rd|th)?(?:,?\s(?P<y>[0-9]{4}))?")
_DATE_REVERSED = re.compile(r"(?P<d>[0-9]{1,2})(?:st|nd|rd|th)?\s(?:of\s)?(?P<m>[a-z]{3,9})\.?(?:,?\s(?P<y>[0-9]{4}))?")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")


def same_meaning(gold: str, answer: str) -> bool | None:
    r"""Whether two texts in the common spelling say the same; None if one of them is nothing of the kind.

    Example:
        >>> same_meaning("3:30 PM", "15:30"), same_meaning(r"\text{Friday}", "Fri"), same_meaning("12:00", "1:00")
        (True, True, None)
    """
    wanted, found = _meaning(gold), _meaning(answer)
    if wanted is None or found is None or "bare clock" == wanted[0] == found[0]:
        return None
    if wanted[0].endswith("clock") and found[0].endswith("clock"):
        return _same_time(wanted, found)
    if wanted == found:
        return True
    return False if wanted[0] == found[0] and wanted[0] != "number" else None


def _same_time(wanted: tuple[str, str], found: tuple[str, str]) -> bool:
    """Equal minutes; `3:30` alone may be either half of the day."""
    one, other = int(wanted[1]), int(found[1])
    either = any(kind == "bare clock" and int(minutes) < 780 for kind, minutes in (wanted, found))
    return (one - other) % 720 == 0 if either else one == other


@lru_cache(maxsize=4096)
def _meaning(text: str) -> tuple[str, str] | None:
    """The kind of a text and its meaning."""
    plain = " ".join(_TEXT.sub(r"\1", text).lower().split()).strip(" .")
    phrase = _PHRASES.get(plain) or _PHRASES.get(plain.replace(" ", ""))
    if phrase:
        return "phrase", phrase
    if plain in _NUMERALS or (plain.isdecimal() and len(plain) < 3 and plain.isascii()):
        return "number", str(_NUMERALS[plain] if plain in _NUMERALS else int(plain))
    if plain in _SHORT or plain in _SHORT.values():
        return "name", _SHORT.get(plain, plain)
    return _clock(plain) or _date(plain)


def _clock(plain: str) -> tuple[str, str] | None:
    if plain in ("noon", "midnight"):
        return "clock", str(720 if plain == "noon" else 0)
    match = _CLOCK.fullmatch(plain)
    if match is None:
        return None
    hour, minute = int(match[1] or match[4]), int(match[2] or match[5] or 0)
    if minute > 59 or hour > 23 or (match[3] and not 1 <= hour <= 12):
        return None
    if not match[3]:
        return "bare clock", str(60 * hour + minute)
    return "clock", str(60 * (hour % 12 + (12 if match[3] == "p" else 0)) + minute)


def _date(plain: str) -> tuple[str, str] | None:
    match = _DATE.fullmatch(plain) or _DATE_REVERSED.fullmatch(plain)
    month = match and _SHORT.get(match["m"], match["m"])
    return ("date", f"{month} {int(match['d'])} {match['y']}") if match and month in _MONTHS else None
