"""The answers of an evaluation as plain records, for scores, files and reward curves."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from forklight import __version__
from forklight.data.stream import EvalBatch
from forklight.evaluation.suspicious import Judged, Suspicious
from forklight.metrics import NO_ANSWER
from forklight.metrics.scores import shown_k
from forklight.rollout.generate import Group
from forklight.rollout.reward_stats import reward_by_length, verdict_counts
from forklight.types import Problem, Verdict
from forklight.verify import Verifier, sort_answers
from forklight.verify.math.extract import extract_box

Line = dict[str, Any]
"""A line of a `.jsonl` file."""

Key = tuple[str, str, int]
"""Set, uid and number of an answer."""

_PACKAGES = ("torch", "transformers", "math-verify")


def answer_lines(groups: Sequence[Group], name: str, step: int) -> dict[Key, Line]:
    """One line per answer, as in `samples.jsonl`.

    Args:
        groups: problems with their answers and verdicts.
        name: the set's.
        step: updates done.
    """
    return {
        (name, group.problem.uid, completion.index): {
            "step": step,
            "set": name,
            "uid": group.problem.uid,
            "answer": completion.index,
            "prompt": group.problem.prompt,
            "gold": group.problem.answer,
            "text": completion.text,
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "extracted": verdict.extracted,
            "reward": verdict.reward,
            "parts": dict(verdict.parts),
            "truncated": completion.truncated,
            "tokens": len(completion.token_ids),
        }
        for group in groups
        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
    }


def judged_of(line: Line) -> Judged:
    """The answer in a line of `answer_lines`."""
    return Judged(
        problem=Problem(line["uid"], line["prompt"], line["gold"], line["set"]),
        number=line["answer"],
        text=line["text"],
        tokens=line["tokens"],
        truncated=line["truncated"],
        verdict=Verdict(
            line["outcome"],
            line["reason"],
            line["extracted"],
            score=line["reward"],
            parts=tuple(line["parts"].items()),
        ),
    )


def votes_of(groups: Sequence[Group], verifier: Verifier) -> list[list[int]]:
    """The vote of every answer, for `MajAtK`: right ones are class 0, the verifier groups wrong ones into classes.

    Where right answers come without the part that was judged, the verifier reads no answers out of texts: there each,
    right or wrong, votes for its last box, or for its whole text if it has none.
    """
    classes = sort_answers(verifier, [_compared(group) for group in groups])
    return [
        _votes(group, numbers) if _reads_answers(group) else numbers
        for group, numbers in zip(groups, classes, strict=True)
    ]


def _reads_answers(group: Group) -> bool:
    return all(verdict.extracted is not None for verdict in group.verdicts if verdict.right)


def _compared(group: Group) -> list[str]:
    """The answers that have to be grouped into classes."""
    if _reads_answers(group):
        return [v.extracted for v in group.verdicts if v.outcome == "wrong" and v.extracted is not None]
    return [extract_box(completion.text).answer or completion.text for completion in group.completions]


def _votes(group: Group, classes: list[int]) -> list[int]:
    """Unjudged answers are not compared with other answers by the verifier either: equal texts are one class."""
    numbers = iter(classes)
    unjudged: dict[str, int] = {}
    votes = []
    for verdict in group.verdicts:
        if verdict.right:
            votes.append(0)
        elif verdict.extracted is None:
            votes.append(NO_ANSWER)
        elif verdict.outcome == "wrong":
            votes.append(1 + next(numbers))
        else:
            votes.append(1 + len(classes) + unjudged.setdefault(verdict.extracted, len(unjudged)))
    return votes


@dataclass(frozen=True)
class Evaluated:
    """An evaluation set that has been answered and scored."""

    batch: EvalBatch
    """Any batch of the set, for its protocol, template and verifier."""
    scores: dict[str, float]
    """By name; NaN where a score is not defined."""
    answers: list[Judged]
    """The answers of all ranks, each once."""
    limit: int
    """Longest answer, in tokens."""
    seed: int
    """Seed of the sampling noise."""
    stop: tuple[str | int, ...]
    """What ended answers besides EOS."""

    @property
    def name(self) -> str:
        """The set's name."""
        return self.batch.name

    def shown_scores(self) -> dict[str, float]:
        """The scores that get a curve: pass@k for k = 2, 4, 8 .. and n only, and none that is not defined."""
        shown = {f"pass@{k}" for k in shown_k(self.batch.spec.sampling.answers)}
        defined = {key: value for key, value in self.scores.items() if not math.isnan(value)}
        return {key: value for key, value in defined.items() if key in shown or not key.startswith("pass@")}

    def reward_curves(self) -> dict[str, float]:
        """The sources of the rewards: by rule, and by length of the answer."""
        counts = verdict_counts([answer.verdict for answer in self.answers])
        by_length = reward_by_length([(answer.verdict, answer.tokens) for answer in self.answers], self.limit)
        return {key: value for key, value in counts.items() if key.startswith("rule/")} | by_length

    def record(self, step: int) -> Line:
        """A line of `scores.jsonl`: all scores, and the settings needed to compare or repeat them.

        Args:
            step: updates done.
        """
        problems = sorted({(answer.problem.uid, answer.problem.answer) for answer in self.answers})
        return {
            "step": step,
            "set": self.name,
            "problems": len(problems),
            "problems_hash": hashlib.sha256(repr(problems).encode()).hexdigest()[:16],
            **self.batch.spec.sampling._asdict(),
            "max_new_tokens": self.limit,
            "stop": list(self.stop),
            "seed": self.seed,
            "template": asdict(self.batch.template),
            "verifier": _described(self.batch.verifier),
            "versions": {"forklight": __version__} | {name: version(name) for name in _PACKAGES},
            "scores": {key: None if math.isnan(value) else value for key, value in self.scores.items()},
        }


def suspicious_lines(step: int, found: dict[str, list[Suspicious]]) -> list[Line]:
    """One line per answer, as in `suspicious.jsonl`.

    Args:
        step: updates done.
        found: answers by set.
    """
    return [
        {
            "step": step,
            "set": name,
            "uid": answer.problem.uid,
            "answer": answer.number,
            "why": list(why),
            "prompt": answer.problem.prompt,
            "gold": answer.problem.answer,
            "text": answer.text,
            "reason": answer.verdict.reason,
            "extracted": answer.verdict.extracted,
            "tokens": answer.tokens,
        }
        for name, items in found.items()
        for answer, why in items
    ]


def _described(verifier: Verifier) -> str:
    """A verifier with its settings: `MathVerifier(extraction='box', timeout=3.0)`."""
    settings = {name: value for name, value in vars(verifier).items() if isinstance(value, str | int | float)}
    shown = ", ".join(f"{name}={value!r}" for name, value in settings.items() if not name.startswith("_"))
    return f"{type(verifier).__name__}({shown})"
