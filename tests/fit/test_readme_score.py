"""The score of one's own that docs/selection.md shows: copied out of it, it trains, and keeps what it says."""

import re
import sys

import pytest
import torch
from pages import doc, named_block
from toy_runs import checkpoint, curves, fit

from forklight.algo.batch import RolloutBatch
from forklight.algo.selection import ForkSelection
from forklight.training.state import TokenState

BLOCK = named_block("my_scores.py", doc("selection"))
(CLASS_PATH,) = set(re.findall(r"--model\.selection\.keep (my_scores\.\w+)", doc("selection")))
K, G = 2, 4


@pytest.fixture
def of_the_page(tmp_path, monkeypatch):
    """The file is where Python looks for modules, and no other of that name has been imported."""
    (tmp_path / "my_scores.py").write_text(BLOCK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "my_scores", None)  # so that the end of the test forgets the module, too
    del sys.modules["my_scores"]
    return CLASS_PATH


def two_updates(folder, *more):
    """The rollout of both updates, as the checkpoint between them has it, and the curves."""
    sizes = ("--data.updates_per_rollout", K, "--data.answers_per_prompt", G, "--checkpoint.every_n_updates", 1)
    fit(folder, "--data.val", "null", *sizes, *more, steps=K)
    (saved,) = checkpoint(folder, 1)["forklight"]["ranks"]
    return RolloutBatch(**saved["batch"]), TokenState(**saved["tokens"]), curves(folder)


def test_the_score_of_the_page_trains(of_the_page, tmp_path):
    own, tokens, found = two_updates(tmp_path / "own", "--model.selection.keep", of_the_page)
    top, top_tokens, _ = two_updates(tmp_path / "top")
    assert torch.equal(own.input_ids, top.input_ids)
    assert torch.equal(tokens.entropy[own.answer_mask], top_tokens.entropy[top.answer_mask])

    decided_by_advantage = 0
    for update in range(K):
        rows = (own.update == update) & own.contributing
        eligible = own.answer_mask & rows[:, None]
        kept, dropped = eligible & tokens.fork_mask, eligible & ~tokens.fork_mask
        k = ForkSelection().kept(int(eligible.sum()))
        assert kept.sum() == k
        assert found["fork/kept_share"][update] == (update + 1, pytest.approx(k / int(eligible.sum())))

        sizes = own.advantages.abs()[:, None]
        scores = tokens.entropy * sizes
        assert scores[kept].min() >= scores[dropped].max() - 1e-5  # tokens with equal prefixes share one entropy
        assert found["fork/threshold"][update][1] == pytest.approx(float(scores[kept].min()), abs=1e-5)

        if own.advantages[rows].abs().unique().numel() > 1:
            # a random policy is nearly as uncertain everywhere, so that the size of the advantage decides
            decided_by_advantage += 1
            assert not torch.equal(kept, eligible & top_tokens.fork_mask)
            assert sizes.expand_as(kept)[kept].mean() > sizes.expand_as(kept)[eligible & top_tokens.fork_mask].mean()
    assert decided_by_advantage > 0
    assert [step for step, _ in found["train/policy_loss"]] == [1, 2]
