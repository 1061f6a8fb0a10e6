import pytest

from forklight.rollout.overlong import soft_overlong


@pytest.mark.parametrize(
    ("length", "expected"),
    # The paper's own setting: 20480 tokens at most, the last 4096 punished; (16384 - length) / 4096 between.
    [(0, 0.0), (16384, 0.0), (16385, -1 / 4096), (17408, -0.25), (18432, -0.5), (20480, -1.0), (20481, -1.0)],
)
def test_values_worked_by_hand(length, expected):
    assert soft_overlong(length, max_length=20480, buffer=4096) == expected


def test_penalty_scales_and_zero_turns_off():
    assert soft_overlong(90, max_length=100, buffer=20, penalty=0.5) == -0.25
    assert soft_overlong(100, max_length=100, buffer=0) == 0.0
    assert soft_overlong(100, max_length=100, buffer=20, penalty=0.0) == 0.0
    assert soft_overlong(50, max_length=100, buffer=100) == -0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": -1, "max_length": 10, "buffer": 0}, "-1 tokens"),
        ({"length": 1, "max_length": 0, "buffer": 0}, r"rollout\.max_new_tokens"),
        ({"length": 1, "max_length": 10, "buffer": 11}, r"rollout\.overlong_buffer .*11"),
        ({"length": 1, "max_length": 10, "buffer": -1}, r"rollout\.overlong_buffer .*-1"),
        ({"length": 1, "max_length": 10, "buffer": 2, "penalty": -1.0}, "penalty"),
        ({"length": 1, "max_length": 10, "buffer": 2, "penalty": float("nan")}, "penalty"),
    ],
)
def test_faults_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        soft_overlong(**arguments)
