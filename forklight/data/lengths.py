"""Prompts that the policy cannot read are found before the model is loaded."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from forklight.data.prompts import PromptTemplate
from forklight.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Overlong = Literal["error", "drop"]

_TOGETHER = 1000
"""Problems that are encoded at a time."""


@dataclass(frozen=True)
class PromptLimit:
    """What a policy can read."""

    tokenizer: "PreTrainedTokenizerBase"
    max_positions: int | None
    """The longest sequence, prompt and answer; None if the model does not say."""
    max_new_tokens: int
    """The longest answer of training."""


def fitting(
    problems: Sequence[Problem],
    template: PromptTemplate,
    limit: PromptLimit,
    *,
    key: str,
    overlong: Overlong | None = None,
    max_new_tokens: int | None = None,
) -> list[Problem]:
    """The problems whose prompts leave room for an answer.

    Args:
        problems: of one set.
        template: how they become prompts.
        limit: what the policy can read.
        key: where the problems come from, for messages.
        overlong: whether prompts that are too long are refused, or dropped with a warning; None for an evaluation
            set, which is never shortened.
        max_new_tokens: the longest answer, in place of that of training.

    Raises:
        ValueError: prompts are too long, and are not to be dropped or none is left; or one cannot be made.
    """
    new = max_new_tokens or limit.max_new_tokens
    lengths = [
        len(ids)
        for start in range(0, len(problems), _TOGETHER)
        for ids in template.encode_many(problems[start : start + _TOGETHER], limit.tokenizer)
    ]
    room = max(lengths, default=0) if limit.max_positions is None else limit.max_positions - new
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= room]
    if len(kept) == len(problems):
        return kept
    longest = problems[lengths.index(max(lengths))]
    found = (
        f"{key}: {len(problems) - len(kept)} of {len(problems)} prompts are too long: the model reads "
        f"{limit.max_positions} tokens, max_new_tokens = {new} leaves {room} for a prompt, and the longest has "
        f"{max(lengths)} ({longest.uid}: {longest.prompt[:40]!r})"
    )
    if overlong == "drop" and kept:
        log.warning("%s; they are dropped", found)
        return kept
    remedies = {
        "error": "; shorten them, or set data.overlong: drop",
        "drop": "; none is left",
        None: "; an evaluation set is never shortened, its own max_new_tokens may be lower",
    }
    raise ValueError(found + remedies[overlong])
