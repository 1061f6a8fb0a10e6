"""The learning signal of an update: from all logits of a tiny policy, in every case of the table of passes."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from cases import Case, load, with_sampler_logp
from tiny import VOCABULARY, on_ranks, rollout_batch, rows_of

from forklight.algo.batch import Metrics
from forklight.algo.plan import eligible_rows, update_and_rank
from forklight.algo.signal import EDGES
from forklight.distributed import Ranks
from forklight.models.heads import HEADS
from forklight.training.report import update_report
from forklight.training.signal import BINS, update_signal

PARTS = ("right", "wrong", "cut", "whole", "before_box", "behind_box")


def boxes(x):
    """A place for the box of every second answer: anywhere, the last token included."""
    row = torch.arange(len(x.update))
    return torch.where(row % 2 == 0, row % x.answer_length, -1)


def measured(case, x, policy, *, micro_batches=1, ranks=None, box_end=None):
    """The reports on all updates, and the state after them; the policy is not moved."""
    learner = case.learner(ranks=ranks or Ranks())
    state = learner.begin(x, rollout=3, updates=case.updates, micro_batches=micro_batches)
    found = []
    for update in range(case.updates):
        learner.prepare_update(state, update, policy, None)
        metrics = Metrics({}, {})
        for number in state.plan.micro_batches_of(update):
            metrics = metrics.and_also(learner.loss(state, number, policy)[1])
        found.append(update_report(learner, state, update, metrics, vocabulary=VOCABULARY, box_end=box_end))
    return found, state


def by_loops(case, x, update, policy, fork_mask, box_end):
    """The scalars of an update, token by token from the logits of each answer alone."""
    eligible = eligible_rows(x, case.config.selection)
    mass, kept = dict.fromkeys(("all", *PARTS), 0.0), dict.fromkeys(("all", *PARTS), 0.0)
    by_bin = dict.fromkeys(itertools.product(("gradient", "tokens"), BINS), 0.0)
    tokens = 0
    for row in range(len(x.update)):
        if x.update[row] != update or not eligible[row] or x.advantages[row] == 0:
            continue
        start, end = int(x.prompt_length[row]), int(x.prompt_length[row] + x.answer_length[row])
        logits = policy.model(input_ids=x.input_ids[row : row + 1, :end]).logits[0, start - 1 : end - 1].detach()
        for place in range(end - start):
            z = logits[place].clone().requires_grad_()
            logp = (z / case.temperature).log_softmax(-1)[x.input_ids[row, start + place]]
            (gradient,) = torch.autograd.grad(-x.advantages[row] * logp, z)
            p = (logits[place] / case.config.selection.entropy_temperature(case.temperature)).softmax(-1)
            entropy = float(-(p * p.log()).sum())
            value, box = float(gradient.square().sum()), int(box_end[row])
            inside = {
                "all": True, "right": bool(x.right[row]), "wrong": not x.right[row],
                "cut": bool(x.truncated[row]), "whole": not x.truncated[row],
                "before_box": place <= box, "behind_box": 0 <= box < place,
            }  # fmt: skip
            for part in (part for part, there in inside.items() if there):
                mass[part] += value
                kept[part] += value * bool(fork_mask[row, place])
            name = BINS[sum(entropy >= edge for edge in EDGES)]
            by_bin["gradient", name] += value
            by_bin["tokens", name] += 1
            tokens += 1
    found = {"fork/signal_kept": kept["all"] / mass["all"]}
    for part in PARTS:
        if mass[part]:
            found |= {f"signal/share_{part}": mass[part] / mass["all"], f"signal/kept_{part}": kept[part] / mass[part]}
    totals = {"gradient": mass["all"], "tokens": tokens}
    return found | {f"signal/{measure}/{name}": value / totals[measure] for (measure, name), value in by_bin.items()}


def signal_of(report):
    return {tag: v for tag, v in report.scalars.items() if tag.startswith("signal/") or tag == "fork/signal_kept"}


CASES = {
    "default": Case(),
    "temperature": Case(temperature=0.7, at=1.0),
    "random": Case(keep="random", updates=3),
    "all": Case(keep="all"),
    "bottom": Case(keep="bottom", updates=3, select_truncated=False),
    "answers": Case(eligible="answers", scope="sequence", denominator="answer"),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_that_of_all_logits(name, head, path):
    case, policy = CASES[name], load(path, head=head)
    x = rollout_batch(2, updates=case.updates, shares=(0.2, 0.4, 0.4))
    reports, state = measured(case, x, policy, box_end=boxes(x))
    for update, report in enumerate(reports):
        expected = by_loops(case, x, update, policy, state.tokens.fork_mask, boxes(x))
        assert signal_of(report) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        if case.keep == "all":
            assert {v for tag, v in signal_of(report).items() if "kept" in tag} == {1.0}


def test_it_is_known_in_every_case_of_the_table_of_passes(path):
    """No token with an advantage is left out by the passes, whatever is selected and wherever."""
    policies, seen = [load(path, head=head) for head in HEADS], 0
    choices = itertools.product(
        (1, 2), ("top", "all", "random"), ("update", "micro_batch"), ("old", "current"), ("trainer", "sampler"), (1, 2)
    )
    for updates, keep, scope, entropy_of, source, micro_batches in choices:
        case = Case(updates, keep, scope, "answers", entropy_of, old_logp_from=source)
        if not case.valid:
            continue
        policy = policies[seen % len(policies)]
        x = with_sampler_logp(rollout_batch(3, updates=updates, shares=(0.2, 0.4, 0.4)), case, policy)
        reports, _ = measured(case, x, policy, micro_batches=micro_batches)
        assert all(report.signal is not None for report in reports), case
        seen += 1
    assert seen > 80


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_and_ranks_make_no_difference(name, path):
    case, policies = CASES[name], [load(path), load(path)]
    x = rollout_batch(2, problems=6, updates=case.updates, shares=(0.2, 0.4, 0.4))
    expected, _ = measured(case, x, policies[0], box_end=boxes(x))
    more, _ = measured(case, x, policies[0], micro_batches=3, box_end=boxes(x))
    owner = torch.tensor([rank for _, rank in update_and_rank(6, case.updates, 2)]).repeat_interleave(3)

    def run(ranks):
        rows = (owner == ranks.rank).nonzero().flatten()
        return measured(case, rows_of(x, rows), policies[ranks.rank], ranks=ranks, box_end=boxes(x)[rows])[0]

    one, two = on_ranks(2, run)
    assert one == two
    for report, *others in zip(expected, more, one, strict=True):
        for other in others:
            assert signal_of(other) == pytest.approx(signal_of(report), rel=1e-12, abs=1e-15)


def test_shares_of_what_makes_up_the_whole_sum_to_1(path):
    x = rollout_batch(2)
    (report,), _ = measured(Case(), x, load(path), box_end=boxes(x))
    found = report.scalars
    for names in (("share_right", "share_wrong"), ("share_cut", "share_whole")):
        assert sum(found[f"signal/{name}"] for name in names) == pytest.approx(1)
    for measure in ("gradient", "tokens"):
        assert sum(found[f"signal/{measure}/{name}"] for name in BINS) == pytest.approx(1)
    assert 0 < found["fork/signal_kept"] < 1


def test_what_is_not_known_has_no_point(path):
    """One token with an advantage is enough; those without one do not matter."""
    policy, case, x = load(path), Case(eligible="answers"), rollout_batch(2, shares=(0.2, 0.4, 0.4))
    _, state = measured(case, x, policy)
    spec, tokens = case.config.selection, state.tokens
    expected = update_signal(state, 0, spec, Ranks())
    assert set(expected.sums) == {"all", *PARTS[:4]}
    for name in ("entropy", "grad_square"):
        for row, known in ((int((x.advantages == 0).nonzero()[0]), True), (int(x.advantages.nonzero()[0]), False)):
            values = getattr(tokens, name).clone()
            values[row, 0] = torch.nan
            state.tokens = replace(tokens, **{name: values})
            found = update_signal(state, 0, spec, Ranks())
            assert (found == expected) if known else (found is None)


def test_an_update_without_an_advantage_has_no_signal(path):
    x = rollout_batch(2, shares=(1, 0, 0))
    (report,), _ = measured(Case(eligible="answers"), x, load(path), box_end=boxes(x))
    assert report.signal is None
    assert not signal_of(report)


def test_names_of_bins():
    assert BINS[0] == "0_to_0.01"
    assert BINS[3] == "0.3_to_0.7"
    assert BINS[-1] == "6_to_inf"
    assert len(BINS) == len(EDGES) + 1


def test_the_table_has_every_sum(path):
    x = rollout_batch(2)
    (report,), state = measured(Case(), x, load(path))
    record = report.signal.record()
    assert record["edges"] == list(EDGES)
    everything = record["sums"]["all"]
    trained = x.answer_mask & (x.contributing & (x.advantages != 0))[:, None]
    assert sum(everything["tokens"]) == int(trained.sum())
    assert sum(everything["kept_tokens"]) == int((trained & state.tokens.fork_mask).sum())
    sizes = x.advantages.abs()[:, None].expand(trained.shape)[trained]
    assert math.fsum(everything["advantage"]) == pytest.approx(float(sizes.sum()), rel=1e-12)
