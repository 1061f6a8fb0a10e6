"""The language model that is trained: a causal LM of transformers with forklight's own LM head."""

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forklight.algo.batch import MicroBatch
from forklight.algo.logprobs.transform import LogitTransform
from forklight.algo.packing import Packed, buckets_of, pack
from forklight.models.architecture import head_bias, logit_transform, text_body
from forklight.models.attention import NAME, packs, plain_mask
from forklight.models.heads import HEADS, Head, HeadName
from forklight.models.loading import PolicyConfig, load_model
from forklight.models.work import Shape, Work

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Policy(nn.Module):
    """A causal LM: its body runs on full sequences, its head only on answer tokens.

    Args:
        config: which model to load.

    Raises:
        FileNotFoundError: `policy.path` names a folder that does not exist.
        ValueError: the model cannot be trained, see `forklight.models.loading.load_model`; or there is no head of that
            name.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        if config.head not in HEADS:
            raise ValueError(f"model.policy.head must be one of {tuple(HEADS)}, got {config.head!r}")
        self.head: HeadName = config.head
        self.model: PreTrainedModel = load_model(config)
        self.shape = Shape.of(self.model)
        self._transform = logit_transform(self.model)
        self.work = {"train": Work(), "statistics": Work()}
        """The cost of the passes so far, in training with backward; callbacks read differences."""
        self.packing = config.packing and config.attention == "sdpa" and packs(self.model)
        if self.packing:
            self.model.set_attn_implementation(NAME)
        elif config.packing:
            log.info("model.policy.packing: %s is trained in padded batches of similar lengths", config.path)
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        """Whether the body is told the tokens' positions; others find them from the attention mask."""
        # Models are loaded in evaluation mode, in which gradient checkpointing does nothing. Without dropout both modes
        # give the same numbers.
        self.model.train()
        if config.gradient_checkpointing:
            renamed = hasattr(self.model, "activation_checkpointing_enable")  # the older name warns where both are
            getattr(self.model, "activation_checkpointing_enable" if renamed else "gradient_checkpointing_enable")()

    def forward(
        self,
        micro_batch: MicroBatch,
        loss_fn: Callable[[Head], Result],
        rows: Tensor | None = None,
        *,
        temperature: float = 1.0,
        entropy_temperature: float | None = None,
        entropy_grad: bool = False,
    ) -> Result:
        """Runs the body on some sequences, and a loss function on the LM head over their answer tokens.

        All work on the head's weight is done in here, where a sharded weight is gathered.

        Args:
            micro_batch: the sequences, S of them; none at all is fine, the head is then empty but connected.
            loss_fn: gets the head over the N answer tokens, and returns what `forward` returns.
            rows: int64 [M], the only tokens that `loss_fn` reads, if these are known before; all if None. Hidden states
                after the last of them are not computed.
            temperature: the sampling temperature T; log-probabilities are those of logits / T.
            entropy_temperature: of the entropies; T if None.
            entropy_grad: whether the entropies are differentiable.
        """
        kind = HEADS[self.head]
        hidden, work = self._answer_hidden(micro_batch, None if kind.covers_all else rows)
        head = kind(
            hidden,
            self.head_weight,
            micro_batch.answer_ids,
            temperature,
            temperature if entropy_temperature is None else entropy_temperature,
            entropy_grad,
            self.logit_transform,
        )
        result = loss_fn(head)
        self.work["train" if torch.is_grad_enabled() else "statistics"] += work + Work(head_products=head.products)
        return result

    @property
    def body(self) -> nn.Module:
        """The text model without its head."""
        return text_body(self.model)

    @property
    def head_weight(self) -> Tensor:
        """The LM head's weight, `[V,H]`."""
        weight: Tensor = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        return weight

    @property
    def embeddings(self) -> int:
        """The number of tokens that the model can read."""
        weight: Tensor = self.model.get_input_embeddings().weight  # type: ignore[assignment]
        return len(weight)

    @property
    def logit_transform(self) -> LogitTransform:
        """What makes the model's logits of hidden states and `head_weight`."""
        bias = head_bias(self.model)
        return self._transform if bias is None else replace(self._transform, bias=bias)

    def pad(self) -> None:
        """Trains in padded batches from now on, as for a model that cannot run packed rows."""
        self.packing = False
        self.model.set_attn_implementation("sdpa")

    def _answer_hidden(self, micro_batch: MicroBatch, read: Tensor | None) -> tuple[Tensor, Work]:
        """Hidden states that predict the answer tokens, `[N,H]`, and the cost of the pass.

        If `read` is given, the states of other tokens are undefined.
        """
        sequences = len(micro_batch.rows)
        if sequences == 0:
            return self._body(micro_batch.input_ids.new_zeros(1, 1))[0, :0], Work(1)
        length = micro_batch.prompt_length + micro_batch.answer_mask.sum(1) - 1  # the last token predicts nothing
        work = Work(1, sequences, int(length.sum()), sequences * int(length.max()))
        hidden, layers = (
            self._packed_hidden(micro_batch, read) if self.packing else self._padded_hidden(micro_batch, length)
        )
        return hidden, work + layers

    def _packed_hidden(self, micro_batch: MicroBatch, read: Tensor | None) -> tuple[Tensor, Work]:
        """All sequences as one row."""
        packed = self._pack(micro_batch, read)
        if len(packed.input_ids) == 0:
            return self._body(micro_batch.input_ids.new_zeros(1, 1))[0, [0] * len(packed.predicts)], Work()
        hidden = self._body(
            packed.input_ids[None],
            position_ids=packed.position_ids[None],
            attention_mask=plain_mask(packed.input_ids),
            packed=packed,
        )
        work = Work(row_tokens=len(packed.input_ids), pairs=_pairs(bucket.shape for bucket in packed.buckets))
        return hidden[0].index_select(0, packed.predicts), work

    def _pack(self, micro_batch: MicroBatch, read: Tensor | None) -> Packed:
        """The sequences as one row, without tokens on which no token of `read` depends."""
        if read is None:
            return pack(micro_batch, segments=micro_batch.rows.is_cuda)
        needed = torch.zeros_like(micro_batch.prompt_length)
        needed = needed.scatter_reduce(0, micro_batch.row[read], micro_batch.column[read] + 1, "amax")
        return pack(micro_batch, needed, segments=micro_batch.rows.is_cuda)

    def _padded_hidden(self, micro_batch: MicroBatch, length: Tensor) -> tuple[Tensor, Work]:
        """Batches of sequences of similar length. Rows are right-padded, so no mask is needed."""
        buckets = buckets_of(length)
        hidden = torch.cat(
            [self._body(micro_batch.input_ids[rows, :longest]).flatten(0, 1) for rows, longest in buckets]
        )
        start, total = torch.zeros_like(length), 0
        for rows, longest in buckets:
            start[rows] = total + torch.arange(len(rows), device=rows.device) * longest
            total += len(rows) * longest
        place = start[:, None] + micro_batch.answer_positions - 1
        work = Work(row_tokens=total, pairs=_pairs((len(rows), longest) for rows, longest in buckets))
        return hidden.index_select(0, place[micro_batch.answer_mask]), work

    def _body(self, input_ids: Tensor, **settings: object) -> Tensor:
        hidden: Tensor = self.body(input_ids=input_ids, use_cache=False, **settings).last_hidden_state
        return hidden


def _pairs(batches: Iterable[Sequence[int]]) -> int:
    """Causal pairs of queries and keys in batches of the given shapes (sequences, columns)."""
    return sum(count * longest * (longest + 1) // 2 for count, longest in batches)
