"""Serves problems with their template and verifier: micro-batches for training, batches for evaluation."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, get_args

from lightning.pytorch import LightningDataModule

from forklight.data.benchmarks import Benchmark
from forklight.data.checks import SetChecks, TrialAction
from forklight.data.lengths import Overlong, PromptLimit, fitting
from forklight.data.problems import ProblemFile
from forklight.data.prompts import PromptTemplate
from forklight.data.sets import EvalSet
from forklight.data.source import ProblemSource
from forklight.data.stream import (
    NOMINAL_LENGTH,
    EvalBatch,
    PositionedLoader,
    ProblemStream,
    PromptBatch,
    check_same,
)
from forklight.types import Problem
from forklight.verify import MathVerifier, Verifier, start_early


class MathDataModule(LightningDataModule):
    """Math problems with verifiable answers.

    Args:
        train: sources of training problems, read one after the other; duplicates are dropped. A text stands for the
            `ProblemFile` with this path.
        val: evaluation sets by name, scored during training and by `validate`.
        test: evaluation sets by name, scored by `test` and answered by `predict`; `val` if not given.
        template: how a problem becomes a prompt.
        verifier: judges the answers; `MathVerifier` if not given.
        prompts_per_rollout: P, problems per rollout over all ranks.
        answers_per_prompt: G, answers sampled per problem.
        updates_per_rollout: K, optimiser updates per rollout; 1 is on-policy.
        eval_every_rollouts: rollouts between two evaluations.
        eval_batch_size: problems answered together in an evaluation.
        unreadable_golds: largest share of a set's golds that the verifier may be unable to read; above it the run is
            refused, up to it they are listed.
        reward_trial: what to do if a reward function, or a verifier class of your own, cannot judge the answers that it
            is tried on before the run.
        overlong: what is done about training prompts that leave no room for the longest answer: `error`, or `drop`
            with a warning that counts them. Evaluation sets are never shortened.
    """

    def __init__(
        self,
        train: str | Sequence[ProblemSource | str] = (),
        val: dict[str, EvalSet] | None = None,
        test: dict[str, EvalSet] | None = None,
        template: PromptTemplate = PromptTemplate(),  # noqa: B008  a frozen value
        verifier: Verifier | None = None,
        prompts_per_rollout: int = 64,
        answers_per_prompt: int = 8,
        updates_per_rollout: int = 1,
        eval_every_rollouts: int = 10,
        eval_batch_size: int = 64,
        unreadable_golds: float = 0.05,
        reward_trial: TrialAction = "error",
        overlong: Overlong = "error",
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
        if overlong not in get_args(Overlong):
            raise ValueError(f"data.overlong = {overlong!r} must be one of {', '.join(get_args(Overlong))}")
        sources = [train] if isinstance(train, str) else train
        self.train_sources = [ProblemFile(each) if isinstance(each, str) else each for each in sources]
        self.val_sets = val or {}
        self.test_sets = self.val_sets if test is None else test
        self.template = template
        self.verifier = verifier or MathVerifier()
        self.prompts_per_rollout = prompts_per_rollout
        self.answers_per_prompt = answers_per_prompt
        self.updates_per_rollout = updates_per_rollout
        self.eval_every_rollouts = eval_every_rollouts
        self.eval_batch_size = eval_batch_size
        self.overlong = overlong
        self._limit: PromptLimit | None = None
        self._stream: ProblemStream | None = None
        # position: rollout, its micro-batches served, its first problem
        self._rollout, self._micro_batch, self._start = 0, 0, 0
        self._cursor = 0
        self._trained_on: dict[str, Any] | None = None  # of the checkpoint, until it is compared
        self._eval_problems: dict[int, list[Problem]] = {}  # by id of the set: `test` may share those of `val`
        self._checks = SetChecks(unreadable_golds, reward_trial)

    def setup(self, stage: str) -> None:
        """Starts the processes of verifiers while the model is loaded, and checks golds and verifiers if nobody has."""
        if stage == "fit" and not self.val_sets and self.trainer is not None:
            self.trainer.limit_val_batches = 0  # otherwise Lightning asks for a loader of evaluations
        sets = {"fit": self.val_sets, "validate": self.val_sets}.get(stage, self.test_sets)
        verifiers = [self._eval_batch(name, [], spec).verifier for name, spec in sets.items()]
        for verifier in [*verifiers, *([self.verifier] if stage == "fit" else [])]:
            start_early(verifier)
        self.for_policy(getattr(getattr(self.trainer, "lightning_module", None), "prompt_limit", None))
        self._check_sets(sets, "data.val" if sets is self.val_sets else "data.test")
        if stage == "fit":
            self._check_training()

    def for_policy(self, limit: PromptLimit | None) -> None:
        """Says what the policy can read: problems are checked by it when they are read, before the model is loaded."""
        if limit is None or limit == self._limit:
            return
        self._limit = limit
        self._eval_problems.clear()
        if self._stream is not None:  # read without a check
            self._cursor, self._stream = self._stream.cursor, None

    def read(self) -> int:
        """Reads the problems of training and of its evaluations, before their first use, and checks them.

        Returns:
            The number of training problems.

        Raises:
            ValueError: a source is malformed (with the place) or empty, there is none to train on, the policy cannot
                read a prompt, too many golds cannot be read by their verifier, or a reward function cannot judge.
            FileNotFoundError: a source does not exist.
        """
        self._check_sets(self.val_sets, "data.val")
        self._check_training()
        return len(self.stream.problems)

    def _check_training(self) -> None:
        problems = sorted(self.stream.problems, key=lambda problem: problem.source)
        for source, of_source in groupby(problems, key=lambda problem: problem.source):
            self._checks(list(of_source), self.verifier, f"data.train ({source})", "data.verifier")

    def _check_sets(self, sets: Mapping[str, EvalSet], key: str) -> None:
        for name, spec in sets.items():
            verifier = self._eval_batch(name, [], spec).verifier
            own = f"{key}.{name}.verifier" if verifier is not self.verifier else "data.verifier"
            self._checks(self._problems(spec), verifier, f"{key}.{name}", own)

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
            if self._limit is not None:
                problems = fitting(problems, self.template, self._limit, key="data.train", overlong=self.overlong)
            stream = ProblemStream(problems, seed=int(os.environ.get("PL_GLOBAL_SEED", "42")))
            check_same(self._trained_on, stream)
            stream.cursor = self._cursor
            self._stream = stream
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
        """The position, and which problems it is a position in."""
        return {
            **(self._stream.identity if self._stream is not None else self._trained_on or {}),
            "rollout": self._rollout,
            "micro_batch": self._micro_batch,
            "start": self._start,
            "cursor": self._stream.cursor if self._stream is not None else self._cursor,
            "micro_batches": self.micro_batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved position.

        Raises:
            ValueError: the checkpoint lies inside a rollout and A has changed, or it was trained on other problems.
        """
        if state["micro_batch"] and state["micro_batches"] != self.micro_batches:
            raise ValueError(
                f"trainer.accumulate_grad_batches = {self.micro_batches}, but the checkpoint lies inside a rollout "
                f"with {state['micro_batches']} micro-batches per update; it can only change at a rollout boundary"
            )
        self.check_resumed(state)
        self._rollout, self._micro_batch, self._start = state["rollout"], state["micro_batch"], state["start"]
        self._cursor = state["cursor"]
        if self._stream is not None:
            self._stream.cursor = self._cursor

    def check_resumed(self, state: dict[str, Any]) -> None:
        """Refuses the state of a run on other training problems, now or as soon as they are read.

        Raises:
            ValueError: it is one.
        """
        self._trained_on = {key: state[key] for key in ("problems", "problems_sha256") if key in state}
        if self._stream is not None:
            check_same(self._trained_on, self._stream)

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
            problems = spec.source.read()
            if self._limit is not None:
                named = [("data.val", self.val_sets), ("data.test", self.test_sets)]
                key = next(f"{key}.{name}" for key, sets in named for name, each in sets.items() if each is spec)
                template, new = self._eval_batch(key, [], spec).template, spec.max_new_tokens
                fitting(problems, template, self._limit, key=key, max_new_tokens=new)
            self._eval_problems[id(spec)] = problems
        return self._eval_problems[id(spec)]

    def _eval_batch(self, name: str, problems: Sequence[Problem], spec: EvalSet) -> EvalBatch:
        template, verifier = spec.template or self.template, spec.verifier or self.verifier
        if isinstance(spec.source, Benchmark):
            of_benchmark = spec.source.template(self.template.kind)
            keywords = self.template.chat_template_kwargs
            template = spec.template or replace(of_benchmark, chat_template_kwargs=keywords)
            verifier = spec.verifier or spec.source.verifier()
        return EvalBatch(name, problems, spec, template, verifier)


def _parts(problems: list[Problem], size: int) -> list[list[Problem]]:
    return [problems[i : i + size] for i in range(0, len(problems), size)]
