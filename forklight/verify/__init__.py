"""Verifiers: answer text in, `Verdict` out. Free of torch; only the worker process imports math-verify and SymPy."""

from forklight.types import Verdict
from forklight.verify.base import Verifier
from forklight.verify.countdown import CountdownVerifier
from forklight.verify.equal import MathVerifier

__all__ = ["CountdownVerifier", "MathVerifier", "Verdict", "Verifier"]
