"""The order of problems, and the batches that the loaders serve, one per micro-batch of a rollout."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from forklight.algo.noise import hash_uniform
from forklight.data.prompts import PromptTemplate
from forklight.data.sets import EvalSet
from forklight.types import Problem
from forklight.verify import Verifier

NOMINAL_LENGTH = 10**9
"""Length of the one nominal epoch. Lightning would prefetch an unsized loader: training would be one step stale."""


class ProblemStream:
    """An endless, seeded order of problems: every pass over the data is a new permutation.

    Its only state is `cursor`, the number of problems drawn so far.

    Args:
        problems: at least one.
        seed: `seed_everything`.
    """

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self.problems = problems
        self.seed = seed
        self.cursor = 0
        self._order: tuple[int, list[int]] = (-1, [])

    @cached_property
    def identity(self) -> dict[str, Any]:
        """How many problems there are, and a hash of all that decides their order and their golds."""
        digest = hashlib.sha256()
        for problem in self.problems:
            digest.update(f"{problem.uid}\0{problem.answer}\0".encode())
        return {"problems": len(self.problems), "problems_sha256": digest.hexdigest()[:16]}

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.cursor / len(self.problems)

    def draw(self, count: int) -> list[Problem]:
        """The next problems; the same on every rank."""
        drawn = self.at(self.cursor, count)
        self.cursor += count
        return drawn

    def at(self, start: int, count: int) -> list[Problem]:
        """The problems numbered start .. start+count-1."""
        return [self._problem(i) for i in range(start, start + count)]

    def _problem(self, number: int) -> Problem:
        epoch, index = divmod(number, len(self.problems))
        if self._order[0] != epoch:
            noise = hash_uniform(self.seed, epoch, torch.arange(len(self.problems)))
            self._order = (epoch, noise.argsort(stable=True).tolist())
        return self.problems[self._order[1][index]]


def check_same(saved: dict[str, Any] | None, stream: ProblemStream) -> None:
    """Refuses to go on in the middle of an order of other problems.

    Args:
        saved: the stream's `identity` in a checkpoint; None or empty if there is none.
        stream: what is trained on now.

    Raises:
        ValueError: they are not the same.
    """
    now = stream.identity
    if saved and saved != now:
        was, found = (f"{each['problems']} problems (sha256 {each['problems_sha256']})" for each in (saved, now))
        raise ValueError(
            f"data.train: the checkpoint was trained on {was}, the sources hold {found} now: their order is another. "
            "Restore the files and data.overlong, or start a new run from the checkpoint's weights"
        )


class PromptBatch:
    """P problems with the numbers of their rollout and micro-batch: what `training_step` gets from the loader.

    A plain class: Lightning copies the fields of dataclasses when it moves a batch.

    Args:
        problems: the P problems of the rollout, the same on every rank.
        rollout: number of the rollout.
        micro_batch: number of the micro-batch in it, 0 .. K*A-1.
        updates: K.
        micro_batches: A.
        answers: G.
        stream: for dynamic sampling, which draws more problems.
        template: how a problem becomes a prompt.
        verifier: judges the answers.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        rollout: int,
        micro_batch: int,
        updates: int,
        micro_batches: int,
        answers: int,
        stream: ProblemStream,
        template: PromptTemplate,
        verifier: Verifier,
    ) -> None:
        self.problems = problems
        self.rollout = rollout
        self.micro_batch = micro_batch
        self.updates = updates
        self.micro_batches = micro_batches
        self.answers = answers
        self.stream = stream
        self.template = template
        self.verifier = verifier

    @property
    def update(self) -> int:
        """The update within the rollout, 0 .. K-1."""
        return self.micro_batch // self.micro_batches

    @property
    def starts_update(self) -> bool:
        """True on the first micro-batch of an update."""
        return self.micro_batch % self.micro_batches == 0

    @property
    def ends_update(self) -> bool:
        """True on the last micro-batch of an update."""
        return (self.micro_batch + 1) % self.micro_batches == 0

    @property
    def ends_rollout(self) -> bool:
        """True on the last micro-batch of the rollout."""
        return self.micro_batch + 1 == self.updates * self.micro_batches

    def to(self, device: Any) -> "PromptBatch":
        """Itself: it holds no tensors."""
        return self


class EvalBatch:
    """Some problems of an evaluation set.

    Args:
        name: the set's name in tables and curves.
        problems: problems of this rank.
        spec: how the set is answered.
        template: how a problem becomes a prompt.
        verifier: judges the answers.
    """

    def __init__(
        self, name: str, problems: Sequence[Problem], spec: EvalSet, template: PromptTemplate, verifier: Verifier
    ) -> None:
        self.name = name
        self.problems = problems
        self.spec = spec
        self.template = template
        self.verifier = verifier

    def to(self, device: Any) -> "EvalBatch":
        """Itself: it holds no tensors."""
        return self


class PositionedLoader:
    """A sized loader of numbered batches whose owner gives the first number.

    Lightning checks whether a loader can save its position. This one claims to and saves nothing: the position is in
    the DataModule's state, because Lightning does not always restore a loader's own.

    Args:
        length: nominal number of batches.
        start: gives the number of the first batch; called when iteration begins, after any resume.
        batch: makes batch number i.
    """

    def __init__(self, length: int, start: Callable[[], int], batch: Callable[[int], Any]) -> None:
        self.length = length
        self.start = start
        self.batch = batch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        number = self.start()
        while number < self.length:
            yield self.batch(number)
            number += 1

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: see the class."""
