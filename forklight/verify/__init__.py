"""Verifiers: answer text in, `Verdict` out. Free of torch; only the worker processes import math-verify and SymPy."""

from forklight.types import Verdict
from forklight.verify.base import ReadsProblems, SortsAnswers, StartsEarly, Verifier, judge, sort_answers, start_early
from forklight.verify.countdown import CountdownVerifier
from forklight.verify.format import FormatVerifier
from forklight.verify.function import FunctionVerifier
from forklight.verify.math.verifier import MathVerifier
from forklight.verify.short_answer import ChoiceVerifier, IntegerVerifier
from forklight.verify.weighted import Weighted, WeightedVerifier

__all__ = [
    "ChoiceVerifier",
    "CountdownVerifier",
    "FormatVerifier",
    "FunctionVerifier",
    "IntegerVerifier",
    "MathVerifier",
    "ReadsProblems",
    "SortsAnswers",
    "StartsEarly",
    "Verdict",
    "Verifier",
    "Weighted",
    "WeightedVerifier",
    "judge",
    "sort_answers",
    "start_early",
]
