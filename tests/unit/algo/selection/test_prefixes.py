import torch
from hypothesis import given
from hypothesis import strategies as st

from forklight.algo.selection.prefixes import prefix_keys, share_first

ANSWERS = st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=6)


@given(ANSWERS, st.data())
def test_keys_are_equal_exactly_where_group_and_answer_so_far_are(answers, data):
    groups = data.draw(st.lists(st.integers(0, 1), min_size=len(answers), max_size=len(answers)))
    keys = prefix_keys(torch.tensor(answers), torch.tensor(groups)).tolist()
    places = [(row, t) for row in range(len(answers)) for t in range(4)]
    for row, t in places:
        for other, u in places:
            same = groups[row] == groups[other] and answers[row][:t] == answers[other][:u]
            assert (keys[row][t] == keys[other][u]) == same
    inclusive = prefix_keys(torch.tensor(answers), torch.tensor(groups), inclusive=True)
    assert torch.equal(inclusive[:, :-1], torch.tensor(keys)[:, 1:])
    same = [
        [groups[a] == groups[b] and answers[a] == answers[b] for a in range(len(groups))] for b in range(len(groups))
    ]
    assert (inclusive[:, -1, None] == inclusive[:, -1]).tolist() == same


@given(ANSWERS, st.randoms(use_true_random=False))
def test_noise_in_the_last_digits_goes_and_nothing_else_changes(answers, rng):
    ids, groups = torch.tensor(answers), torch.zeros(len(answers), dtype=torch.int64)
    keys = prefix_keys(ids, groups)
    exact = keys.double() * 1e-20
    noisy = exact * (1 + 1e-15 * torch.tensor([[rng.random() for _ in row] for row in answers], dtype=torch.float64))
    mask = torch.tensor([[rng.random() < 0.8 for _ in row] for row in answers])
    shared = share_first(noisy, keys, mask)
    assert torch.equal(shared[~mask], noisy[~mask])
    for key in keys[mask].unique():
        assert len(shared[mask & (keys == key)].unique()) == 1
    torch.testing.assert_close(shared, exact, rtol=1e-14, atol=0)


@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 12), st.floats(0, 1))
def test_every_token_has_the_value_of_the_first_row_with_its_key(seed, width, rows, density):
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(rows, width, generator=generator) < 0.05).long()  # long common beginnings, also whole answers
    keys = prefix_keys(ids, torch.randint(0, 2, (rows,), generator=generator))
    mask = torch.rand(rows, width, generator=generator) < density
    values = torch.rand(rows, width, generator=generator)
    expected = values.clone()
    for column in range(width):
        first = {}
        for row in mask[:, column].nonzero().flatten().tolist():
            expected[row, column] = values[first.setdefault(keys[row, column].item(), row), column]
    assert torch.equal(share_first(values, keys, mask), expected)


def test_inclusive_keys_share_the_log_probability_of_equal_tokens_alone():
    ids = torch.tensor([[5, 7, 1], [5, 8, 1], [5, 7, 2]])
    keys = prefix_keys(ids, torch.zeros(3, dtype=torch.int64), inclusive=True)
    values = torch.arange(9.0).view(3, 3)
    shared = share_first(values, keys, torch.ones(3, 3).bool())
    assert shared.tolist() == [[0, 1, 2], [0, 4, 5], [0, 1, 8]]
