"""Templates: from a problem to the token ids that the policy continues."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from forklight.data.chat import Message, check_keywords, render
from forklight.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "{problem}"
"""Replaced by the problem's text. Nothing else in braces is special, so LaTeX needs no escapes."""


class Prompt(NamedTuple):
    """What the policy continues."""

    token_ids: list[int]
    begun: str
    """The part of the answer that the prompt has begun: a thought opened by the template, the prefill."""


@dataclass(frozen=True)
class Example:
    """A worked example: a turn of the user and one of the assistant."""

    problem: str
    """Put into the template's text as a problem is."""
    answer: str
    """All that the assistant writes."""


@dataclass(frozen=True)
class PromptTemplate:
    r"""How a problem becomes a prompt.

    Example:
        >>> template = PromptTemplate("base", r"{problem} Answer in \boxed{}.")
        >>> template.fill(Problem.make(r"\frac{1}{2} + 1?", "3/2", "example"))
        '\\frac{1}{2} + 1? Answer in \\boxed{}.'
    """

    kind: Literal["chat", "base"] = "chat"
    """`chat` puts the text into a user message of the tokenizer's chat template and opens the assistant's turn; `base`
    is plain text, to which the tokenizer adds the special tokens that it starts every text with (often none)."""
    text: str = PLACEHOLDER
    """The text around the problem; `{problem}` stands for it, once."""
    system: str = ""
    """System message, for `chat` only; empty leaves it to the chat template, which may have one of its own. Where the
    chat template has no system role, it stands at the start of the first user message, and a warning says so."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Variables of the chat template, such as `{enable_thinking: false}`; refused if it does not read them."""
    few_shot: tuple[Example, ...] = ()
    """Worked examples before the problem, for `chat` only; in a `base` template they are part of the text."""
    prefill: str = ""
    """What the assistant's turn begins with, for `chat` only: the policy goes on from there, and the verifier sees it
    as part of the answer."""

    def __post_init__(self) -> None:
        if self.kind not in ("chat", "base"):
            raise ValueError(f"data.template.kind must be 'chat' or 'base', got {self.kind!r}")
        if self.text.count(PLACEHOLDER) != 1:
            raise ValueError(f"data.template.text must contain {PLACEHOLDER} exactly once, got {self.text!r}")
        for key in ("system", "chat_template_kwargs", "few_shot", "prefill"):
            if getattr(self, key) and self.kind == "base":
                raise ValueError(
                    f"data.template.{key} needs data.template.kind 'chat'; put it into the text of a base template"
                )

    def fill(self, problem: Problem) -> str:
        """The template's text with the problem in it, before any chat template."""
        return self._filled(problem.prompt)

    def messages(self, problem: Problem) -> list[Message]:
        """The turns of a chat: the system's, those of the examples, the problem's own.

        Raises:
            ValueError: the problem is a chat, and the template has a text around it or a second system message.
        """
        turns: list[tuple[str, str]] = [("user", self.fill(problem))]
        system = [("system", self.system)] if self.system else []
        if problem.chat:
            turns = list(problem.chat)
            if self.text != PLACEHOLDER:
                raise ValueError(
                    f"data.template.text = {self.text!r}: the problem {problem.uid} of {problem.source} is a chat, "
                    f"whose turns stay as they are; the text for it is {PLACEHOLDER!r}"
                )
            if turns[0][0] == "system" and system:
                raise ValueError(
                    f"data.template.system: the problem {problem.uid} of {problem.source} has a system message of its "
                    "own; leave one of them out"
                )
            if turns[0][0] == "system":
                system, turns = turns[:1], turns[1:]
        examples = [
            turn
            for example in self.few_shot
            for turn in (("user", self._filled(example.problem)), ("assistant", example.answer))
        ]
        return [{"role": role, "content": content} for role, content in [*system, *examples, *turns]]

    def encode(self, problem: Problem, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The token ids of one prompt; see `encode_many`."""
        return self.encode_many([problem], tokenizer)[0]

    def encode_many(self, problems: Sequence[Problem], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
        """The token ids of prompts; see `prompts`."""
        return [prompt.token_ids for prompt in self.prompts(problems, tokenizer)]

    def prompts(self, problems: Sequence[Problem], tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
        """What the policy continues, with at most one BOS and without EOS.

        Args:
            problems: at least one.
            tokenizer: the policy's tokenizer.

        Returns:
            Prompts of any length, by problem; the caller checks the length.

        Raises:
            ValueError: if the tokenizer has no chat template but `kind` is `chat`, if the chat template fails or does
                not read a variable that it is given, or if the ids cannot be continued: none at all, BOS twice, or an
                EOS at the end.
        """
        if self.kind == "base":
            texts = [self._base_text(problem) for problem in problems]
        else:
            check_keywords(tokenizer, self.chat_template_kwargs)
            texts = [
                render(self.messages(problem), tokenizer, self.chat_template_kwargs) + self.prefill
                for problem in problems
            ]
        encoded = tokenizer(texts, add_special_tokens=self.kind == "base", verbose=False)["input_ids"]
        for ids in encoded:
            _check(ids, tokenizer, self.kind)
        begun = [_opened_thought(text.removesuffix(self.prefill)) + self.prefill for text in texts]
        return [Prompt(list(ids), start) for ids, start in zip(encoded, begun, strict=True)]

    def _filled(self, problem: str) -> str:
        return self.text.replace(PLACEHOLDER, problem)

    def _base_text(self, problem: Problem) -> str:
        if problem.chat:
            raise ValueError(
                f"data.template.kind is 'base', but the problem {problem.uid} of {problem.source} is a chat of "
                f"{len(problem.chat)} messages; it needs data.template.kind 'chat'"
            )
        return self.fill(problem)


PAPER_BASE = PromptTemplate(
    kind="base",
    text="User:\n{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:\n",
)
"""The prompt of the forking-token paper (arXiv 2506.01939) for base models."""

BOXED_CHAT = PromptTemplate(
    kind="chat",
    text="{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
)
"""For models with a chat template: the instruction follows the problem in the user's message."""


def _opened_thought(prompt: str) -> str:
    """The `<think>` with which a prompt ends, and the blanks behind it; empty if it has opened no thought."""
    found = re.search(r"<think>\s*\Z", prompt)
    return found.group() if found else ""


def _check(ids: list[int], tokenizer: "PreTrainedTokenizerBase", kind: str) -> None:
    """Refuses ids from which the policy cannot continue as in training: none, BOS twice, or an EOS at the end."""
    if not ids:
        raise ValueError(f"data.template (kind {kind}): the prompt has no tokens")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError(
            f"data.template (kind {kind}): the prompt starts with {tokenizer.bos_token} twice; "
            "the tokenizer adds it, so drop it from the text"
        )
    if eos is not None and ids[-1] == eos:
        raise ValueError(
            f"data.template (kind {kind}): the prompt ends with {tokenizer.eos_token}, after which no answer follows; "
            "check the template's end and the tokenizer's add_eos_token"
        )
