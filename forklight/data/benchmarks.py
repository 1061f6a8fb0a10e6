"""Benchmarks by name: their files, numbers of problems, prompts and verifiers."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from forklight.data.files import first_row
from forklight.data.problems import GSM8K_ANSWER, ProblemFile
from forklight.data.prompts import BOXED_CHAT, PAPER_BASE, PromptTemplate
from forklight.data.source import ProblemSource
from forklight.types import Problem
from forklight.verify import IntegerVerifier, MathVerifier, Verifier

BenchmarkName = Literal["aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k"]

FOLDER = "FORKLIGHT_DATA"
"""Environment variable: a folder in which benchmarks are looked for as `<name>.jsonl`, instead of on the hub."""


@functools.cache
def math_verifier() -> MathVerifier:
    """The verifier of all benchmarks with mathematical answers: one, so that they share its worker processes."""
    return MathVerifier()


@dataclass(frozen=True)
class Facts:
    """The properties of a benchmark."""

    hub: ProblemFile
    """The copy on the Hugging Face Hub, at a fixed revision."""
    sizes: tuple[int, ...]
    """The numbers of problems that copies of it have."""
    verifier: Callable[[], Verifier] = math_verifier
    """Makes its verifier."""

    @property
    def small(self) -> bool:
        """Whether it has so few problems that each needs many answers."""
        return max(self.sizes) <= 40


BENCHMARKS: dict[str, Facts] = {
    "aime24": Facts(
        ProblemFile(
            "HuggingFaceH4/aime_2024", "aime24", split="train", revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a"
        ),
        (30,),
        IntegerVerifier,
    ),
    "aime25": Facts(
        ProblemFile("math-ai/aime25", "aime25", split="test", revision="563bb8404243c5f09de6ec262f2db674fe5bce9b"),
        (30,),
        IntegerVerifier,
    ),
    "amc23": Facts(
        ProblemFile(
            "math-ai/amc23", "amc23", "question", split="test", revision="80815d37005feb82cd7f8fbc6901d5d3eff43057"
        ),
        (40,),
    ),
    "math500": Facts(
        ProblemFile(
            "HuggingFaceH4/MATH-500", "math500", split="test", revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"
        ),
        (500,),
    ),
    "minerva": Facts(
        ProblemFile(
            "math-ai/minervamath",
            "minerva",
            "question",
            split="test",
            revision="ee46ddc498933b1977577953250ca5c66be64f96",
        ),
        (272,),
    ),
    "olympiadbench": Facts(
        ProblemFile(
            "Hothan/OlympiadBench",
            "olympiadbench",
            "question",
            "final_answer",
            subset="OE_TO_maths_en_COMP",
            split="train",
            revision="91184b52131e7fc9455fef848035173aea8cc01a",
        ),
        (674, 675),
    ),
    "gsm8k": Facts(
        ProblemFile(
            "openai/gsm8k",
            "gsm8k",
            "question",
            answer_pattern=GSM8K_ANSWER,
            subset="main",
            split="test",
            revision="740312add88f781978c0658806c59bc2815b9866",
        ),
        (1319,),
    ),
}


@dataclass(frozen=True)
class Benchmark(ProblemSource):
    """A benchmark by its name, read from the hub at a fixed revision or from a local file.

    It has its own verifier, and a prompt that asks for the answer in a box: for a chat or a base model, as
    `data.template.kind` says. `EvalSet.template` and `EvalSet.verifier` replace them.
    """

    name: BenchmarkName
    """Which one."""
    path: str | None = None
    """A local .jsonl, .json or .parquet file, or a folder that holds `<name>.jsonl` or `<name>_test.jsonl`; the folder
    in the environment variable FORKLIGHT_DATA if not given; the hub without either. A file has the fields of the copy
    on the hub, or `problem` and `answer`."""
    limit: int | None = None
    """Take only this number of problems, the first ones: for a trial, not for a published score."""

    def __post_init__(self) -> None:
        if self.name not in BENCHMARKS:
            raise ValueError(f"there is no benchmark {self.name!r}; there are {', '.join(BENCHMARKS)}")

    @property
    def facts(self) -> Facts:
        """The properties of the benchmark."""
        return BENCHMARKS[self.name]

    def template(self, kind: Literal["chat", "base"]) -> PromptTemplate:
        """The prompt for this kind of model."""
        return BOXED_CHAT if kind == "chat" else PAPER_BASE

    def verifier(self) -> Verifier:
        """The verifier of its answers."""
        return self.facts.verifier()

    def read(self) -> list[Problem]:
        """The problems, in the order of the benchmark.

        Raises:
            FileNotFoundError: there is no such file.
            ConnectionError: the hub is needed and cannot be reached.
            ValueError: a row is malformed, or the number of problems is not that of the benchmark.
        """
        try:
            problems = replace(self.source(), limit=self.limit).read()
        except ConnectionError as error:
            raise ConnectionError(
                f"{error} For {self.name}: its `path`, or the environment variable {FOLDER} = a folder with "
                f"{self.name}.jsonl (fields problem, answer)"
            ) from error
        if self.limit is None and len(problems) not in self.facts.sizes:
            sizes = " or ".join(map(str, self.facts.sizes))
            raise ValueError(f"{self.source().path} holds {len(problems)} problems, {self.name} has {sizes}")
        return problems

    def source(self) -> ProblemFile:
        """The file or the copy on the hub that is read."""
        hub = self.facts.hub
        path = self.path or os.environ.get(FOLDER)
        if path is None:
            return hub
        file = self._file(Path(path))
        local = replace(hub, path=str(file), split=None, subset=None, revision=None)
        if (hub.prompt_field or "problem") in first_row(file):
            return local
        return replace(local, prompt_field="problem", answer_field="answer", answer_pattern="")

    def _file(self, path: Path) -> Path:
        if not path.is_dir():
            return path
        names = [f"{self.name}.jsonl", f"{self.name}_test.jsonl"]
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"data: there is neither {' nor '.join(names)} in {path}")
        return found[0]
