from math import log

import pytest
import torch
from published import differences, learned, tokens_of, worked
from published_cases import HEAD, Case, experience_of, random_case, tables_of

PRESETS = ("trl", "paper-code")
CASES = 64
"""benchmarks/selection.py goes through a thousand."""


def assert_cases_agree(preset, numbers):
    for number in numbers:
        for update, found in enumerate(differences(random_case(number), preset)):
            assert found.mask == 0, f"case {number}, update {update}: {found.mask} tokens differ"
            assert found.loss < 1e-10, f"case {number}, update {update}"
            assert found.gradient < 1e-10, f"case {number}, update {update}"


@pytest.mark.parametrize("preset", PRESETS)
def test_masks_losses_and_gradients_are_the_published_ones(preset):
    assert_cases_agree(preset, range(CASES))


def test_the_cases_hold_every_difficulty():
    seen = set()
    for number in range(CASES):
        case = random_case(number)
        for update, (outcome, cut) in enumerate(learned(case, "trl")):
            parts = [tokens_of(case, update, rows) for of_rank in cut for rows in of_rank]
            tokens = [token for part in parts for token in part]
            ratios = [(token.log_p[token.target] - token.old_logp, token.advantage) for token in tokens]
            kept = sum(int(mask.sum()) for mask in outcome.masks)
            difficulties = {
                "nothing to select from": not tokens,
                "an empty micro-batch": any(parts) and not all(parts),
                "a rank without tokens": case.ranks == 2
                and any(tokens)
                and any(not any(tokens_of(case, update, rows) for rows in of_rank) for of_rank in cut),
                "all entropies zero": tokens and all(token.entropy == 0 for token in tokens),
                "ties keep more than k": kept > len(tokens) * case.rho + case.micro_batches,
                "clipped from above": any(ratio > log(1.28) and advantage > 0 for ratio, advantage in ratios),
                "clipped from below": any(ratio < log(0.8) and advantage < 0 for ratio, advantage in ratios),
                "clipped by the dual bound": any(ratio > log(10) and advantage < 0 for ratio, advantage in ratios),
                "a group without advantage": not case.x.contributing.all(),
                "a zero among advantages": (case.x.contributing & (case.x.advantages == 0)).any(),
                f"{case.ranks} ranks, {case.micro_batches} micro-batches": True,
            }
            seen |= {name for name, is_there in difficulties.items() if is_there}
    assert seen == set(difficulties) | {f"{ranks} ranks, {a} micro-batches" for ranks in (1, 2) for a in (1, 2, 4)}


def test_both_on_one_answer_by_hand():
    """Five tokens, one of them uniform over 8, the others certain: H = 0, 0, ln 8, 0, 0."""
    peak, flat = (1024.0, 0.0, 0.0, 0.0), (0.0,) * 4
    answers = [[[0, 1, 2, 3, 4]], [[0]]]
    states = iter([(state, state) for state in (peak, peak, flat, peak, peak, peak)])
    x = experience_of([[1], [1]], answers, [[2.0], [0.0]], [0, 1])
    case = Case(x, tables_of(answers, states), ranks=1, micro_batches=1, rho=0.5, temperature=1.0)
    cut = [[[0]]]
    trl, authors = worked(case, "trl", 0, cut), worked(case, "paper-code", 0, cut)
    assert trl.masks[0][0].tolist() == [True] * 5  # the median is 0, and all reach it
    assert authors.masks[0][0].tolist() == [True, True, True, False, False]  # k = 3: the forking token and two of four
    assert trl.loss == pytest.approx(-2.0, abs=1e-15)
    assert authors.loss == pytest.approx(-2.0, abs=1e-15)
    # only the uniform token can move: -A (1 - 1/8) W[2] / 5 and minus the other rows' eighths
    rest = torch.tensor(HEAD, dtype=torch.float64).sum(0) / 8
    by_hand = -2.0 * (torch.tensor([1.0, 0.0, -3.0, 1.0], dtype=torch.float64) - rest)
    assert torch.allclose(trl.table[0][0, 2], by_hand / 5, rtol=1e-14, atol=0)
    assert torch.allclose(authors.table[0][0, 2], by_hand / 3, rtol=1e-14, atol=0)
    assert [found.mask for preset in PRESETS for found in differences(case, preset)] == [0] * 4


def test_the_two_do_not_agree_with_each_other():
    masks, losses = 0, 0
    for number in range(24):
        case = random_case(number)
        for update, (outcome, cut) in enumerate(learned(case, "trl")):
            other = worked(case, "paper-code", update, cut)
            masks += any((a ^ b).any() for a, b in zip(outcome.masks, other.masks, strict=True))
            losses += abs(outcome.loss - other.loss) > 1e-10
    assert masks > 10
    assert losses > 10
