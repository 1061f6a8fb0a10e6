"""Answers and verdicts that were recorded once: the same rollouts whatever sampler, tokenizer or noise come later."""

import json
from collections.abc import Sequence
from pathlib import Path

from forklight.models.policy import Policy
from forklight.sampling.base import Sampled, SamplingParams
from forklight.sampling.hf import HFSampler
from forklight.types import Verdict

ROLLOUTS = Path(__file__).parents[1] / "golden" / "rollouts.json"


class ReplaySampler:
    """Gives the recorded answers, call by call, and checks that the prompts are those of the recording."""

    def __init__(self) -> None:
        self.calls = json.loads(ROLLOUTS.read_text())["calls"]
        self.next = 0

    half_precision = False

    def sync(self, policy: Policy) -> None:
        """The answers do not depend on it."""

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: SamplingParams
    ) -> list[list[Sampled]]:
        call = self.calls[self.next]
        self.next += 1
        assert call["prompts"] == prompts
        return [[Sampled(ids, logp=None) for ids in group] for group in call["answers"]]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """It cannot tell."""

    def sleep(self) -> None:
        """It holds nothing."""

    def close(self) -> None:
        """It holds nothing."""


class ReplayVerifier:
    """Gives the recorded verdicts by the answer's text."""

    def __init__(self) -> None:
        self.right = set(json.loads(ROLLOUTS.read_text())["right"])

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        return [Verdict("right" if text in self.right else "wrong", "recorded", extracted=text) for text, _ in pairs]


class RecordingSampler(HFSampler):
    """Samples, and keeps every call for `ReplaySampler`; like it, tells no log-probabilities."""

    calls: list = []  # noqa: RUF012  of the class, so that the recording is reachable from outside of the run

    def sample(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], answers: int, decoding: SamplingParams
    ) -> list[list[Sampled]]:
        sampled = super().sample(prompts, keys, answers, decoding)
        answers_only = [[answer.token_ids for answer in group] for group in sampled]
        self.calls.append({"prompts": prompts, "answers": answers_only})
        return [[Sampled(ids, logp=None) for ids in group] for group in answers_only]


class RecordingVerifier:
    """Judges by parity, and keeps the right answers for `ReplayVerifier`."""

    right: set = set()  # noqa: RUF012

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        right = [len(text.encode()) % 2 == 0 for text, _ in pairs]
        self.right.update(text for (text, _), good in zip(pairs, right, strict=True) if good)
        return [
            Verdict("right" if good else "wrong", "parity", extracted=text)
            for (text, _), good in zip(pairs, right, strict=True)
        ]
