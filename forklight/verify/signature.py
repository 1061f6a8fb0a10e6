"""How a reward function wants to be called, which its parameters tell."""

import inspect
from collections.abc import Collection, Iterator, Mapping

from forklight.verify.calling import Calling, Completions, Parameter, RewardFunction, Role

_ANSWERS = {"completion", "response", "prediction", "output"}
_GOLDS = {"gold", "ground_truth", "solution", "reference", "target", "label"}
_PROMPTS = {"prompt", "question", "problem"}


def calling_of(function: RewardFunction, completions: Completions | None = None) -> Calling:
    """The way to call a function, by its parameters.

    Args:
        function: the function.
        completions: how TRL's lists hold prompts and answers; found by the function's code if None.

    Raises:
        ValueError: no parameter can take the answer, or two would have to.
    """
    name = getattr(function, "__qualname__", repr(function))
    try:
        given = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C do not say
        return Calling(name, "plain", (Parameter("answer", "answer", False), Parameter("gold", "gold", False)))
    rest = any(parameter.kind == parameter.VAR_KEYWORD for parameter in given)
    single = [
        parameter for parameter in given if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    names = {parameter.name for parameter in single}
    if "completions" in names:
        columns = tuple(_by_name(parameter, _column_role(parameter.name)) for parameter in single)
        return Calling(name, "trl", columns, rest, completions or _completions_of(function))
    if "solution_str" in names:
        roles: dict[str, Role] = {"solution_str": "answer", "ground_truth": "gold", "prompt": "prompt"}
        return Calling(
            name, "verl", tuple(_by_name(parameter, roles.get(parameter.name)) for parameter in single), rest
        )
    many = any(parameter.kind == parameter.VAR_POSITIONAL for parameter in given)
    found = tuple(_plain(single, many))
    answers = [parameter.name for parameter in found if parameter.role == "answer"]
    if len(answers) != 1:
        wrong = f"{' and '.join(answers)} would each take" if answers else "no parameter takes"
        raise ValueError(
            f"{name}{inspect.signature(function)}: {wrong} the answer; a reward function has parameters (answer, "
            "gold), or takes by name answer, gold, prompt and fields of the problem, or has TRL's or verl's names"
        )
    return Calling(name, "plain", found, rest)


def _plain(parameters: list[inspect.Parameter], many: bool) -> Iterator[Parameter]:
    """(answer, gold) by position where the first two can be these, everything else by name."""
    roles = {parameter.name: _role(parameter.name, [p.name for p in parameters]) for parameter in parameters}
    first = [parameter for parameter in parameters if parameter.kind != parameter.KEYWORD_ONLY][:2]
    wanted = _positional_roles(first, roles)
    for number, parameter in enumerate(parameters):
        if number < len(wanted):
            yield Parameter(parameter.name, wanted[number], by_name=False)
        elif parameter.kind == parameter.POSITIONAL_ONLY:
            if parameter.default is parameter.empty:
                raise ValueError(f"its parameter `{parameter.name}` cannot be given by name")
        else:
            yield _by_name(parameter, roles[parameter.name])
    order: list[Role] = ["answer", "gold"]
    if many and len(first) == len(wanted):
        yield from (Parameter(role, role, by_name=False) for role in order[len(first) :])


def _positional_roles(first: list[inspect.Parameter], roles: Mapping[str, Role | None]) -> list[Role]:
    """The roles of the leading parameters if they are taken in order; none if their names say another order."""
    order: list[Role] = ["answer", "gold"]
    names = [parameter.name for parameter in first]
    if names[1:] == ["answer"] and (names[0] == "solution" or roles[names[0]] is None):
        others = [role for name, role in roles.items() if name not in names]
        if "gold" not in others:
            return order  # `answer` may be either: the order decides
    found: list[Role] = []
    for parameter, role in zip(first, order, strict=False):
        name, said = parameter.name, roles[parameter.name]
        elsewhere = any(other == role for key, other in roles.items() if key != name)
        if said != role and (said is not None or elsewhere):
            break
        default = parameter.default
        if said is None and not (default in (parameter.empty, None) or isinstance(default, str)):
            break  # `strict=True` is no gold
        found.append(role)
    return found


def _role(name: str, names: Collection[str]) -> Role | None:
    """What a parameter of this name means; `answer` is the gold where another name says that it is the response."""
    if name == "answer":
        return "gold" if _ANSWERS & set(names) else "answer"
    return "answer" if name in _ANSWERS else "gold" if name in _GOLDS else "prompt" if name in _PROMPTS else None


def _column_role(name: str) -> Role | None:
    if name in ("completions", "prompts"):
        return "answer" if name == "completions" else "prompt"
    return "gold" if name == "answer" or name in _GOLDS else None


def _by_name(parameter: inspect.Parameter, role: Role | None) -> Parameter:
    if parameter.kind == parameter.POSITIONAL_ONLY:
        raise ValueError(f"its parameter `{parameter.name}` cannot be given by name")
    return Parameter(parameter.name, role, True, parameter.default is parameter.empty)


def _completions_of(function: RewardFunction) -> Completions:
    """`messages` if the function's code reads `["content"]` of something."""
    codes = [getattr(inspect.unwrap(function), "__code__", None)]
    for code in codes:
        constants = getattr(code, "co_consts", ())
        if "content" in constants:
            return "messages"
        codes += [constant for constant in constants if inspect.iscode(constant)]
    return "text"
