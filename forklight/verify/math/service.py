"""What a worker process of `MathVerifier` does. Imports math-verify and SymPy."""

from functools import partial
from typing import Any

from forklight.verify.math.compare import equal, last_value
from forklight.verify.math.expression import GoldNotUnderstood
from forklight.verify.math.latex import clean
from forklight.verify.math.limits import too_large
from forklight.verify.math.search import find_answer
from forklight.verify.workers.messages import Service

# Each needs other parts of SymPy and of the parser, which are imported and set up at their first use.
_WARM_UPS = [
    ("x^2+2x+1", "(x+1)^2"),
    (r"\frac{\sqrt{2}}{2}", r"\sin{\frac{\pi}{4}}"),
    ("2x+y-3=0", "y=-2x+3"),
    (r"(0,1]\cup[2,3)", r"[0,1]\cup[2,3)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    (r"\log_2 x", r"\frac{\ln x}{\ln 2}"),
    ("x>3", r"(3,\infty)"),
]


def math_service() -> Service:
    """What the workers of `MathVerifier` are made of. Called once, in the nursery."""
    equal(r"\sqrt{4}+x", "x+2")  # builds the parser's tables, so that no answer pays for them
    return Service(lambda: answer, tuple(partial(equal, *map(clean, pair)) for pair in _WARM_UPS))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Judges one request, `{"gold": .., "answer": .., "search": bool, "search_gold": bool}`.

    With `search` the answer is a whole text, in which the final answer has to be found first; `search_gold` says so of
    the gold, which else is in the common spelling.
    """
    gold, text = request["gold"], request["answer"]
    try:
        if request["search_gold"]:
            gold = clean(find_answer(gold) or "")
        if request["search"]:
            found = find_answer(text)
            if found is None:
                return {"outcome": "wrong", "reason": "no answer found", "extracted": None}
            text = found
        large = too_large(text)
        if large:
            return {"outcome": "wrong", "reason": f"too large to be an answer ({large})", "extracted": text[:100]}
        right = _equal(gold, clean(text), request["search"])
    except GoldNotUnderstood:
        return {"outcome": "unjudged", "reason": "gold not understood", "extracted": text}
    except MemoryError:
        return {"outcome": "unjudged", "reason": "memory limit", "extracted": text}
    except Exception as error:  # SymPy raises almost any type on what it cannot handle
        return {"outcome": "unjudged", "reason": f"comparison failed ({type(error).__name__})", "extracted": text}
    if right:
        return {"outcome": "right", "reason": "equal expression", "extracted": text}
    return {"outcome": "wrong", "reason": "not equal", "extracted": text}


def _equal(gold: str, answer: str, derivation: bool) -> bool:
    """Whether they are equal; prose may hold a derivation, of which the last value counts."""
    if equal(gold, answer):
        return True
    last = last_value(answer) if derivation else None
    return last is not None and equal(gold, last)
