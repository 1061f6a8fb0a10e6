"""Serves problems with their template and verifier: micro-batches for training, batches for evaluation."""

import os
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule

from forklight.data.benchmarks import Benchmark
from forklight.data.prompts import PromptTemplate
from forklight.data.sets import EvalSet, ProblemSource
from forklight.data.stream import NOMINAL_LENGTH, EvalBatch, PositionedLoader, ProblemStream, PromptBatch
from forklight.types import Problem
from forklight.verify import MathVerifier, Verifier, start_early


class MathDataModule(LightningDataModule):
    """Math problems with verifiable answers.

    Args:
        train: sources of training problems, read one after the other; duplicates are dropped.
        val: evaluation sets by name, scored during training and by `validate`.
        test: evaluation sets by name, scored by `test` and answered by `predict`; `val` if not given.
        template: how a problem becomes a prompt.
        verifier: judges the answers; `MathVerifier` if not given.
        prompts_per_rollout: P, problems per rollout over all ranks.
        answers_per_prompt: G, answers sampled per problem.
        updates_per_rollout: K, optimiser updates per rollout; 1 is on-policy.
        eval_every_rollouts: rollouts between two evaluations.
        eval_batch_size: problems answered together in an evaluation.
    """

    def __init__(
        self,
        train: Sequence[ProblemSource] = (),
        val: dict[str, EvalSet] | None = None,
        test: dict[str, EvalSet] | None = None,
        template: PromptTemplate = PromptTemplate(),  # noqa: B008  a frozen value
        verifier: Verifier | None = None,
        prompts_per_rollout: int = 64,
        answers_per_prompt: int = 8,
        updates_per_rollout: int = 1,
        eval_every_rollouts: int = 10,
        eval_batch_size: int = 64,
    ) -> None:
        super().__init__()
        sizes = {
            "data.prompts_per_rollout": prompts_per_rollout,
            "data.updates_per_rollout": updates_per_rollout,
            "data.eval_every_rollouts": eval_every_rollouts,
            "data.eval_batch_size": eval_batch_size,
        }
        for key, value in sizes.items():
            if value < 1:
                raise ValueError(f"{key} = {value} must be at least 1")
        if answers_per_prompt < 2:
            raise ValueError(f"data.answers_per_prompt = {answers_per_prompt}: advantages need a group of at least 2")
        self.train_sources = train
        self.val_sets = val or {}
        self.test_sets = self.val_sets if test is None else test
        self.template = template
        self.verifier = verifier or MathVerifier()
        self.prompts_per_rollout = prompts_per_rollout
        self.answers_per_prompt = answers_per_prompt
        self.updates_per_rollout = updates_per_rollout
        self.eval_every_rollouts = eval_every_rollouts
        self.eval_batch_size = eval_batch_size
        self._stream: ProblemStream | None = None
        # position: rollout, its micro-batches served, its first problem
        self._rollout, self._micro_batch, self._start = 0, 0, 0
        self._cursor = 0
        self._eval_problems: dict[int, list[Problem]] = {}  # by id of the set: `test` may share those of `val`

    def setup(self, stage: str) -> None:
        """Starts the processes of verifiers while the model is loaded."""
        sets = {"fit": self.val_sets, "validate": self.val_sets}.get(stage, self.test_sets)
        verifiers = [self._eval_batch(name, [], spec).verifier for name, spec in sets.items()]
        for verifier in [*verifiers, *([self.verifier] if stage == "fit" else [])]:
            start_early(verifier)

    def read(self) -> int:
        """Reads the problems of training and of its evaluations, before their first use.

        Returns:
            The number of training problems.

        Raises:
            ValueError: a source is malformed (with the place) or empty, or there is none to train on.
            FileNotFoundError: a source does not exist.
        """
        for spec in self.val_sets.values():
            self._problems(spec)
        return len(self.stream.problems)

    @property
    def position(self) -> int:
        """Micro-batches served so far, counted with the present A."""
        return self._rollout * self.micro_batches_per_rollout + self._micro_batch

    @property
    def micro_batches(self) -> int:
        """A."""
        assert self.trainer is not None
        return int(self.trainer.accumulate_grad_batches)

    @property
    def micro_batches_per_rollout(self) -> int:
        """Micro-batches per rollout, K*A."""
        return self.updates_per_rollout * self.micro_batches

    @property
    def stream(self) -> ProblemStream:
        """The order of training problems."""
        if self._stream is None:
            problems = list({problem.uid: problem for s in self.train_sources for problem in s.read()}.values())
            if not problems:
                raise ValueError("data.train: no training problems; `fit` needs at least one source")
            self._stream = ProblemStream(problems, seed=int(os.environ.get("PL_GLOBAL_SEED", "42")))
            self._stream.cursor = self._cursor
        return self._stream

    # -- training ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> PositionedLoader:
        """Every batch of P problems K*A times, from the present position on."""
        return PositionedLoader(NOMINAL_LENGTH, start=lambda: self.position, batch=self._next)

    def _next(self, number: int) -> PromptBatch:
        """The batch of micro-batch `number`; the position advances before the batch is returned."""
        rollout, micro_batch = divmod(number, self.micro_batches_per_rollout)
        if micro_batch == 0:
            self._start = self.stream.cursor
            self.stream.draw(self.prompts_per_rollout)
        self._rollout, self._micro_batch = divmod(number + 1, self.micro_batches_per_rollout)
        return PromptBatch(
            self.stream.at(self._start, self.prompts_per_rollout),
            rollout=rollout,
            micro_batch=micro_batch,
            updates=self.updates_per_rollout,
            micro_batches=self.micro_batches,
            answers=self.answers_per_prompt,
            stream=self.stream,
            template=self.template,
            verifier=self.verifier,
        )

    def state_dict(self) -> dict[str, Any]:
        """The position, as numbers only."""
        return {
            "rollout": self._rollout,
            "micro_batch": self._micro_batch,
            "start": self._start,
            "cursor": self._stream.cursor if self._stream is not None else self._cursor,
            "micro_batches": self.micro_batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved position.

        Raises:
            ValueError: the checkpoint lies inside a rollout and A has changed.
        """
        if state["micro_batch"] and state["micro_batches"] != self.micro_batches:
            raise ValueError(
                f"trainer.accumulate_grad_batches = {self.micro_batches}, but the checkpoint lies inside a rollout "
                f"with {state['micro_batches']} micro-batches per update; it can only change at a rollout boundary"
            )
        self._rollout, self._micro_batch, self._start = state["rollout"], state["micro_batch"], state["start"]
        self._cursor = state["cursor"]
        if self._stream is not None:
            self._stream.cursor = self._cursor

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def val_dataloader(self) -> PositionedLoader:
        """The evaluation sets of `data.val`, one after the other."""
        return self._eval_loader(self.val_sets)

    def test_dataloader(self) -> PositionedLoader:
        """The evaluation sets of `data.test`."""
        return self._eval_loader(self.test_sets)

    def predict_dataloader(self) -> PositionedLoader:
        """The evaluation sets of `data.test`."""
        return self._eval_loader(self.test_sets)

    def _eval_loader(self, sets: dict[str, EvalSet]) -> PositionedLoader:
        """Batches of this rank; all ranks have the same number, so some problems come twice: scores are per uid."""
        assert self.trainer is not None
        if not sets:
            raise ValueError("data.val, data.test: there is no evaluation set to answer")
        rank, size = self.trainer.global_rank, self.trainer.world_size
        batches: list[EvalBatch] = []
        for name, spec in sets.items():
            problems = self._problems(spec)
            share = -(-len(problems) // size)
            mine = [problems[(rank + i * size) % len(problems)] for i in range(share)]
            batches += [self._eval_batch(name, part, spec) for part in _parts(mine, self.eval_batch_size)]
        return PositionedLoader(len(batches), start=lambda: 0, batch=batches.__getitem__)

    def _problems(self, spec: EvalSet) -> list[Problem]:
        if id(spec) not in self._eval_problems:
            self._eval_problems[id(spec)] = spec.source.read()
        return self._eval_problems[id(spec)]

    def _eval_batch(self, name: str, problems: Sequence[Problem], spec: EvalSet) -> EvalBatch:
        template, verifier = spec.template or self.template, spec.verifier or self.verifier
        if isinstance(spec.source, Benchmark):
            template = spec.template or spec.source.template(self.template.kind)
            verifier = spec.verifier or spec.source.verifier()
        return EvalBatch(name, problems, spec, template, verifier)


def _parts(problems: list[Problem], size: int) -> list[list[Problem]]:
    return [problems[i : i + size] for i in range(0, len(problems), size)]
