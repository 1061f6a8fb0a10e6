r"""Answers that are meant to be slow or huge, and what it costs to judge them.

Formulas are put together from parts that lie below the caps of `forklight.verify.math.limits`, or get past them. Traps
repeat what a pattern of `forklight.verify`, or of Math-Verify's search in prose, might take long over. No two are
equal, none is right.
"""

import os
import random
import signal
import threading
import time
from contextlib import contextmanager

from forklight.verify import MathVerifier

LIMIT = 1.0
"""Time limit of an answer in seconds."""
GRACE = 0.5
"""Seconds more that are allowed, for ending a worker and for what the parent does itself."""
BOX, TEXT, LINE = 1500, 20_000, 290
"""Characters: the longest answer that is read, the end of a text that is searched, a last line."""

GOLDS = ["5", "7", "12", r"\frac{3}{7}", r"2\sqrt{2}", "x^2+1", "(1,2)", r"\{1,2\}", "x>5"]
PLACES = [
    *[r"\boxed{%s}"] * 5,
    "The answer is %s",
    "The final answer is $%s$. I hope it is correct.",
    "So we get $$%s$$",
    r"Answer: \(%s\)",
    "A: %s",
]
NESTS = [
    r"\frac{1}{1+%s}",
    r"\sqrt{2+%s}",
    r"\sqrt[7]{3-%s}",
    r"\sin(%s)",
    r"\ln(3+%s)",
    r"e^{-%s}",
    r"\left|x-%s\right|",
    r"\left(%s+x\right)^{9}",
    r"\binom{99}{%s}",
    r"\lfloor{x+%s}\rfloor",
    r"\int_0^1{%s}dx",
    r"\sum_{k=1}^{99}{%s}",
]
TERMS = [r"x^{%d}", r"\frac{1}{%d}", r"\sqrt{%d}", r"\sin(%d)", "%d!", r"\sqrt[%d]{2}", "(x+%d)", r"\cos(x^{%d})"]
FORMULAS = [
    lambda n: rf"({n(2, 99)}^{{{n(1000, 9999)}}})^{{{n(1000, 9999)}}}",
    lambda n: rf"(x+{n(2, 9)}^{{{n(1000, 9999)}}})^{{{n(1000, 9999)}}}",
    lambda n: rf"{n(2, 9)}^{{{n(2, 9)}^{{4}}}}-{n(2, 9)}^{{{n(1000, 9999)}}}",
    lambda n: rf"{n(2, 9)}^{{{n(1000, 9999)}!}}",
    lambda n: rf"x+{n(2, 9)}^{{\binom{{{n(1000, 9999)}}}{{{n(100, 999)}}}}} \bmod {n(100, 999)}",
    lambda n: rf"{n(2, 9)}^{{x^{{{n(1000, 9999)}}}}}-x^{{{n(2, 9)}^{{4}}}}",
    lambda n: rf"\log_{{{n(2, 9)}}}({n(2, 9)}^{{{n(1000, 9999)}}}+1)^{{{n(1000, 9999)}}}",
    lambda n: f"{n(10**5, 10**9)}!",
    lambda n: rf"\frac{{{n(10**5, 10**6)}!}}{{{n(10**4, 10**5)}!}}",
    lambda n: f"({n(1000, 9999)}!)^{{{n(1000, 9999)}}}",
    lambda n: f"(({n(1000, 9999)}!)+1)!!",
    lambda n: rf"\binom{{{n(10**6, 10**9)}}}{{{n(10**5, 10**6)}}}",
    lambda n: rf"\sum_{{k=-{n(10**6, 10**9)}}}^{{-1}} \frac{{1}}{{k^{{{n(2, 9)}}}}}",
    lambda n: rf"\prod_{{k=-{n(10**6, 10**9)}}}^{{-1}} (k^2+{n(1, 9)})",
    lambda n: rf"\int_0^{{{n(100, 9999)}}} x^{{x}} \sin(x^{{{n(2, 99)}}}) dx",
    lambda n: rf"\lim_{{m\to\infty}} \sum_{{k=1}}^{{m}} \frac{{m^{{{n(2, 9)}}}}}{{k^{{m}}+{n(2, 9)}}}",
    lambda n: nested(n, n(5, 15)),
    lambda n: nested(n, n(10, 14)),
    lambda n: nested(n, n(5, 9)) + nested(n, n(5, 9)),
    lambda n: repeated(n, "+", n(20, 300)),
    lambda n: repeated(n, " ", n(10, 60)),
    lambda n: matrix(n, n(4, 9), "a_{%d}"),
    lambda n: r"\det" + matrix(n, n(5, 8), "x^{%d}"),
    lambda n: matrix(n, n(4, 12), "%d") + f"^{{{n(100, 9999)}}}",
    lambda n: ",".join(str(n(10, 999)) for _ in range(n(200, 350))),
    lambda n: r"\{" + ",".join(rf"\sqrt{{{n(10, 999)}}}+x" for _ in range(n(10, 80))) + r"\}",
    lambda n: r"\cup".join(f"({9 * k + n(1, 3)},{9 * k + n(4, 8)}]" for k in range(n(20, 120))),
    lambda n: rf"\{{x \mid x^{{{n(10, 99)}}}-x>{n(1, 9)}\}}",
    lambda n: rf"(x+y+{n(1, 9)})^{{{n(100, 9999)}}}",
    lambda n: "".join(f"(x-{n(1, 99)}y)" for _ in range(n(20, 150))),
    lambda n: rf"x^{{{n(50, 999)}}}+x^{{{n(5, 49)}}}=x+{n(1, 99)}",
    lambda n: "=".join(rf"\sqrt{{{n(10, 999)}}}" for _ in range(n(20, 150))),
    lambda n: rf"\sqrt[{n(3, 9)}]{{2+\sqrt{{{n(2, 99)}}}}}-\sqrt[{n(11, 99)}]{{3+\sqrt[3]{{{n(2, 99)}}}}}",
    lambda n: rf"\gcd({n(2, 9)}^{{{n(1000, 9999)}}}-1,{n(2, 9)}^{{{n(1000, 9999)}}}+x)",
    lambda n: rf"x+{n(2, 9)}^{{{n(1000, 9999)}^{{x}}}} \bmod {n(10**8, 10**9)}",
    lambda n: rf"\cos(\frac{{\pi}}{{{n(100, 9999)}}})+\tan(\frac{{\pi}}{{{n(100, 9999)}}})",
    lambda n: rf"1.{n(10**8, 10**9)}^{{{n(1000, 9999)}}}\times 10^{{{n(1000, 9999)}}}",
    lambda n: f"{n(2, 9)}" + "⁹" * n(5, 40),
    lambda n: f"{n(2, 9)}\N{FULLWIDTH CIRCUMFLEX ACCENT}{{{n(10**8, 10**9)}}}",
    lambda n: "\N{FULLWIDTH LEFT PARENTHESIS}" * n(16, 300) + "x" + "\N{FULLWIDTH RIGHT PARENTHESIS}" * 300,
    lambda n: ")" * n(20, 200) + "(" * 200 + "x",
]
# What traps repeat, between bars, around an @ if it has a middle: in a box, as a last line, as a text.
PUMPS = r"""
°|~|\,|\ | |\quad |²|⑳|½|ﷺ|…|√ |{,}|1{,}|1,000,|9,|.1|1.|1e|1e9 |1 |1 : |1/|-|+1|1+|(1|-(1|**1|1=|=|\text{ }|\text{a |
\text|\text{and}|{\text|\mbox{x}|\phantom{|\left(|\left|\frac|\frac1|\frac{1}|\sqrt|\sqrt(|\binom1|\begin{matrix}|\{ |
\{:|\}|\pm|\in |\degree |^\circ |^ |^{|^(|^x|!\!|!)| %| percent|_1|_{|<|\le|and|, and |or |a |cm |\|\\|{|}|
(@)|[@]|\left(@\right)|\text{@}|\frac{1}{@}
"""
TEXT_PUMPS = r"""
\boxed{|\boxed|\boxed |\boxed{}|\boxed{6}|\boxed{6}, |\boxed{6} a b |\boxed{6} and and |\fbox{6}\text{|\\boxed{{|
<think>|</think>|$|$$|$1|$1$ and |\(|\[|\(1\) | [1] |answer|answer is |answer: |answer = 1= |final answer is $1$ and |
#### |
A: |1 1 1|1 000 |1+ 1.|-1.1|€1|1%|=1|<think>1</think>|\boxed{@}|\fbox{ @ }|{@}
"""
PUMPS, TEXT_PUMPS = ([pump for pump in pumps.replace("\n", "").split("|") if pump] for pumps in (PUMPS, TEXT_PUMPS))


def nested(n, depth):
    """Functions of functions."""
    text = f"x^{{{n(2, 99)}}}" if n(0, 1) else str(n(10, 99))
    for _ in range(depth):
        text = NESTS[n(0, len(NESTS) - 1)].replace("%s", text)
    return text


def repeated(n, sign, count):
    """A sum or product of many terms."""
    form = TERMS[n(0, len(TERMS) - 1)]
    return sign.join(form % n(2, 999) for _ in range(count))


def matrix(n, size, entry):
    """A square matrix."""
    rows = ["&".join(entry % n(1, 99) for _ in range(size)) for _ in range(size)]
    return r"\begin{pmatrix}" + r"\\".join(rows) + r"\end{pmatrix}"


def trap(n, number):
    """A text that repeats one thing as often as there is room."""
    pump = (PUMPS + TEXT_PUMPS)[number % len(PUMPS + TEXT_PUMPS)]
    places = [(r"\boxed{", "}", BOX), (r"\boxed{", "}", BOX), ("The answer is ", "", LINE)] if pump in PUMPS else []
    places += [("", "", TEXT), (r"$\boxed{6}", r"\boxed{9}$", TEXT), ("answer ", " 1", TEXT), ("", "\n1", TEXT)]
    before, behind, longest = places[n(0, min(2, len(places) - 1))]
    left, middle, right = pump.partition("@")
    count = (longest - n(0, 9)) // len(left + right)
    return before + left * count + ("6" if middle else "") + right * count + behind


def generated(count, seed=0):
    """So many different (answer, gold) pairs: two formulas, three traps and so on, every kind in its turn."""
    generator = random.Random(seed)
    n = generator.randint
    pairs = {}
    for number in range(2 * count):
        if number % 5 < 2:
            formula = FORMULAS[(number // 5 * 2 + number % 5) % len(FORMULAS)](n)
            pairs[generator.choice(PLACES) % formula[:BOX]] = generator.choice(GOLDS)
        else:
            pairs[trap(n, number // 5 * 3 + number % 5 - 2)] = "5"
        if len(pairs) == count:
            break
    return list(pairs.items())


class Watched(MathVerifier):
    """Remembers how long its own process was busy with one answer before a worker was asked."""

    longest_look = 0.0

    def _look(self, text, gold):
        start = time.perf_counter()
        look = super()._look(text, gold)
        self.longest_look = max(self.longest_look, time.perf_counter() - start)
        return look


def memory(pid, what):
    """Resident memory of a process in megabytes: now (`VmRSS`), or the most so far (`VmHWM`); 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith(what)), 0.0)
    except OSError:
        return 0.0


@contextmanager
def peak_of_workers(verifier):
    """Yields a list of one number: the most memory that any worker had while the block ran."""
    peak, done = [0.0], threading.Event()

    def look():
        while not done.wait(0.01):
            peak[0] = max([peak[0], *(memory(pid, "VmHWM") for pid in verifier._pool.pids)])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


@contextmanager
def pending_alarm(seconds):
    """Yields a function that tells whether the alarm set here is still as it was, handler and timer."""
    handler = lambda *_: None  # noqa: E731
    before, start = signal.signal(signal.SIGALRM, handler), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, seconds)

    def untouched():
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        return signal.getsignal(signal.SIGALRM) is handler and abs(start + seconds - time.monotonic() - left) < 1

    try:
        yield untouched
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge_hostile(pairs, extraction):
    """Judges the pairs by two workers, from a pool that has started.

    Returns:
        The verdicts, and the figures of this run by the names that the report has them under.
    """
    with Watched(extraction, timeout=LIMIT, workers=2) as verifier:
        verifier.verify_many([(r"\boxed{\sqrt{9}+x}", "x+3"), (r"\boxed{\sqrt{16}+x}", "x+4")])
        threads, resident = threading.active_count(), memory(os.getpid(), "VmRSS")
        with pending_alarm(10_000) as untouched, peak_of_workers(verifier) as peak:
            verdicts = verifier.verify_many(pairs)
            alarm_stands = untouched()
        return verdicts, {
            "hostile_slowest_s": max(verdict.seconds for verdict in verdicts),
            "hostile_over_limit": sum(verdict.seconds > LIMIT + GRACE for verdict in verdicts),
            "hostile_parent_slowest_s": verifier.longest_look,
            "hostile_unjudged": sum(verdict.outcome == "unjudged" for verdict in verdicts),
            "hostile_worker_peak_mb": peak[0],
            "hostile_parent_growth_mb": memory(os.getpid(), "VmRSS") - resident,
            "hostile_threads_and_signals_untouched": alarm_stands and threading.active_count() == threads,
        }
