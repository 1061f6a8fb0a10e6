"""Verifiers: answer text in, `Verdict` out. Free of torch; only the worker processes import math-verify and SymPy."""

from forklight.types import Verdict
from forklight.verify.base import (
    DescribesItself,
    ReadsGolds,
    ReadsProblems,
    SortsAnswers,
    StartsEarly,
    Verifier,
    describe,
    gold_faults,
    judge,
    sort_answers,
    start_early,
)
from forklight.verify.countdown import CountdownVerifier
from forklight.verify.format import FormatVerifier
from forklight.verify.function import FunctionVerifier
from forklight.verify.math.verifier import MathVerifier
from forklight.verify.reasoning_gym import ReasoningGymVerifier
from forklight.verify.short_answer import ChoiceVerifier, IntegerVerifier
from forklight.verify.weighted import Weighted, WeightedVerifier

__all__ = [
    "ChoiceVerifier",
    "CountdownVerifier",
    "DescribesItself",
    "FormatVerifier",
    "FunctionVerifier",
    "IntegerVerifier",
    "MathVerifier",
    "ReadsGolds",
    "ReadsProblems",
    "ReasoningGymVerifier",
    "SortsAnswers",
    "StartsEarly",
    "Verdict",
    "Verifier",
    "Weighted",
    "WeightedVerifier",
    "describe",
    "gold_faults",
    "judge",
    "sort_answers",
    "start_early",
]
