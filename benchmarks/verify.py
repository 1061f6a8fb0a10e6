r"""The verifiers' claims: agreement with collected labels, no wrong positives, limits that hold, speed.

The last line printed is one JSON object:

cases_any, cases_any_agreement   labelled cases of other projects, and on what share of them `extraction="any"` agrees
cases_any_wrong_positives   ids judged right against the label, conventions aside
cases_box, cases_box_wrong_positives   the same of `extraction="box"`, adversarial and hostile cases included
cases_conventions   ids judged right against a label that is a convention, or wrong, with what holds here
hostile_answers, hostile_limit_s   answers meant to be slow or huge, collected and generated ones; their time limit.
    Both extractions judge each; below stand sums of counts over both, and the larger of other figures
hostile_slowest_s   longest time of an answer, the parent's and the worker's
hostile_over_limit   answers that took more than the limit and 0.5 s
hostile_parent_slowest_s   longest time the parent was busy with one answer before it asked a worker
hostile_right, hostile_unjudged   answers judged right against their label; answers ended by a limit or not understood
hostile_worker_peak_mb   largest resident memory of any worker
hostile_parent_growth_mb   how much the parent's resident memory grew
hostile_threads_and_signals_untouched   whether the parent had the same threads, SIGALRM handler and pending timer after
replay_answers   recorded GSM8K solutions that both sides below judge
plain_per_second, pool_per_second   answers judged per second, by math-verify in one process, and by `MathVerifier` with
    two workers that have started; medians over parts of the answers, which both sides judge in turn
throughput_ratio   median ratio of the two
replay_verdicts_differ, replay_verdicts_differ_from_labels   answers right for one of the two only; against the labels
pool_start_s   from a new pool of two workers to the moment when both have served a request, median of five
worker_imports_torch, worker_resident_mb   of a worker that has served one request
math500_golds_right   golds of MATH-500 that equal themselves, of 500
cross_pairs, cross_pairs_right   random pairs of golds of MATH-500 that are written differently; those judged equal
cross_pairs_listed   the different ones among them: answer, gold, and why they are equal
cross_pairs_unexplained   those for which no reason is known
new_cases, new_any_agreement, new_box_agreement   a second set of labelled cases, and the share that each agrees with
new_any_wrong_positives, new_box_wrong_positives   ids judged right against the label, conventions aside
copies_problems, copies_solved   problems of MATH-500; those solved by a formula of their own text, alone or with what
    leaves its value alone around it
changed_golds, changed_golds_right, changed_golds_listed   golds with a digit, sign, letter or term changed; right ones
rewritten_golds, rewritten_golds_agreement, rewritten_golds_listed   golds in another layout, those right, others
symbolic_answers, symbolic_right, symbolic_per_second, symbolic_ratio   answers that are no plain numbers; as above
replay_scores   avg@1 in per cent by model, through groups of answers and the scores of an evaluation

    python benchmarks/verify.py            some minutes
    python benchmarks/verify.py --quick    fewer generated answers, recorded answers and pairs
    python benchmarks/verify.py --data FOLDER    where the data files are; also $FORKLIGHT_TEST_DATA
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from collected import CONVENTIONS, CONVENTIONS_OF_ANY, prediction, read
from verify_cases import copies, new_cases, perturbations, rewritings, symbolic
from verify_hostile import LIMIT, generated, judge_hostile, memory

from forklight.evaluation.records import votes_of
from forklight.metrics import AnswerScores
from forklight.rollout.generate import Group
from forklight.types import Completion, Problem
from forklight.verify import MathVerifier, judge
from forklight.verify.workers.pool import WorkerPool

SEED = 0
EASY = [(r"\sqrt{9}+x", "x+3"), (r"\sqrt{16}+x", "x+4")]
"""Two comparisons that are easy, but need a worker."""


def judged_right(cases, extraction, timeout=10.0):
    """Ids of the cases that are judged right."""
    with MathVerifier(extraction, timeout, workers=2) as verifier:
        verdicts = verifier.verify_many([(prediction(case), case["gold"]) for case in cases])
    return {case["id"] for case, verdict in zip(cases, verdicts, strict=True) if verdict.right}


def collected(folder):
    """Collected cases, by both extractions."""
    labelled, adversarial = read(folder / "verifier_cases.jsonl"), read(folder / "adversarial_cases.jsonl")
    slow = read(folder / "hostile_cases.jsonl")
    right = {case["id"] for case in labelled + adversarial + slow if case["expected"]}
    by_any = judged_right(labelled, "any")
    boxed = judged_right(labelled + adversarial, "box") | judged_right(slow, "box", timeout=2.0)
    known = CONVENTIONS | CONVENTIONS_OF_ANY
    return {
        "cases_any": len(labelled),
        "cases_any_agreement": sum((case["id"] in by_any) == case["expected"] for case in labelled) / len(labelled),
        "cases_any_wrong_positives": sorted(by_any - right - set(known)),
        "cases_box": len(labelled + adversarial + slow),
        "cases_box_wrong_positives": sorted(boxed - right - set(CONVENTIONS)),
        "cases_conventions": {name: known[name] for name in sorted((by_any | boxed) - right) if name in known},
    }


def hostile(folder, count):
    """Hostile answers, by both extractions: the worse of two figures, the sum of two counts."""
    pairs = {prediction(case): (case["gold"], case["expected"]) for case in read(folder / "hostile_cases.jsonl")}
    pairs |= {answer: (gold, False) for answer, gold in generated(count)}
    questions = [(answer, gold) for answer, (gold, _) in pairs.items()]
    report = {"hostile_answers": len(questions), "hostile_limit_s": LIMIT, "hostile_right": 0}
    runs = []
    for extraction in ("box", "any"):
        verdicts, figures = judge_hostile(questions, extraction)
        runs.append(figures)
        for (answer, gold), verdict in zip(questions, verdicts, strict=True):
            if verdict.right and not pairs[answer][1]:
                report["hostile_right"] += 1
                print(f"hostile, {extraction}: {answer[:200]!r} is right for {gold!r}", file=sys.stderr)
            elif verdict.seconds > LIMIT + 0.5:
                print(f"hostile, {extraction}: {verdict.seconds:.2f} s for {answer[:200]!r}", file=sys.stderr)
    merge = {"hostile_over_limit": sum, "hostile_unjudged": sum, "hostile_threads_and_signals_untouched": all}
    return report | {name: merge.get(name, max)([figures[name] for figures in runs]) for name in runs[0]}


def plain_judge(rows):
    """What math-verify by itself says of (answer, gold) pairs."""
    from math_verify import parse, verify

    def one(text, gold):
        wanted = parse(rf"\boxed{{{gold}}}", parsing_timeout=None)
        return verify(wanted, parse(text, parsing_timeout=None), timeout_seconds=None)

    return [one(text, gold) for text, gold in rows]


def timed(judge_rows, rows):
    """Verdicts, and rows per second."""
    start = time.perf_counter()
    verdicts = judge_rows(rows)
    return verdicts, len(rows) / (time.perf_counter() - start)


def throughput(folder, count, parts):
    """Recorded solutions, by math-verify alone and by the pool."""
    golds = {row["id"]: row["answer"] for row in read(folder / "gsm8k_test.jsonl")}
    rows = read(folder / "replay_gsm8k_openai.jsonl")[:count]
    speeds, right = defaultdict(list), defaultdict(list)
    with MathVerifier("any", workers=2) as verifier:
        sides = {
            "plain": plain_judge,
            "pool": lambda pairs: [verdict.right for verdict in verifier.verify_many(pairs)],
        }
        start_both(verifier._pool)
        plain_judge([EASY[0]])
        for part in range(parts):
            pairs = [(row["response"], golds[row["id"]]) for row in rows[part::parts]]
            for side in sorted(sides, reverse=bool(part % 2)):
                verdicts, speed = timed(sides[side], pairs)
                right[side] += verdicts
                speeds[side].append(speed)
    labels = [row["is_correct"] for part in range(parts) for row in rows[part::parts]]
    return {
        "replay_answers": len(rows),
        "plain_per_second": statistics.median(speeds["plain"]),
        "pool_per_second": statistics.median(speeds["pool"]),
        "throughput_ratio": statistics.median(b / a for a, b in zip(speeds["plain"], speeds["pool"], strict=True)),
        "replay_verdicts_differ": sum(a != b for a, b in zip(right["plain"], right["pool"], strict=True)),
        "replay_verdicts_differ_from_labels": sum(a != b for a, b in zip(labels, right["pool"], strict=True)),
    }


def start_both(pool):
    """Returns when both workers of a pool have served a request."""
    requests = [{"gold": gold, "answer": answer, "search": False, "search_gold": False} for answer, gold in EASY]
    while pool.run(requests, 60.0) and any(worker.busy for worker in pool._workers):
        pass  # one is not ready yet
    pool.run(requests, 60.0)  # one for each


def start():
    """A pool's start, and what its workers are then."""
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        pool = WorkerPool("forklight.verify.math.service:math_service", size=2)
        start_both(pool)
        seconds.append(time.perf_counter() - begin)
        resident = max(memory(pid, "VmRSS") for pid in pool.pids)
        torch_mapped = any("torch" in Path(f"/proc/{pid}/maps").read_text() for pid in pool.pids)
        pool.close()
    return {
        "pool_start_s": statistics.median(seconds),
        "worker_imports_torch": torch_mapped,
        "worker_resident_mb": resident,
    }


EXPLAINED = {
    frozenset(pair): why
    for why, pairs in {
        "spelled differently": [
            (r"10,\!080", "10080"),
            (r"2 \sqrt{5}", r"2\sqrt{5}"),
            (r"\frac14", r"\frac{1}{4}"),
        ],
        "a unit may be missing": [("15", r"15\mbox{ cm}^2")],
        "the signs of degrees and dollars are not read": [
            ("120", r"120^\circ"),
            ("30", r"30^\circ"),
            ("36", r"36^\circ"),
            ("36", r"\$36"),
            (r"36^\circ", r"\$36"),
            ("90", r"90^\circ"),
        ],
        "the base of a number may be missing": [("40", "40_9")],
        "the name of a value may be missing": [("5", "x=5")],
        "a list may come without its brackets": [("-2,1", "(-2,1)")],
        "a list without brackets may come in any order": [("-2,1", "1,-2")],
    }.items()
    for pair in pairs
}
"""Why golds of MATH-500 that are written differently are equal: every pair of them that is judged so."""


def golds(folder, count):
    """Golds of MATH-500 against themselves and against each other."""
    answers = [row["answer"] for row in read(folder / "math500.jsonl")]
    draw = random.Random(SEED)
    pairs = []
    while len(pairs) < count:
        answer, gold = draw.choice(answers), draw.choice(answers)
        if answer != gold:
            pairs.append((answer, gold))
    with MathVerifier(timeout=10.0, workers=2) as verifier:
        same = verifier.verify_many([(rf"\boxed{{{gold}}}", gold) for gold in answers])
        verdicts = verifier.verify_many([(rf"\boxed{{{answer}}}", gold) for answer, gold in pairs])
    equal = sorted({pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.right})
    return {
        "math500_golds_right": sum(verdict.right for verdict in same),
        "cross_pairs": len(pairs),
        "cross_pairs_right": sum(verdict.right for verdict in verdicts),
        "cross_pairs_listed": [[*pair, EXPLAINED[frozenset(pair)]] for pair in equal if frozenset(pair) in EXPLAINED],
        "cross_pairs_unexplained": [list(pair) for pair in equal if frozenset(pair) not in EXPLAINED],
    }


def replay(folder):
    """Recorded solutions as the answers of an evaluation: judged, grouped and scored as a run does it."""
    problems = {
        row["id"]: Problem.make(row["problem"], row["answer"], row["source"])
        for row in read(folder / "gsm8k_test.jsonl")
    }
    by_model = defaultdict(list)
    for row in read(folder / "replay_gsm8k_openai.jsonl"):
        by_model[row["model"]].append((row["response"], problems[row["id"]]))
    scores = {}
    with MathVerifier("any", workers=2) as verifier:
        for model, answers in by_model.items():
            groups = [
                Group(problem, 0, (), (Completion(problem.uid, 0, (0,), text, truncated=False),), (verdict,))
                for (text, problem), verdict in zip(answers, judge(verifier, answers), strict=True)
            ]
            scores[model] = round(100 * score(groups, verifier), 2)
    return {"replay_scores": scores}


def score(groups, verifier):
    """avg@1 of groups of one answer."""
    verdicts = [group.verdicts for group in groups]
    metric = AnswerScores(1)
    metric.update(
        [group.problem.uid for group in groups],
        torch.tensor([[verdict.right for verdict in row] for row in verdicts]),
        torch.tensor(votes_of(groups, verifier)),
        torch.tensor([[c.truncated for c in group.completions] for group in groups]),
        torch.tensor([[len(c.token_ids) for c in group.completions] for group in groups]),
        torch.tensor([[verdict.outcome == "unjudged" for verdict in row] for row in verdicts]),
    )
    return float(metric.compute()["avg@1"])


def short(value):
    """Floats with four digits."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main():
    """Runs the parts and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer generated answers, recorded answers and pairs")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    default = Path(os.environ.get("FORKLIGHT_TEST_DATA") or beside)
    parser.add_argument("--data", type=Path, default=default, metavar="FOLDER", help="where the data files are")
    options = parser.parse_args()
    quick, folder = options.quick, options.data
    if not (folder / "verifier_cases.jsonl").is_file():
        parser.error(f"no verifier_cases.jsonl in {folder}: give --data or FORKLIGHT_TEST_DATA the folder of the data")
    torch.set_num_threads(1)
    parts = [
        start,
        lambda: throughput(folder, 600 if quick else 5276, parts=4 if quick else 8),
        lambda: replay(folder),
        lambda: golds(folder, 2000 if quick else 30_000),
        lambda: collected(folder),
        lambda: new_cases(folder),
        lambda: symbolic(folder, plain_judge, parts=4 if quick else 8),
        lambda: copies(folder, 100 if quick else 500),
        lambda: rewritings(folder),
        lambda: perturbations(folder, 1000 if quick else 10_000),
        lambda: hostile(folder, 50 if quick else 200),
    ]
    report = {}
    for part in parts:
        found = {name: short(value) for name, value in part().items()}
        print(json.dumps(found), file=sys.stderr, flush=True)
        report |= found
    print(json.dumps(report))


if __name__ == "__main__":
    main()
