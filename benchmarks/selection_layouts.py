"""One rollout laid out in many ways: micro-batches, processes, padding, order of the rows. What changes of an update?

Answers of the shipped base policy to Countdown problems go through the learner, in every layout, and each layout's
masks, losses and gradients are compared with those of one micro-batch on one process. Part of `selection.py`.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import fsum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils import logging

from forklight.algo.batch import MicroBatch, RolloutBatch, TokenStats
from forklight.algo.config import AlgorithmConfig
from forklight.algo.plan import update_and_rank
from forklight.algo.selection import ForkSelection, select
from forklight.algo.selection.prefixes import prefix_keys, share_first
from forklight.distributed import Ranks
from forklight.models.heads import FullHead
from forklight.models.loading import PolicyConfig
from forklight.models.policy import Policy
from forklight.rollout.collect import RolloutConfig
from forklight.training.update import Learner

SEED = 0
PROBLEMS, ANSWERS = 16, 8
ROLLOUT = RolloutConfig(max_new_tokens=16, temperature=1.25)
KINDS = ((1, "old"), (2, "old"), (2, "current"))
"""Updates per rollout, and the policy that the entropies are of."""
RULES = (
    ForkSelection(),
    ForkSelection(rule="threshold"),
    ForkSelection(keep="bottom", rho=0.8),
    ForkSelection(keep="band"),
    ForkSelection(keep="random"),
    ForkSelection(scope="sequence"),
)


@dataclass(frozen=True)
class Layout:
    """How a rollout is laid out."""

    ranks: int = 1
    micro_batches: int = 1  # 0: a forward pass for every sequence, which has no padding at all
    padding: int = 0  # columns more than needed
    order: int | None = None  # seed of the order of a rank's rows


def layouts(ranks: int, *, quick: bool) -> list[Layout]:
    """All layouts on so many processes."""
    split = [Layout(ranks, count) for count in ((1, 4, 0) if quick else (1, 2, 4, 8, 0))]
    other = [Layout(ranks, 2, padding=13), Layout(ranks, 2, order=1)]
    return split + other if quick else [*split, *other, Layout(ranks, 8, order=2), Layout(ranks, 0, 5, order=3)]


# -- one layout --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """An update over all ranks; rows in the order of the rollout."""

    mask: Tensor  # bool [S,T]
    loss: float
    gradient: Tensor  # of all parameters
    entropy: Tensor  # [S,T]
    threshold: float


class Padded(nn.Module):
    """A policy whose forward passes have columns that nobody needs."""

    def __init__(self, policy: nn.Module, columns: int) -> None:
        super().__init__()
        self.policy, self.columns = policy, columns

    @property
    def head_weight(self) -> Tensor:
        """The policy's."""
        return self.policy.head_weight

    def forward(self, micro_batch: MicroBatch, *args: Any, **settings: Any) -> Any:
        """The policy's, of a wider micro-batch."""
        return self.policy(
            replace(micro_batch, input_ids=nn.functional.pad(micro_batch.input_ids, (0, self.columns))),
            *args,
            **settings,
        )


class Recorded(nn.Module):
    """Gives entropies that are known: bitwise the same in every layout."""

    def __init__(self, entropy: Tensor) -> None:
        super().__init__()
        self.entropy = entropy
        self.head_weight = nn.Parameter(entropy.new_zeros(1, 1))

    def forward(self, micro_batch: MicroBatch, loss_fn: Any, rows: Tensor | None = None, **settings: Any) -> Any:
        """Whatever the loss function makes of the recorded statistics."""
        return loss_fn(RecordedHead(micro_batch.read(self.entropy), self.head_weight))


class RecordedHead(FullHead):
    """A head whose statistics are known: the log-probability of a token is minus its entropy."""

    def __init__(self, entropy: Tensor, weight: Tensor) -> None:
        super().__init__(entropy[:, None], weight, torch.zeros(len(entropy), dtype=torch.int64), 1.0, 1.0, False)
        self.entropy = entropy

    def all_stats(self) -> TokenStats:
        """The recorded ones, connected to the weight."""
        return TokenStats(-self.entropy + 0 * self.weight.sum(), self.entropy)


def share_of(x: RolloutBatch, layout: Layout, rank: int, updates: int) -> tuple[RolloutBatch, Tensor]:
    """What a rank has of a rollout, and the row numbers."""
    places = update_and_rank(PROBLEMS, updates, layout.ranks)
    rows = torch.tensor([row for row, problem in enumerate(x.problem_index.tolist()) if places[problem][1] == rank])
    if layout.order is not None:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(layout.order + rank))]
    parts = {f.name: getattr(x, f.name)[rows] for f in fields(x) if isinstance(getattr(x, f.name), Tensor)}
    update = torch.tensor([places[problem][0] for problem in x.problem_index[rows].tolist()])
    return RolloutBatch(**{**parts, "update": update}), rows


def run(
    layout: Layout, policy: Any, x: RolloutBatch, rows: Tensor, kind: tuple[int, str], ranks: Ranks
) -> Iterator[Update]:
    """The updates of a rollout; between two of them the policy moves by noise, the same in every layout."""
    updates, entropy_of = kind
    config = AlgorithmConfig(ForkSelection(entropy_of=entropy_of))
    learner = Learner(config, temperature=ROLLOUT.temperature, length_limit=16, seed=SEED, ranks=ranks)
    count = layout.micro_batches or len(rows) // updates
    state = learner.begin(x, rollout=0, updates=updates, micro_batches=count)
    passes = Padded(policy, layout.padding) if layout.padding else policy
    for update in range(updates):
        if update and isinstance(policy, Policy):
            move(policy)
        policy.zero_grad()
        learner.prepare_update(state, update, passes, None)
        losses = []
        for number in state.plan.micro_batches_of(update):
            loss = learner.loss(state, number, passes)[0] / count
            loss.backward()
            losses.append(loss.item())
        tokens, in_update = state.tokens, state.batch.update == update
        threshold = tokens.threshold[in_update].nan_to_num(-torch.inf).max()  # NaN in rows that were not ranked
        everywhere = ranks.gather((rows, tokens.fork_mask & in_update[:, None], tokens.entropy, float(threshold)))
        gradient = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
        yield Update(
            mask=joined([(part[0], part[1]) for part in everywhere], False),
            loss=fsum(ranks.gather(fsum(losses))) / ranks.size,
            gradient=ranks.reduce(gradient) / ranks.size,
            entropy=joined([(part[0], part[2]) for part in everywhere], torch.nan),
            threshold=everywhere[0][3],
        )


def joined(parts: list[tuple[Tensor, Tensor]], fill: float) -> Tensor:
    """One `[S,T]` of the ranks' rows."""
    width = max(values.shape[1] for _, values in parts)
    whole = torch.full((PROBLEMS * ANSWERS, width), fill, dtype=parts[0][1].dtype)
    for rows, values in parts:
        whole[rows, : values.shape[1]] = values
    return whole


def move(policy: nn.Module) -> None:
    """A step in a random direction, far enough to clip some ratios."""
    noise = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in policy.parameters():
            size = 0.1 * parameter.square().mean().sqrt()
            step = torch.randn(parameter.shape, generator=noise, dtype=torch.float64) * size
            parameter += step.to(parameter.dtype)


# -- all layouts of one number of processes ----------------------------------------------------------------------------


def compare(rank: int, size: int, folder: str, quick: bool) -> None:
    """Runs all layouts on a process, and on the first one writes what differs.

    Args:
        rank: of this process.
        size: number of processes; one is not set up as a group, and writes what the others compare with.
        folder: holds the rollout.
        quick: fewer layouts.
    """
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{size}", rank=rank, world_size=size)
    x = RolloutBatch(**torch.load(Path(folder) / "rollout.pt"))
    rows = [row for dtype in ("float64", "float32") for row in _end_to_end(x, dtype, rank, size, folder, quick)]
    given = _given_entropies(x, Ranks(), folder, quick)
    if rank == 0:
        torch.save({"layouts": rows, "given": given}, Path(folder) / f"found-{size}.pt")
    if size > 1:
        dist.destroy_process_group()


def _end_to_end(
    x: RolloutBatch, dtype: str, rank: int, size: int, folder: str, quick: bool
) -> Iterator[dict[str, float | str]]:
    """Every layout of every kind against the first one: flips, swaps, distances and relative differences."""
    policy = Policy(PolicyConfig(path="tiny", dtype=dtype))
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    for kind in KINDS:
        file = Path(folder) / f"base-{dtype}-{kind[0]}-{kind[1]}.pt"
        for layout in layouts(size, quick=quick):
            policy.load_state_dict(start)
            mine, rows = share_of(x, layout, rank, kind[0])
            found = list(run(layout, policy, mine, rows, kind, Ranks()))
            if layout == Layout():
                torch.save([{f.name: getattr(update, f.name) for f in fields(update)} for update in found], file)
            bases = [Update(**saved) for saved in torch.load(file)]
            if rank == 0:
                for update, base in zip(found, bases, strict=True):
                    yield {"dtype": dtype, **difference(x, update, base)}


def difference(x: RolloutBatch, update: Update, base: Update) -> dict[str, float]:
    """How an update differs from the same one in the first layout.

    A *swap*: of equal answers of one group, so many keep a token as before, but others; any other change is a *flip*.
    """
    changed = update.mask ^ base.mask
    lost_and_won: Counter[tuple[int, ...]] = Counter()
    for row, place in changed.nonzero().tolist():
        start = int(x.prompt_length[row])
        answer = x.input_ids[row, start : start + int(x.answer_length[row])].tolist()
        lost_and_won[int(x.problem_index[row]), place, *answer] += 1 if update.mask[row, place] else -1
    flips = sum(map(abs, lost_and_won.values()))
    distance = (base.entropy - base.threshold).abs()[changed]
    return {
        "tokens": int(x.answer_mask.sum()),
        "flips": flips,
        "swaps": int(changed.sum()) - flips,
        "distance": float(distance.max()) if len(distance) else 0.0,
        "loss": abs(update.loss - base.loss) / abs(base.loss),
        "gradient": float((update.gradient - base.gradient).abs().max() / base.gradient.abs().max()),
    }


def _given_entropies(x: RolloutBatch, ranks: Ranks, folder: str, quick: bool) -> dict[str, int]:
    """Eligible tokens that are compared, and that differ, where all layouts have bitwise the same entropies."""
    base = torch.load(Path(folder) / "base-float32-1-old.pt")[0]
    keys = prefix_keys(x.answer_ids(torch.arange(len(x.problem_index))), x.problem_index)
    entropy = share_first(base["entropy"], keys, x.answer_mask)
    eligible = x.answer_mask & x.contributing[:, None]
    compared = differ = 0
    for kind in KINDS:
        wanted = None
        for layout in [Layout(), *layouts(ranks.size, quick=quick)]:
            group = ranks if layout.ranks == ranks.size else _Alone()
            mine, rows = share_of(x, layout, group.rank, kind[0])
            masks = [update.mask for update in run(layout, Recorded(entropy[rows]), mine, rows, kind, group)]
            wanted = wanted or masks
            compared += int(eligible.sum())
            differ += sum(int((a ^ b).sum()) for a, b in zip(masks, wanted, strict=True))
    for spec, ties, deal in itertools.product(RULES, (False, True), range(5 if quick else 40)):
        scores = (entropy * 4).round() / 4 if ties else entropy
        compared += int(eligible.sum())
        differ += _dealt(spec, scores, eligible, x.sequence_id, deal, ranks)
    return {"compared": compared, "differ": differ}


def _dealt(spec: ForkSelection, scores: Tensor, eligible: Tensor, sequence_id: Tensor, deal: int, ranks: Ranks) -> int:
    """Tokens that differ where `select` gets the rows in random order on random ranks, padded wider."""
    whole = select(scores, eligible, spec, sequence_id=sequence_id).mask
    noise = torch.Generator().manual_seed(deal)
    owner = torch.randint(1 + deal % ranks.size, sequence_id.shape, generator=noise)  # some ranks have no row
    order = torch.randperm(len(sequence_id), generator=noise)
    rows, pad = order[owner[order] == ranks.rank], (0, deal % 7)
    parts = [nn.functional.pad(values[rows], pad) for values in (scores, eligible, whole)]
    found = select(parts[0], parts[1], spec, sequence_id=sequence_id[rows], reduce=ranks.reduce).mask
    return int(ranks.reduce((found ^ parts[2]).sum()))


class _Alone(Ranks):
    """A group of one, whatever processes there are."""

    @property
    def size(self) -> int:
        return 1
