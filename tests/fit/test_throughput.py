"""What a run says of its own cost: counts that can be worked out from its sizes, and shares of its time."""

import pytest
from toy_runs import curves, events, fit

ROLLOUTS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs of three rollouts: on-policy, and with two updates of two micro-batches."""
    on, off = (tmp_path_factory.mktemp("throughput") / name for name in ("on", "off"))
    fit(on, "--data.updates_per_rollout", 1, "--throughput.peak_tflops", 1e-3, steps=ROLLOUTS)
    more = ("--data.updates_per_rollout", 2, "--trainer.accumulate_grad_batches", 2)
    fit(off, *more, "--model.kl.coef", 0.1, "--model.policy.random_init", "false", steps=2 * ROLLOUTS)
    return on, off


def values(folder, name):
    return [value for _, value in curves(folder)[f"time/{name}"]]


def test_passes_are_those_of_the_table_of_cases(folders):
    on, off = folders
    assert values(on, "passes_train") == [1] * ROLLOUTS
    assert values(on, "passes_statistics") == [0] * ROLLOUTS
    assert values(off, "passes_train") == values(off, "passes_statistics") == [4] * ROLLOUTS
    assert values(off, "passes_reference") == [4] * ROLLOUTS
    assert "time/passes_reference" not in curves(on)


def test_the_head_has_as_many_products_as_the_loss_asks_for(folders):
    on, off = folders
    skipped, kept = values(on, "skipped_share"), values(on, "kept_share")
    for products, left_out, share in zip(values(on, "head_products"), skipped, kept, strict=True):
        # one for every token of answers that take part, three more for each that is kept
        assert 3 * share < products <= 1 + 3 * share + 1e-6
        assert (products == pytest.approx(1 + 3 * share)) == (left_out == 0)
    # with a KL over all tokens: statistics, reference, and three in the one pass of training
    assert values(off, "head_products") == pytest.approx([5.0] * ROLLOUTS)


def test_shares_of_time_add_up(folders):
    phases = ("sync", "sample", "verify", "statistics", "forward", "backward", "optimizer", "other")
    for parts in zip(*(values(folders[0], f"share_{phase}") for phase in phases), strict=True):
        assert sum(parts) == pytest.approx(1, abs=1e-5)
        assert all(part >= 0 for part in parts)


def test_prompts_are_shared_and_nothing_is_padded(folders):
    for folder in folders:
        assert all(value > 1 for value in values(folder, "prefix_ratio"))
        assert all(value >= 1 for value in values(folder, "packing_ratio"))  # toy answers are all of one length


def test_utilisation_is_of_the_peak_that_was_given(folders):
    on, off = folders
    assert values(on, "mfu") == pytest.approx([speed / 1e-3 for speed in values(on, "tflops")], rel=1e-4)
    assert "time/mfu" not in curves(off)  # nobody knows what this CPU can do


def test_a_text_tells_which_passes_ran_and_why(folders):
    texts = [
        events(folder).Tensors("rollout/passes/text_summary")[0].tensor_proto.string_val[0].decode()
        for folder in folders
    ]
    assert "no pass: with one update per rollout" in texts[0]
    assert "answers of zero advantage have no gradient" in texts[0]
    assert "later updates compare with the policy before the first" in texts[1]
    assert "a term besides the policy's reads every answer token" in texts[1]
    assert "- reference: 4 passes" in texts[1]


def test_later_updates_say_nothing_of_tokens_that_nobody_looked_at(folders):
    assert "fork/ratio_dropped" in curves(folders[0])  # on-policy the forward pass computes all tokens
    found = curves(folders[1])
    assert "fork/ratio_kept" in found
    assert "fork/entropy_dropped" in found  # of the statistics pass
