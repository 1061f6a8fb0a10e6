"""Chat templates of tokenizers: what they make of messages, and what is wrong with them, on one line."""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Message = dict[str, str]
"""`role` and `content`."""

_PROBE = "forklight"


def render(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", keywords: Mapping[str, Any]) -> str:
    """The text of a chat with the assistant's turn opened.

    Where the template has no system role, a system message stands at the start of the first user message.

    Args:
        messages: the turns, a system message first if there is one.
        tokenizer: the policy's.
        keywords: variables of its chat template.

    Raises:
        ValueError: there is no chat template, or it fails.
    """
    name = tokenizer.name_or_path
    if tokenizer.chat_template is None:
        raise ValueError(
            f"data.template.kind is 'chat', but the tokenizer {name!r} has no chat template; "
            "a base model needs data.template.kind 'base'"
        )
    if messages[0]["role"] == "system" and not _has_system_role(tokenizer, keywords):
        _say_once(
            f"data.template: the chat template of {name!r} has no system role; "
            "the system message stands at the start of the first user message"
        )
        messages = _folded(messages)
    try:
        return _text(messages, tokenizer, keywords)
    except Exception as error:  # whatever the template raises
        reason = " ".join(str(error).split())
        raise ValueError(
            f"data.template: the chat template of {name!r} fails: {type(error).__name__}: {reason}"
        ) from error


def check_keywords(tokenizer: "PreTrainedTokenizerBase", keywords: Mapping[str, Any]) -> None:
    """Refuses variables that the tokenizer's chat template does not mention: they would change nothing.

    Raises:
        ValueError: there is one.
    """
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else " ".join((template or {}).values())
    for key in keywords if template else ():
        if not re.search(rf"\b{re.escape(key)}\b", text):
            raise ValueError(
                f"data.template.chat_template_kwargs.{key}: the chat template of {tokenizer.name_or_path!r} does not "
                "read it"
            )


def _text(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", keywords: Mapping[str, Any]) -> str:
    return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False, **keywords))


def _has_system_role(tokenizer: "PreTrainedTokenizerBase", keywords: Mapping[str, Any]) -> bool:
    """Whether a system message is in the text: some templates refuse it, others leave it out."""
    probe = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}]
    try:
        return _PROBE in _text(probe, tokenizer, keywords)
    except Exception:  # whatever the template raises
        return False


def _folded(messages: Sequence[Message]) -> list[Message]:
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)
