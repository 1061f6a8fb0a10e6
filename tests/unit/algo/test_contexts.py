import torch
from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.contexts import context_keys, share_entropy

ANSWERS = st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=6)


@given(ANSWERS, st.data())
def test_keys_are_equal_exactly_where_group_and_answer_so_far_are(answers, data):
    groups = data.draw(st.lists(st.integers(0, 1), min_size=len(answers), max_size=len(answers)))
    keys = context_keys(torch.tensor(answers), torch.tensor(groups)).tolist()
    places = [(row, t) for row in range(len(answers)) for t in range(4)]
    for row, t in places:
        for other, u in places:
            same = groups[row] == groups[other] and answers[row][:t] == answers[other][:u]
            assert (keys[row][t] == keys[other][u]) == same


@given(ANSWERS, st.randoms(use_true_random=False))
def test_noise_in_the_last_digits_goes_and_nothing_else_changes(answers, rng):
    ids, groups = torch.tensor(answers), torch.zeros(len(answers), dtype=torch.int64)
    keys = context_keys(ids, groups)
    exact = keys.double() * 1e-20
    noisy = exact * (1 + 1e-15 * torch.tensor([[rng.random() for _ in row] for row in answers], dtype=torch.float64))
    mask = torch.tensor([[rng.random() < 0.8 for _ in row] for row in answers])
    shared = share_entropy(noisy, keys, mask)
    assert torch.equal(shared[~mask], noisy[~mask])
    for key in keys[mask].unique():
        assert len(shared[mask & (keys == key)].unique()) == 1
    torch.testing.assert_close(shared, exact, rtol=1e-14, atol=0)
