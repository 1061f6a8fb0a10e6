"""The cold start: next-token training on worked answers, which makes the policy that RL starts from."""

from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from forklight.algo.batch import MicroBatch, TokenStats
from forklight.data.stream import NOMINAL_LENGTH, PositionedLoader
from forklight.models.forward_check import forward_check
from forklight.models.heads import differentiable_stats
from forklight.models.loading import PolicyConfig, load_tokenizer
from forklight.models.policy import Policy


@runtime_checkable
class Examples(Protocol):
    """An endless, numbered sequence of worked examples."""

    def example(self, index: int) -> tuple[str, str]:
        """Prompt, template applied, and answer number `index`."""


class SupervisedModule(LightningModule):
    """Cross entropy on the tokens of worked answers and the EOS after them, averaged over the batch's tokens.

    Args:
        examples: the source of worked answers.
        policy: the model; `random_init: true` starts from random weights.
        batch_size: examples per update and rank.
        optimizer: made for the policy's parameters.
        lr_scheduler: stepped after every update; constant if not given.
    """

    def __init__(
        self,
        examples: Examples,
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008  a frozen value
        batch_size: int = 256,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"model.batch_size = {batch_size} must be at least 1")
        self.examples = examples
        self.policy_config = policy
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.tokenizer = load_tokenizer(policy)
        self.batches_done = 0

    def configure_model(self) -> None:
        """Builds the policy."""
        if not hasattr(self, "policy"):
            self.policy = Policy(self.policy_config)

    def configure_optimizers(self) -> Any:
        """The optimiser, and a scheduler that steps with every update."""
        optimizer = self.optimizer(self.policy.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}

    def train_dataloader(self) -> PositionedLoader:
        """Batches of fresh examples: number i of rank r holds examples (i * ranks + r) * batch_size onwards."""
        return PositionedLoader(NOMINAL_LENGTH, start=lambda: self.batches_done, batch=self._batch)

    def _batch(self, number: int) -> "ExampleBatch":
        first = (number * self.trainer.world_size + self.trainer.global_rank) * self.batch_size
        pairs = [self.examples.example(i) for i in range(first, first + self.batch_size)]
        prompts = self.tokenizer([prompt for prompt, _ in pairs], add_special_tokens=False)["input_ids"]
        answers = self.tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
        self.batches_done = number + 1
        return ExampleBatch(prompts, [[*answer, self.tokenizer.eos_token_id] for answer in answers])

    def on_train_start(self) -> None:
        """Checks that the policy computes what its model computes."""
        with self.trainer.precision_plugin.forward_context():
            forward_check(self.policy)

    def training_step(self, batch: "ExampleBatch", batch_idx: int) -> Tensor:
        """Mean negative log-likelihood of the answer tokens."""
        stats: TokenStats = self.policy(batch.micro_batch(self.device), differentiable_stats)
        loss = -stats.logp.mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/entropy", stats.entropy.mean())
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the position in the examples."""
        checkpoint["forklight"] = {"batches_done": self.batches_done}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the saved position."""
        self.batches_done = checkpoint["forklight"]["batches_done"]


class ExampleBatch:
    """Token ids of prompts and answers, ragged.

    A plain class: Lightning would go through every number of a tuple of lists when it moves a batch.

    Args:
        prompts: one list per example.
        answers: one list per example, EOS included.
    """

    def __init__(self, prompts: list[list[int]], answers: list[list[int]]) -> None:
        self.prompts = prompts
        self.answers = answers

    def to(self, device: Any) -> "ExampleBatch":
        """Itself: `micro_batch` makes the tensors."""
        return self

    def micro_batch(self, device: torch.device) -> MicroBatch:
        """The same as right-padded tensors."""
        sequences = [torch.tensor(p + a) for p, a in zip(self.prompts, self.answers, strict=True)]
        input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        answer_length = torch.tensor([len(answer) for answer in self.answers])
        return MicroBatch(
            input_ids.to(device),
            torch.tensor([len(prompt) for prompt in self.prompts], device=device),
            (torch.arange(int(answer_length.max())) < answer_length[:, None]).to(device),
            torch.arange(len(sequences), device=device),
            torch.arange(len(sequences), device=device),
        )
