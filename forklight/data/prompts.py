"""Templates: from a problem to the token ids that the policy continues."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from forklight.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "{problem}"
"""Replaced by the problem's text. Nothing else in braces is special, so LaTeX needs no escapes."""


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
    """System message, for `chat` only; empty leaves it to the chat template, which may have one of its own."""

    def __post_init__(self) -> None:
        if self.kind not in ("chat", "base"):
            raise ValueError(f"data.template.kind must be 'chat' or 'base', got {self.kind!r}")
        if self.text.count(PLACEHOLDER) != 1:
            raise ValueError(f"data.template.text must contain {PLACEHOLDER} exactly once, got {self.text!r}")
        if self.system and self.kind == "base":
            raise ValueError(
                "data.template.system needs data.template.kind 'chat'; put it into the text of a base template"
            )

    def fill(self, problem: Problem) -> str:
        """The template's text with the problem in it, before any chat template."""
        return self.text.replace(PLACEHOLDER, problem.prompt)

    def encode(self, problem: Problem, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The token ids of one prompt; see `encode_many`."""
        return self.encode_many([problem], tokenizer)[0]

    def encode_many(self, problems: Sequence[Problem], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
        """The prompts' token ids, with at most one BOS and without EOS.

        Args:
            problems: at least one.
            tokenizer: the policy's tokenizer.

        Returns:
            Token ids of any length, by problem; the caller checks the length.

        Raises:
            ValueError: if the tokenizer has no chat template but `kind` is `chat`, or if the ids cannot be continued:
                none at all, BOS twice, or an EOS at the end.
        """
        if self.kind == "base":
            prompts = [list(ids) for ids in tokenizer([self.fill(problem) for problem in problems])["input_ids"]]
        else:
            if tokenizer.chat_template is None:
                raise ValueError(
                    f"data.template.kind is 'chat', but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                    "a base model needs data.template.kind 'base'"
                )
            prompts = [self._encode_chat(problem, tokenizer) for problem in problems]
        for ids in prompts:
            _check(ids, tokenizer, self.kind)
        return prompts

    def _encode_chat(self, problem: Problem, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        system = [] if not self.system else [{"role": "system", "content": self.system}]
        messages = [*system, {"role": "user", "content": self.fill(problem)}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        return list(ids)


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
