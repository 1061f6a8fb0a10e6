r"""What a verifier says of collected cases, of formulas copied from problems, of golds that were changed, and how fast.

Symbolic pairs are golds that are no plain numbers: each against the same value written otherwise, and against the next
gold. Changed golds differ from a gold in one digit, sign, letter or term.
"""

import random
import re
import time
from collections import defaultdict
from statistics import median

from collected import CONVENTIONS_OF_NEW, read

from forklight.types import Problem
from forklight.verify import MathVerifier
from forklight.verify.math.latex import clean
from forklight.verify.math.numbers import read_number
from forklight.verify.math.quick import is_plain

DISGUISES = ["%s", "0+%s", r"1\cdot(%s)", "%s+0", "(%s)^1", "%s+1-1", r"\frac{%s}{1}"]
"""What leaves the value of a formula alone."""
_FORMULA = re.compile(r"\$\$?([^$]+)\$\$?|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_SIGN = re.compile(r"(?<![<>])=|\\le|\\ge|<|>|\\approx")


def text_of(case):
    """What the verifier gets: behind a template that has opened a thought the answer goes on in it."""
    return ("<think>\n" if case["note"].startswith("template opened") else "") + case["prediction"]


def new_cases(folder):
    """The second set of collected cases, by both extractions."""
    cases = read(folder / "verifier_cases_2.jsonl")
    report = {"new_cases": len(cases)}
    for extraction in ("any", "box"):
        judged = [case for case in cases if extraction == "any" or "any only" not in case["note"]]
        with MathVerifier(extraction, 10.0, workers=2) as verifier:
            verdicts = verifier.verify_many([(text_of(case), case["gold"]) for case in judged])
        right = {case["id"] for case, verdict in zip(judged, verdicts, strict=True) if verdict.right}
        agreed = sum((case["id"] in right) == case["expected"] for case in judged)
        positives = {case["id"] for case in judged if not case["expected"]} & right
        report |= {
            f"new_{extraction}_agreement": agreed / len(judged),
            f"new_{extraction}_wrong_positives": sorted(positives - set(CONVENTIONS_OF_NEW)),
        }
    return report


def formulas(problem):
    """The formulas of a problem, and what stands on either side of their relations."""
    found = {}
    for match in _FORMULA.finditer(problem):
        formula = next(group for group in match.groups() if group).strip().rstrip(".,;?")
        for part in (formula, *_SIGN.split(formula)):
            if 0 < len(part.strip()) < 300:
                found[part.strip()] = None
    return list(found)


def copies(folder, count):
    """Problems of MATH-500 that a formula of their own text solves, other than by naming the gold."""
    solved = defaultdict(set)
    rows = read(folder / "math500.jsonl")[:count]
    with MathVerifier(timeout=10.0, workers=2) as verifier:
        for disguise in DISGUISES:
            asked = [
                (row["id"], rf"\boxed{{{disguise % formula}}}", Problem.make(row["problem"], row["answer"], "math500"))
                for row in rows
                for formula in formulas(row["problem"])
                if not (disguise in ("%s", DISGUISES[-1]) and _names(formula, row["answer"]))
            ]
            verdicts = verifier.verify_answers([(text, problem) for _, text, problem in asked])
            for (uid, text, _), verdict in zip(asked, verdicts, strict=True):
                if verdict.right:
                    solved[uid].add(text)
    return {"copies_problems": len(rows), "copies_solved": sorted(map(sorted, solved.values()))}


def _names(formula, gold):
    """Whether a formula is the gold as it stands."""
    wanted, found = clean(gold), clean(formula)
    return wanted == found or (read_number(wanted) is not None and read_number(wanted) == read_number(found))


def changed(gold, draw):
    """A gold with another value: None if nothing in it can be changed that way."""
    kind = draw.choice(("digit", "sign", "case", "letter", "term", "factor"))
    if kind == "digit":
        places = [match.start() for match in re.finditer("[0-9]", gold)]
        if not places:
            return None
        place = draw.choice(places)
        return gold[:place] + str((int(gold[place]) + draw.randint(1, 9)) % 10) + gold[place + 1 :]
    if kind in ("case", "letter"):
        letters = list(re.finditer(r"(?<![A-Za-z0-9\\{])[A-Za-z](?![A-Za-z}])", gold))
        if not letters:
            return None
        letter = draw.choice(letters)
        other = letter[0].swapcase() if kind == "case" else draw.choice("qvw")
        return None if other == letter[0] else gold[: letter.start()] + other + gold[letter.end() :]
    if re.fullmatch(r"0\b.*|-?[0-9.]+[eE]-?[0-9]+", gold):
        return None  # a zero has no sign; one more or less is within the tolerance of 4.4e7
    if kind == "sign":
        return gold[1:] if gold[0] == "-" else f"-{gold}"
    return f"{gold}+{draw.randint(1, 9)}" if kind == "term" else f"{draw.randint(2, 9)}({gold})"


def perturbations(folder, count, seed=0):
    """Golds with a change that makes another value of them; none of them is right."""
    draw = random.Random(seed)
    golds = [
        row["answer"] for name in ("math500", "olympiadbench", "minerva") for row in read(folder / f"{name}.jsonl")
    ]
    pairs = {}
    while len(pairs) < count:
        gold = draw.choice(golds)
        other = changed(gold, draw)
        if other is not None and other != gold:
            pairs[other, gold] = None
    with MathVerifier(timeout=5.0, workers=2) as verifier:
        verdicts = verifier.verify_many([(rf"\boxed{{{other}}}", gold) for other, gold in pairs])
    right = [list(pair) for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.right]
    return {"changed_golds": len(pairs), "changed_golds_right": len(right), "changed_golds_listed": right[:40]}


def rewritten(gold):
    """The same gold in other layouts."""
    return [
        f"${gold}$",
        f" {gold} .",
        rf"\displaystyle {gold}",
        gold.replace(r"\frac", r"\dfrac"),
        gold.replace("(", r"\left(").replace(")", r"\right)") if gold.count("(") == gold.count(")") else gold,
        re.sub(r"(?<!e)([+-])", r" \1 ", gold),
        re.sub(r"(?<!\\)\{", "{ ", gold) if not re.search(r"\\(?:begin|text|mbox)", gold) else gold,
        f"{{{gold}}}",
        rf"\large {gold}",
        rf"\color{{red}} {gold}",
        gold.replace("=", r"\;=\;"),
    ]


def rewritings(folder):
    """Golds in other layouts; all of them are right."""
    names = ("math500", "olympiadbench", "minerva", "aime24", "aime25")
    golds = sorted({row["answer"] for name in names for row in read(folder / f"{name}.jsonl")})
    pairs = sorted({(other, gold) for gold in golds for other in rewritten(gold)})
    with MathVerifier(timeout=5.0, workers=2) as verifier:
        verdicts = verifier.verify_many([(rf"\boxed{{{other}}}", gold) for other, gold in pairs])
    wrong = [list(pair) for pair, verdict in zip(pairs, verdicts, strict=True) if not verdict.right]
    return {
        "rewritten_golds": len(pairs),
        "rewritten_golds_agreement": 1 - len(wrong) / len(pairs),
        "rewritten_golds_listed": wrong[:40],
    }


def symbolic_pairs(folder):
    """Golds that are no plain numbers against another way of writing them, and against each other."""
    golds = {
        row["answer"]
        for name in ("math500", "olympiadbench")
        for row in read(folder / f"{name}.jsonl")
        if not is_plain(clean(row["answer"]))
        and not re.search(r"[,=<>]|\\(?:text|begin|mbox|le|ge|in|cup)", row["answer"])
    }
    golds = sorted(golds)
    same = [(rf"2({gold})-({gold})", gold) for gold in golds]
    return same + list(zip(golds[1:], golds, strict=False))


def symbolic(folder, plain_judge, parts):
    """Symbolic answers, by math-verify alone and by the pool, in turn."""
    pairs = [(rf"\boxed{{{answer}}}", gold) for answer, gold in symbolic_pairs(folder)]
    random.Random(0).shuffle(pairs)
    ratios, speeds, right = [], [], 0
    with MathVerifier(timeout=10.0, workers=2) as verifier:
        verifier.verify_many([(rf"\boxed{{[{n},x)}}", f"[{n},y)") for n in range(4)])  # the workers have started
        for part in range(parts):
            rows, seconds = pairs[part::parts], {}
            for side in ("plain", "pool") if part % 2 else ("pool", "plain"):
                start = time.perf_counter()
                if side == "plain":
                    plain_judge(rows)
                else:
                    right += sum(verdict.right for verdict in verifier.verify_many(rows))
                seconds[side] = time.perf_counter() - start
            ratios.append(seconds["plain"] / seconds["pool"])
            speeds.append(len(rows) / seconds["pool"])
    return {
        "symbolic_answers": len(pairs),
        "symbolic_right": right,
        "symbolic_per_second": median(speeds),
        "symbolic_ratio": median(ratios),
    }
