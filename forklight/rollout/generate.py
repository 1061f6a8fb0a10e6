"""Sampling and verifying: what training and evaluation share."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from forklight.algo.noise import hash_bits, string_key
from forklight.data.prompts import PromptTemplate
from forklight.errors import NonFiniteError
from forklight.sampling.answer_text import AnswerText
from forklight.sampling.base import Sampled, Sampler, SamplingParams
from forklight.sampling.stops import StopCheck
from forklight.stopwatch import Stopwatch
from forklight.types import Completion, Problem, Verdict
from forklight.verify import Verifier, judge


@dataclass(frozen=True, slots=True)
class Group:
    """A problem, its answers and their verdicts."""

    problem: Problem
    problem_index: int
    """Number of the problem in the rollout, over all ranks; 0 in evaluations."""
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def right(self) -> int:
        """Number of right answers."""
        return sum(verdict.right for verdict in self.verdicts)

    @property
    def mixed(self) -> bool:
        """True if there are right and other answers: 0 < #right < G."""
        return 0 < self.right < len(self.verdicts)


class AnswerGenerator:
    """Samples answers to problems and verifies them.

    Args:
        sampler: the engine.
        tokenizer: the policy's.
        eos_ids: the tokens that end an answer.
        seed: the run's seed, from which all noise is derived.
        stops: what ends an answer besides these.
        answer_text: decodes answers for the verifier.
        max_positions: the longest sequence the model can read; None if it does not say.
        embeddings: the number of tokens that the model has a row for; None: all of the tokenizer's.
        stopwatch: times the phases `sample` and `verify`.

    Raises:
        ValueError: the model has no row for any token that ends an answer.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: tuple[int, ...],
        *,
        seed: int,
        stops: StopCheck | None = None,
        answer_text: AnswerText | None = None,
        max_positions: int | None = None,
        embeddings: int | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.seed = seed
        self.stops = stops
        self.answer_text = answer_text or AnswerText(tokenizer)
        self.max_positions = max_positions
        self.embeddings = embeddings
        if embeddings is not None and min(eos_ids) >= embeddings:
            raise ValueError(
                f"model.policy: the tokens that end an answer are {list(eos_ids)}, the model has {embeddings}: the "
                "tokenizer and the model do not belong together"
            )
        self.stopwatch = stopwatch or Stopwatch()

    def answer(
        self,
        problems: Sequence[Problem],
        problem_indices: Sequence[int],
        rollout: int,
        *,
        answers: int,
        max_new_tokens: int,
        temperature: float,
        template: PromptTemplate,
        verifier: Verifier,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> list[Group]:
        """Samples and verifies some answers to each problem.

        Args:
            problems: the problems of this rank.
            problem_indices: their numbers in the rollout; with `rollout` and the uid they determine the noise.
            rollout: number of the rollout.
            answers: answers per problem.
            max_new_tokens: length limit of an answer.
            temperature: sampling temperature; 0 is greedy.
            template: how a problem becomes a prompt.
            verifier: judges the answers.
            top_p: sample from the most probable tokens that together reach this probability; 1 is off.
            top_k: sample from this number of most probable tokens; 0 is off.
            seed: in place of the run's seed, for noise that is the same in all runs.

        Raises:
            ValueError: a prompt and an answer together exceed what the model can read, top_p or top_k is out of range,
                the sampler gives another number of log-probabilities than of tokens, or a reward is not finite.
            NonFiniteError: a token was sampled with a log-probability that is NaN or infinite.
        """
        if not problems:
            return []
        encoded = template.prompts(problems, self.tokenizer)
        prompts = [prompt.token_ids for prompt in encoded]
        self._check_tokens(problems, prompts)
        self._check_length(problems, prompts, max_new_tokens)
        uids = torch.tensor([string_key(problem.uid) for problem in problems])
        keys = hash_bits(
            self.seed if seed is None else seed, rollout, uids, torch.tensor(list(problem_indices))
        ).tolist()
        decoding = SamplingParams(max_new_tokens, temperature, self.eos_ids, top_p, top_k, self.stops)
        with self.stopwatch.phase("sample"):
            sampled = self.sampler.sample(prompts, keys, answers, decoding)
        if self.stops is not None:
            sampled = [[_up_to_stop(answer, self.stops) for answer in group] for group in sampled]
        logps = self._logps(problems, prompts, sampled)
        token_ids = [answer.token_ids for group in sampled for answer in group]
        begun = [prompt.begun for prompt in encoded for _ in range(answers)]
        texts = [start + text for start, text in zip(begun, self._texts(token_ids), strict=True)]

        with self.stopwatch.phase("verify"):
            asked = [problem for problem in problems for _ in range(answers)]
            verdicts = judge(verifier, list(zip(texts, asked, strict=True)))
            _check_rewards(verifier, verdicts)

        groups = []
        for i, problem in enumerate(problems):
            span = slice(i * answers, (i + 1) * answers)
            completions = tuple(
                self._completion(problem, index, *answer)
                for index, answer in enumerate(zip(sampled[i], texts[span], logps[span], strict=True))
            )
            groups.append(Group(problem, problem_indices[i], tuple(prompts[i]), completions, tuple(verdicts[span])))
        return groups

    def _check_tokens(self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]]) -> None:
        """Refuses a prompt with a token that was added to the tokenizer alone."""
        most = max(max(ids, default=0) for ids in prompts)
        if self.embeddings is None or most < self.embeddings:
            return
        uid = next(problem.uid for problem, ids in zip(problems, prompts, strict=True) if most in ids)
        raise ValueError(
            f"the prompt of problem {uid} has token {most} ({self.tokenizer.convert_ids_to_tokens(most)!r}), the "
            f"policy's embedding has {self.embeddings} rows: a token was added to the tokenizer but not to the model "
            "(resize_token_embeddings)"
        )

    def _stopped(self, token_ids: list[int]) -> bool:
        return self.stops is not None and self.stops.ends(token_ids)

    def _texts(self, answers: list[list[int]]) -> list[str]:
        """The texts of answers, up to their stops."""
        texts = self.answer_text.of_many(answers)
        if self.stops is None:
            return texts
        return [
            self.stops.text_before(ids) if self.stops.ends(ids) else text
            for ids, text in zip(answers, texts, strict=True)
        ]

    def _logps(
        self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]], sampled: list[list[Sampled]]
    ) -> "list[array[float] | None]":
        """The log-probabilities of all answers in turn; checks that there is one per token and all are finite."""
        logps = []
        for problem, group in zip(problems, sampled, strict=True):
            for index, answer in enumerate(group):
                logp = None if answer.logp is None else array("f", answer.logp)
                if logp is not None and len(logp) != len(answer.token_ids):
                    raise ValueError(
                        f"{type(self.sampler).__name__} gives {len(logp)} log-probabilities for answer {index} to "
                        f"problem {problem.uid}, which has {len(answer.token_ids)} tokens"
                    )
                logps.append(logp)
        every = np.frombuffer(b"".join(logp for logp in logps if logp is not None), np.float32)
        if not np.isfinite(every).all():
            shown = [
                {"uid": problem.uid, "prompt_ids": list(prompt), "token_ids": ids, "logp": list(logp or ())}
                for problem, prompt, group in zip(problems, prompts, sampled, strict=True)
                for ids, logp in group
            ]
            raise NonFiniteError(_first_broken(logps, problems, len(logps) // len(problems)), {"answers": shown})
        return logps

    def _completion(
        self, problem: Problem, index: int, answer: Sampled, text: str, logp: "array[float] | None"
    ) -> Completion:
        truncated = answer.token_ids[-1] not in self.eos_ids and not self._stopped(answer.token_ids)
        return Completion(problem.uid, index, tuple(answer.token_ids), text, truncated, logp)

    def _check_length(self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]], new: int) -> None:
        longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
        total = len(prompts[longest]) + new
        if self.max_positions is not None and total > self.max_positions:
            raise ValueError(
                f"problem {problems[longest].uid} has a prompt of {len(prompts[longest])} tokens; with "
                f"max_new_tokens = {new} that makes {total}, more than the {self.max_positions} the model can read"
            )


def _up_to_stop(answer: Sampled, stops: StopCheck) -> Sampled:
    """The samplers that ship end there; what another one has sampled after a stop is cut."""
    length = stops.length(answer.token_ids)
    return Sampled(answer.token_ids[:length], None if answer.logp is None else answer.logp[:length])


def _check_rewards(verifier: Verifier, verdicts: Sequence[Verdict]) -> None:
    broken = next((verdict for verdict in verdicts if not math.isfinite(verdict.reward)), None)
    if broken is not None:
        raise ValueError(f"{type(verifier).__name__} gave a reward of {broken.reward} ({broken.reason}), not a number")


def _first_broken(logps: "Sequence[array[float] | None]", problems: Sequence[Problem], answers: int) -> str:
    """Names the first token whose log-probability is not finite."""
    number, token, value = next(
        (number, token, value)
        for number, logp in enumerate(logps)
        for token, value in enumerate(logp or ())
        if not math.isfinite(value)
    )
    why = ": the policy's logits are not finite" if math.isnan(value) else ""
    return (
        f"token {token} of answer {number % answers} to problem {problems[number // answers].uid} "
        f"was sampled with log-probability {value}{why}"
    )
