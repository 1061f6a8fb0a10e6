"""The parser of formulas, by recursive descent."""

import re
from fractions import Fraction

from forklight.verify.math.node import Node

MAX_TOKENS = 400
MAX_DEPTH = 20
"""Brackets within brackets."""

_TOKEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+|\\[A-Za-z]+|[A-Za-z]|[-+*/^_!(){}\[\]|])")
_SUBSCRIPT = re.compile(r"\s*(?:([0-9A-Za-z])|\{\s*([0-9A-Za-z,+\-\s]+)\s*\})")
_GREEK = frozenset(
    rf"\{name}"
    for name in (
        *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota"),
        *(
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
            "varphi",
            "chi",
            "psi",
            "omega",
        ),
        *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell"),
    )
)
_FUNCTIONS = frozenset(
    rf"\{name}"
    for name in (
        *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
        *("ln", "log", "exp"),
    )
)
_TIMES = ("*", r"\cdot", r"\times")
_OVER = ("/", r"\div")
_SPECIAL = {"e": "e", "i": "i", r"\pi": "pi"}
_FACTORS = frozenset("abcdekmnrtxyzi")
"""Letters that multiply a bracket behind them; others, as f, may be functions."""


class NotRead(Exception):
    """The text has another reading, or none."""


class Reader:
    """A parser by recursive descent; its depth is that of the brackets, which the caps bound."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.bars = 0
        self.depth = 0
        self.tokens = 0
        self.token = ""
        self._advance()

    def whole(self) -> Node:
        """The formula that the text is."""
        node = self._sum()
        if self.token:
            raise NotRead
        return node

    def _advance(self) -> str:
        """Steps to the next token, and returns the one before; at the end the token is empty."""
        before = self.token
        match = _TOKEN.match(self.text, self.place)
        if match is None and self.text[self.place :].strip():
            raise NotRead
        self.tokens += 1
        if self.tokens > MAX_TOKENS:
            raise NotRead
        self.token, self.place = (match[1], match.end()) if match else ("", len(self.text))
        return before

    def _expect(self, token: str) -> None:
        if self.token != token:
            raise NotRead
        self._advance()

    def _sum(self) -> Node:
        terms = []
        sign = self._advance() if self.token in ("+", "-") and self.token else "+"
        while True:
            term = self._product()
            terms.append(Node("minus", (term,)) if sign == "-" else term)
            if self.token not in ("+", "-"):
                return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))
            sign = self._advance()

    def _product(self) -> Node:
        node, divided = self._power(), False
        while True:
            if self.token in _TIMES:
                self._advance()
                node, divided = Node("product", (node, self._signed())), False
            elif self.token in _OVER:
                self._advance()
                node, divided = Node("quotient", (node, self._signed())), True
            elif self._begins_factor():
                if divided or self.token[0].isdigit() or self.token[0] == ".":
                    raise NotRead  # 1/2x; x 2
                factor = self._power()
                if _is_mixed(node, factor):
                    raise NotRead
                node = Node("product", (node, factor))
            else:
                return node

    def _signed(self) -> Node:
        if self.token == "-":
            self._advance()
            return Node("minus", (self._power(),))
        return self._power()

    def _begins_factor(self) -> bool:
        token = self.token
        if not token or token in _TIMES or token in _OVER:
            return False
        if token == "|":
            return not self.bars
        return token in ("(", "{") or token[0] in "\\." or token[0].isalnum()

    def _power(self) -> Node:
        node = self._atom()
        while self.token in ("^", "!") and self.token:
            if self._advance() == "!":
                node = Node("factorial", (node,))
            else:
                node = Node("power", (node, self._argument()))
                if self.token in ("^", "_"):
                    raise NotRead
        return node

    def _argument(self) -> Node:
        """What stands in braces, or one sign."""
        if self.token == "{":
            return self._group("{", "}")
        if len(self.token) == 1 and self.token.isdigit():
            return Node("number", value=Fraction(self._advance()))
        if (len(self.token) == 1 and self.token.isalpha()) or self.token in _GREEK or self.token == r"\pi":
            return self._letter(self._advance())
        if self.token == r"\frac":
            return self._atom()
        raise NotRead

    def _group(self, opening: str, closing: str) -> Node:
        self._expect(opening)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotRead
        bars, self.bars = self.bars, 0
        node = self._sum()
        self.bars = bars
        self.depth -= 1
        self._expect(closing)
        return node

    def _atom(self) -> Node:
        token = self.token
        if token in ("(", "{"):
            return self._group(token, ")" if token == "(" else "}")
        if token == "|" and not self.bars:
            return self._absolute()
        if not token or not (token[0].isalnum() or token[0] in "\\."):
            raise NotRead
        if token in _FUNCTIONS:
            return self._function(self._advance())
        self._advance()
        if token[0].isdigit() or token[0] == ".":
            if self.token == "_":
                raise NotRead
            return Node("number", value=Fraction(f"0{token}" if token[0] == "." else token.rstrip(".")))
        if token == r"\frac":
            return Node("quotient", (self._argument(), self._argument()))
        if token == r"\binom":
            return Node("binomial", (self._argument(), self._argument()))
        if token == r"\sqrt":
            degree = self._group("[", "]") if self.token == "[" else Node("number", value=Fraction(2))
            return Node("root", (self._argument(), degree))
        return self._letter(token)

    def _absolute(self) -> Node:
        self._advance()
        self.bars += 1
        node = self._sum()
        self.bars -= 1
        self._expect("|")
        return Node("absolute", (node,))

    def _letter(self, token: str) -> Node:
        if self.token == "_":
            match = _SUBSCRIPT.match(self.text, self.place)
            if match is None:
                raise NotRead
            self.place = match.end()
            self._advance()
            if self.token == "(":
                raise NotRead
            return Node("symbol", name=f"{token}_{''.join((match[1] or match[2]).split())}")
        if token[0] == "\\" and token not in _GREEK and token not in _SPECIAL:
            raise NotRead
        if self.token == "(" and not (token in _FACTORS and self._sum_follows()):
            raise NotRead
        return Node("constant", name=_SPECIAL[token]) if token in _SPECIAL else Node("symbol", name=token)

    def _sum_follows(self) -> bool:
        """Whether the bracket that begins here holds a sum."""
        inside = self.text[self.place : self.text.find(")", self.place)]
        return re.search(r"[^\s({^]\s*[-+]", inside) is not None

    def _function(self, name: str) -> Node:
        base = power = None
        if name == r"\log" and self.token == "_":
            self._advance()
            base = self._argument()
        if self.token == "^":
            self._advance()
            power = self._argument()
            if power.op != "number":
                raise NotRead  # \sin^{-1} is an inverse
        argument = self._function_argument()
        node = Node("log", (argument, base)) if base else Node("call", (argument,), name=name[1:])
        return Node("power", (node, power)) if power else node

    def _function_argument(self) -> Node:
        r"""In brackets; without them a product up to the next sign, bracket or function, as in `\\sin 2x`."""
        if self.token in ("(", "{"):
            node = self._group(self.token, ")" if self.token == "(" else "}")
            if self.token in ("^", "!", "(") and self.token:
                raise NotRead  # \sin(x)^2
            return node
        if self.token in _FUNCTIONS:
            raise NotRead
        node = self._power()
        while self.token not in _FUNCTIONS and self.token not in ("(", "{", "|") and self._begins_factor():
            if self.token[0].isdigit() or self.token[0] == ".":
                raise NotRead
            factor = self._power()
            if _is_mixed(node, factor):
                raise NotRead
            node = Node("product", (node, factor))
        if self.token in ("(", "/") and self.token:
            raise NotRead  # \sin x/2
        return node


def _is_mixed(node: Node, factor: Node) -> bool:
    """Whether this may be a mixed number."""
    return node.op == "number" and factor.op == "quotient" and all(part.op == "number" for part in factor.args)
