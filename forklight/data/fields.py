"""From a row of any layout to a problem: which fields hold the prompt and the answer, and what they say."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from forklight.types import Problem

log = logging.getLogger(__name__)

PROMPTS = ("problem", "question", "prompt")
"""Names of the prompt's field when none is given: the first is taken before the others."""

ANSWERS = ("answer", "final_answer", "solution", "ground_truth", "reward_model.ground_truth")
"""The same for the answer's field; the last is verl's."""

ROLES = ("system", "user", "assistant")
Chat = tuple[tuple[str, str], ...]
_MISSING = object()


@dataclass(frozen=True)
class RowReader:
    """Makes problems of rows.

    Args:
        source: the set's name.
        prompt_field: the prompt's field, by its name or its dotted path.
        answer_field: the answer's.
        pattern: cuts out the answer.
    """

    source: str
    prompt_field: str
    answer_field: str
    pattern: re.Pattern[str] | None = None

    def problem(self, row: dict[str, Any], place: str) -> Problem:
        """The problem of a row; its fields are those of the row, with the gold for the whole answer.

        Raises:
            ValueError: a field is missing or is nothing that can be asked or compared with; names the place.
        """
        text, chat = _prompt(row, self.prompt_field, place)
        answer = _answer(row, self.answer_field, self.pattern, place)
        return replace(Problem.make(text, answer, self.source, {**row, self.answer_field: answer}), chat=chat)


def choose_field(given: str | None, names: Sequence[str], row: dict[str, Any], key: str, path: str) -> str:
    """The field to read: the given one; else the first of the names, or the only other one that the row has.

    Args:
        given: its name, if there is one.
        names: the names to look for.
        row: the first row.
        key: what the field is set by.
        path: where the row is from.

    Raises:
        ValueError: several of the other names are there.
    """
    if given is not None:
        return given
    found = [name for name in names if find(row, name) is not _MISSING]
    if names[0] in found or not found:
        return names[0]
    if len(found) > 1:
        raise ValueError(f"{path}: set {key}: it may be {' or '.join(f'`{name}`' for name in found)}")
    log.warning("%s: there is no field `%s`; `%s` is read in its place (%s)", path, names[0], found[0], key)
    return found[0]


def find(row: dict[str, Any], field: str) -> Any:
    """The value of a field by its name, or by its path with dots between the names."""
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _value(row: dict[str, Any], field: str, place: str) -> Any:
    value = find(row, field)
    if value is _MISSING:
        names = ", ".join(f"`{name}`" for name in _names(row)) or "none"
        raise ValueError(f"{place}: no field `{field}` (set prompt_field / answer_field); fields here: {names}")
    return value


def _names(row: dict[str, Any]) -> list[str]:
    """The names of a row, nested ones with dots."""
    return [
        f"{name}.{inner}" if inner else name
        for name, value in row.items()
        for inner in (_names(value) if isinstance(value, dict) and value else [""])
    ]


def _prompt(row: dict[str, Any], field: str, place: str) -> tuple[str, Chat]:
    """The text, and the turns if it is a chat of several."""
    value = _value(row, field, place)
    if isinstance(value, str):
        return _filled(value, field, place), ()
    if not isinstance(value, list):
        raise ValueError(f"{place}: `{field}` must be text or a list of messages, got {type(value).__name__}")
    chat = _chat(value, field, place)
    if len(chat) == 1:  # a problem like any other
        return chat[0][1], ()
    return "\n\n".join(f"{role}: {text}" for role, text in chat), chat


def _answer(row: dict[str, Any], field: str, pattern: re.Pattern[str] | None, place: str) -> str:
    value = _value(row, field, place)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{place}: `{field}` must be text, a list of texts or a number, got {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: `{field}` is {value}, which no answer can equal")
    text = str(value)
    if pattern is not None:
        found = pattern.findall(text)
        if not found:
            raise ValueError(
                f"{place}: answer_pattern {pattern.pattern!r} matches nothing in `{field}`: {text[-80:]!r}"
            )
        text = found[-1]
    return _filled(text, field, place)


def _chat(messages: list[Any], field: str, place: str) -> Chat:
    """The turns of a list of messages, `[{"role": "user", "content": "..."}]`, which the user's ends."""
    turns = []
    for number, message in enumerate(messages, start=1):
        where = f"message {number} of `{field}`"
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES:
            raise ValueError(f"{place}: {where} needs a `role`, one of {', '.join(ROLES)}, and a `content`")
        turns.append((role, _filled(_content(content, where, place), where, place)))
    if not turns or turns[-1][0] != "user":
        raise ValueError(f"{place}: the last message of `{field}` must be the user's: the policy answers it")
    return tuple(turns)


def _content(content: Any, where: str, place: str) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"{place}: the content of {where} must be text, got {type(content).__name__}")
    return content


def _filled(text: str, field: str, place: str) -> str:
    named = field if "`" in field else f"`{field}`"
    if not text.strip():
        raise ValueError(f"{place}: {named} is empty")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{place}: {named} holds half a character (a lone UTF-16 surrogate)")
    return text.strip()
