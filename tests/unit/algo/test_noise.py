import json
from pathlib import Path

import pytest
import torch

from forklight.algo.noise import hash_bits, hash_uniform, string_key

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "noise.json").read_text())


def scalar_bits(*keys: int) -> int:
    """The same hash in Python integers."""
    state = 0
    for key in keys:
        z = (state + (key + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        state = z ^ (z >> 31)
    return state


def test_one_key_reads_the_published_splitmix64_stream():
    bits = hash_bits(torch.arange(len(GOLDEN["splitmix64"]))).tolist()
    assert [f"{value % 2**64:016x}" for value in bits] == GOLDEN["splitmix64"]


def test_string_key_is_the_head_of_sha256():
    for text, digits in GOLDEN["string_key"].items():
        assert string_key(text) % 2**64 == int(digits, 16)
        assert -(2**63) <= string_key(text) < 2**63


def test_vectorised_equals_the_scalar_version():
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    positions = torch.arange(7)
    bits = hash_bits(seeds[:, None], string_key("uid"), positions)
    expected = [[scalar_bits(s, string_key("uid"), p) for p in range(7)] for s in seeds.tolist()]
    assert [[value % 2**64 for value in row] for row in bits.tolist()] == expected
    uniform = hash_uniform(seeds[:, None], string_key("uid"), positions)
    assert uniform.dtype == torch.float64
    assert uniform.tolist() == [[(value >> 11) / 2**53 for value in row] for row in expected]


def test_value_depends_on_the_keys_alone():
    positions = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    together = hash_uniform(5, positions)
    assert torch.equal(together[positions.argsort()], hash_uniform(5, torch.arange(1000)))
    assert together[0] == hash_uniform(5, int(positions[0]))
    assert hash_uniform(2**64 + 5, 3) == hash_uniform(5, 3)
    assert hash_uniform(5, 3) != hash_uniform(3, 5)


@pytest.mark.parametrize("keys", [(0,), (7, 1), (string_key("uid"), 0, 3)])
def test_uniform(keys):
    n = 200_000
    u = hash_uniform(*keys, torch.arange(n))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 1 / 2) < 4 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    # Kolmogorov-Smirnov at the 0.1 % level
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    ordered = u.sort().values
    assert torch.maximum(ordered - grid[:-1], grid[1:] - ordered).max() < 1.95 / n**0.5


def test_neighbouring_counters_are_independent():
    n = 400
    grid = hash_uniform(3, torch.arange(n)[:, None], torch.arange(n)) - 0.5  # [answer, position]
    for other in (grid.roll(1, 0), grid.roll(1, 1), grid.roll((1, -1), (0, 1)), grid.T):
        correlation = (grid * other).mean() * 12
        assert abs(correlation) < 4 * 2**0.5 / n
    # half of all bits flip from one counter to the next
    bits = hash_bits(3, torch.arange(20_000))
    flips = bits[1:] ^ bits[:-1]
    share = torch.stack([((flips >> bit) & 1).double().mean() for bit in range(64)])
    assert (share - 0.5).abs().max() < 4.5 * 0.5 / 20_000**0.5


def test_wrong_keys_are_refused():
    with pytest.raises(ValueError, match="at least one key"):
        hash_bits()
    with pytest.raises(TypeError, match="int64"):
        hash_uniform(torch.zeros(2))
