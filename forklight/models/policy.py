"""The language model that is trained: a causal LM of transformers whose head is ours."""

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forklight.algo.logprobs import token_stats
from forklight.algo.packing import Packed, buckets_of, pack, prune
from forklight.algo.plain_head import plain_stats
from forklight.algo.types import Chunk, TokenStats
from forklight.models.attention import NAME, packs, plain_mask
from forklight.models.heads import HEADS, HeadInput, HeadName, VisitLoss, VisitOutput
from forklight.models.loading import PolicyConfig, load_model
from forklight.models.pruning import prune_last_layer
from forklight.models.work import Shape, Work

log = logging.getLogger(__name__)


class Policy(nn.Module):
    """A causal LM: its body runs on whole sequences, its head only on answer tokens.

    Args:
        config: which model to load.

    Raises:
        FileNotFoundError: `policy.path` names a folder that is not there.
        ValueError: the model drops out units, or scales its logits in a way the head does not reproduce; there is no
            head of that name; or the last layer cannot be pruned.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        if config.head not in HEADS:
            raise ValueError(f"model.policy.head must be one of {tuple(HEADS)}, got {config.head!r}")
        self.head: HeadName = config.head
        self.model: PreTrainedModel = load_model(config)
        self.shape = Shape.of(self.model)
        self.work = {"train": Work(), "statistics": Work()}
        """What the passes so far cost, those of training with their backward; callbacks read differences."""
        self.packing = config.packing and config.attention == "sdpa" and packs(self.model)
        if self.packing:
            self.model.set_attn_implementation(NAME)
        elif config.packing:
            log.info("model.policy.packing: %s is trained in padded batches, by lengths", config.path)
        self.prunes = config.prune_last_layer
        if self.prunes:
            if not self.packing or config.head == "full":
                raise ValueError(
                    "model.policy.prune_last_layer needs packing, so attention: sdpa and a model of full attention, "
                    f"and a head other than full; packing is {'on' if self.packing else 'off'}, head: {config.head}"
                )
            prune_last_layer(self.model)
        # Models come in evaluation mode, in which gradient checkpointing does nothing; without dropout both are equal.
        self.model.train()
        if config.gradient_checkpointing:
            renamed = hasattr(self.model, "activation_checkpointing_enable")  # the older name warns where both are
            getattr(self.model, "activation_checkpointing_enable" if renamed else "gradient_checkpointing_enable")()

    def forward(
        self,
        chunk: Chunk,
        temperature: float,
        loss: VisitLoss | None = None,
        *,
        entropy_temperature: float | None = None,
        entropy_grad: bool = False,
    ) -> TokenStats | VisitOutput:
        """Body, head and, if asked for, the loss: all work on the head's weight lies in here.

        Args:
            chunk: the sequences, S of them; none at all is fine, the result is then empty but connected.
            temperature: the sampling temperature T; log-probabilities are those of logits / T.
            loss: tells which tokens it reads and what to make of them; without it the statistics of all are returned.
            entropy_temperature: of the entropies; T if None.
            entropy_grad: whether the entropies are differentiable.

        Returns:
            `TokenStats` of the chunk's N answer tokens, or what the visit contributes.
        """
        whole = loss is None or loss.wants_all or self.head == "full"
        hidden, work = self._answer_hidden(chunk, None if loss is None or whole else loss.rows())
        x = HeadInput(
            hidden,
            self.head_weight,
            chunk.answer_ids,
            temperature,
            temperature if entropy_temperature is None else entropy_temperature,
            entropy_grad,
        )
        if loss is not None:
            out = HEADS[self.head](x, loss)
            self.work["train"] += work + Work(head_products=out.head_products)
            return out
        self.work["statistics"] += work + Work(head_products=len(x.targets))
        # under plain autograd the same rows go through the same products later, and their ratio is exactly 1
        return token_stats(*x) if self.head == "selected" else plain_stats(*x)

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        body: nn.Module = self.model.base_model
        return body

    @property
    def head_weight(self) -> Tensor:
        """The LM head's weight, `[V,H]`."""
        weight: Tensor = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        return weight

    def _answer_hidden(self, chunk: Chunk, read: Tensor | None) -> tuple[Tensor, Work]:
        """Hidden states that predict the answer tokens, `[N,H]`, and what they cost.

        Where it is known which tokens are `read`, the states of others are anything.
        """
        sequences = len(chunk.rows)
        if sequences == 0:
            return self._body(chunk.input_ids.new_zeros(1, 1))[0, :0], Work(1)
        length = chunk.prompt_length + chunk.answer_mask.sum(1) - 1  # the last token predicts nothing
        work = Work(1, sequences, int(length.sum()), sequences * int(length.max()))
        hidden, layers = self._packed_hidden(chunk, read) if self.packing else self._padded_hidden(chunk, length)
        return hidden, work + layers

    def _packed_hidden(self, chunk: Chunk, read: Tensor | None) -> tuple[Tensor, Work]:
        """All sequences as one row."""
        packed = self._pack(chunk, read)
        if len(packed.input_ids) == 0:
            return self._body(chunk.input_ids.new_zeros(1, 1))[0, [0] * len(packed.predicts)], Work()
        hidden = self._body(
            packed.input_ids[None],
            position_ids=packed.position_ids[None],
            attention_mask=plain_mask(packed.input_ids),
            packed=packed,
        )
        work = Work(row_tokens=len(packed.input_ids), pairs=_pairs(bucket.shape for bucket in packed.buckets))
        return hidden[0].index_select(0, packed.predicts), work

    def _pack(self, chunk: Chunk, read: Tensor | None) -> Packed:
        """The chunk as one row, without what no token that is read depends on."""
        if read is None:
            return pack(chunk, segments=chunk.rows.is_cuda)
        needed = torch.zeros_like(chunk.prompt_length)
        needed = needed.scatter_reduce(0, chunk.row[read], chunk.column[read] + 1, "amax")
        packed = pack(chunk, needed, segments=chunk.rows.is_cuda)
        return prune(packed, chunk, read) if self.prunes and len(read) else packed

    def _padded_hidden(self, chunk: Chunk, length: Tensor) -> tuple[Tensor, Work]:
        """Sequences of about one length at a time. Rows are right-padded, so no mask is needed."""
        buckets = buckets_of(length)
        hidden = torch.cat([self._body(chunk.input_ids[rows, :longest]).flatten(0, 1) for rows, longest in buckets])
        start, total = torch.zeros_like(length), 0
        for rows, longest in buckets:
            start[rows] = total + torch.arange(len(rows), device=rows.device) * longest
            total += len(rows) * longest
        place = start[:, None] + chunk.answer_positions - 1
        work = Work(row_tokens=total, pairs=_pairs((len(rows), longest) for rows, longest in buckets))
        return hidden.index_select(0, place[chunk.answer_mask]), work

    def _body(self, input_ids: Tensor, **settings: object) -> Tensor:
        hidden: Tensor = self.body(input_ids=input_ids, use_cache=False, **settings).last_hidden_state
        return hidden


def _pairs(batches: Iterable[Sequence[int]]) -> int:
    """Causal pairs of queries and keys in batches of so many sequences and columns."""
    return sum(count * longest * (longest + 1) // 2 for count, longest in batches)
