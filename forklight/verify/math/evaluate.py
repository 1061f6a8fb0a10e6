r"""Whether two formulas are the same function, by their values. No SymPy; bounded work, so that any process may do it.

Formulas of the four operations and whole powers are compared exactly up to chance, as residues modulo a prime of 61
bits. All others are compared to 40 of 60 digits, at points of all signs. What is too close or too large to tell is left
to the worker processes.
"""

from forklight.verify.math.arithmetic import Untold
from forklight.verify.math.formula import read_formula
from forklight.verify.math.residues import residues
from forklight.verify.math.values import same_values


def same_formula(gold: str, answer: str) -> bool | None:
    r"""Whether two texts in the common spelling are formulas with the same values.

    Exact; if a text has a decimal point, constants may differ by 1e-6 of the gold. Functions of letters have to agree
    where both are real, and be real at the same places, so `\sqrt{x^2}` is not `x`.

    Returns:
        None if one is no such formula, or the values do not tell.

    Example:
        >>> same_formula("(x+1)^2", "x^2+2x+1"), same_formula("x", "x+1"), same_formula("5", "x=5")
        (True, False, None)
    """
    if gold == answer:
        return None
    wanted, found = read_formula(gold), read_formula(answer)
    if wanted is None or found is None:
        return None
    decimal = "." in gold or "." in answer
    try:
        same = residues(wanted) == residues(found)
    except Untold:
        return same_values(wanted, found, decimal)
    return same if same or not decimal else same_values(wanted, found, decimal)
