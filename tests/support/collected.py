"""The collected cases of verifiers: how they are read, and which labels are conventions that we decided otherwise."""

import json

CONVENTIONS = {
    "hendrycks-math-0002": "the label compares the order of a list without brackets; here it may come in any order",
    "skyrl-aime-0004": "the label compares strings; 0.5 is 1/2",
    "skyrl-aime-0009": "the label refuses a broken end-of-sequence token after the box; here the box counts",
    "qwen-example-0085": "the label is wrong: 10{,}000 is 10000",
}
"""Cases judged right against their label, with what holds here."""

CONVENTIONS_OF_ANY = {
    "math-verify-0030": "the label wants inline formulas on one line; here a formula may span lines",
    "math-verify-0182": "the label was made with an option (allow_set_relation_comp false); -2 <= x <= 7 is [-2,7]",
    "rllm-0006": "the label wants a box; here nothing is boxed and the last line says what the answer is",
}
"""The same with `extraction="any"`."""

CONVENTIONS_OF_NEW = {
    "new-096": "the label wants the fraction; here a decimal within 1e-6 of it counts",
}
"""The same of the second set of cases."""


def read(path):
    """The rows of a data file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def prediction(case):
    """The answer of a case; long ones are written as parts that repeat, or made here."""
    if "prediction" in case:
        return case["prediction"]
    if "prediction_parts" in case:
        return "".join(part if isinstance(part, str) else part[0] * part[1] for part in case["prediction_parts"])
    rows = ["&".join(f"a_{{{row},{column}}}" for column in range(30)) for row in range(30)]
    made = {
        "hostile-044": ",".join(map(str, range(10_000))),
        "hostile-054": r"\begin{pmatrix}" + r"\\".join(rows) + r"\end{pmatrix}",
    }
    return rf"\boxed{{{made[case['id']]}}}"
