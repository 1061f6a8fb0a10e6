"""A way to call a reward function: as `(answer, gold)`, by name, as TRL or as verl do."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

RewardFunction = Callable[..., Any]
"""Gives the reward of an answer: a number, or whether it is right."""

Completions = Literal["text", "messages"]

Style = Literal["plain", "trl", "verl"]

Role = Literal["answer", "gold", "prompt"]

_OF_THE_REST = ("gold", "ground_truth", "solution")
"""Names under which a function that takes any name gets the gold, where the problem has no such field."""

_OF_VERL = {"data_source": "source", "extra_info": "fields"}
"""What else verl's functions get."""

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 60
_SHOWN.maxlist = _SHOWN.maxdict = 4


class CannotCall(ValueError):
    """A parameter of the function cannot be filled in."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a reward function."""

    name: str
    role: Role | None
    """What it is given; None: the problem's field of its name."""
    by_name: bool = True
    """Whether it is given by name, not by position."""
    required: bool = True
    """False if it can be left out."""


@dataclass(frozen=True)
class Calling:
    """The way in which a function is called.

    A request has `answer` and `gold`, and where the problem is known `prompt`, `source` and `fields`.
    """

    name: str
    style: Style
    parameters: tuple[Parameter, ...]
    rest: bool = False
    """Whether it takes any further names (`**kwargs`)."""
    completions: Completions = "text"
    """How TRL's lists hold prompts and answers."""

    @property
    def reads_problems(self) -> bool:
        """Whether it wants more than answer and gold; TRL's columns may be fields."""
        return self.rest or self.style == "trl" or any(p.role in (None, "prompt") for p in self.parameters)

    def arguments(self, request: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """What the function is given.

        Args:
            request: see above.

        Returns:
            The arguments by position, and those by name.

        Raises:
            CannotCall: the problem has no field that a parameter wants.
        """
        fields: Mapping[str, Any] = request.get("fields", {})
        positional, named = [], {}
        for parameter in self.parameters:
            known, value = self._value(parameter, request, fields)
            if known and parameter.by_name:
                named[parameter.name] = value
            elif known:
                positional.append(value)
            elif parameter.required:
                raise CannotCall(f"no field for the parameter `{parameter.name}` ({_listed(fields)})")
        if self.rest and self.style != "verl":
            more = dict.fromkeys(_OF_THE_REST, request["gold"]) | {"prompt": request.get("prompt", ""), **fields}
            taken = {parameter.name for parameter in self.parameters}
            named |= {name: self._one(value) for name, value in more.items() if name not in taken}
        return positional, named

    def reward(self, returned: Any) -> Any:
        """The reward in what the function returned, as it stands there.

        Raises:
            ValueError: it is not of the form that this way of calling has.
        """
        if self.style == "verl" and isinstance(returned, Mapping):
            if "score" not in returned:
                raise ValueError("not a number (dict without `score`)")
            return returned["score"]
        if self.style == "trl":
            if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
                raise ValueError(f"not a list of numbers ({type(returned).__name__})")
            if len(returned) != 1:
                raise ValueError(f"not one number per answer ({len(returned)} for 1)")
            return returned[0]
        return returned

    def shown(self, request: Mapping[str, Any]) -> str:
        """A call with these arguments, shortened, for messages: `same('5', '5')`."""
        try:
            positional, named = self.arguments(request)
        except CannotCall:
            return self.describe()
        shown = [*map(_SHOWN.repr, positional), *(f"{name}={_SHOWN.repr(value)}" for name, value in named.items())]
        return f"{self.name}({', '.join(shown)})"

    def describe(self) -> str:
        """The call in words: `same(answer, gold)`, `reward(completions=[answer], level=[field])`."""
        said = [self._described(parameter) for parameter in self.parameters]
        if self.rest and self.style != "verl":
            said.append("**fields")
        return f"{self.name}({', '.join(said)})"

    def _described(self, parameter: Parameter) -> str:
        what: str = parameter.role or ("field" if parameter.required else "field if any")
        if self.style == "verl" and parameter.name in _OF_VERL:
            what = _OF_VERL[parameter.name]
        if self.style == "trl":
            as_messages = self.completions == "messages" and parameter.name in ("prompts", "completions")
            what = f"[messages of the {what}]" if as_messages else f"[{what}]"
        return f"{parameter.name}={what}" if parameter.by_name else what

    def _value(self, parameter: Parameter, request: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[bool, Any]:
        """Whether there is a value for a parameter, and the value."""
        if self.style == "verl" and parameter.name == "data_source":
            return True, fields.get("data_source", request.get("source", ""))
        if self.style == "verl" and parameter.name == "extra_info":
            return True, fields.get("extra_info", dict(fields))
        if self.style == "trl" and parameter.name in ("prompts", "completions"):
            role = "prompt" if parameter.name == "prompts" else "answer"
            speaker = "user" if role == "prompt" else "assistant"
            text = request.get(role, "")
            return True, [[{"role": speaker, "content": text}] if self.completions == "messages" else text]
        is_column = self.style == "trl" and parameter.name in fields
        if parameter.role is None or is_column:
            known = parameter.name in fields
            return known, self._one(fields[parameter.name]) if known else None
        return parameter.role in request, self._one(request.get(parameter.role))

    def _one(self, value: Any) -> Any:
        """A value as the function wants those of one answer."""
        return [value] if self.style == "trl" else value


def _listed(fields: Mapping[str, Any]) -> str:
    return "fields of the problem: " + (", ".join(map(str, fields)) or "none")
