"""The LightningModule: which part of the algorithm runs in which hook. No mathematics here."""

import os
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from forklight.algo.advantages import Advantage, AdvantageName
from forklight.algo.batch import RolloutBatch
from forklight.algo.config import AlgorithmConfig, OldLogpFrom
from forklight.algo.correction import CorrectionConfig
from forklight.algo.kl import KLConfig
from forklight.algo.objectives import Dapo, Objective
from forklight.algo.plan import Cost
from forklight.algo.selection import ForkSelection
from forklight.data.lengths import PromptLimit
from forklight.data.stream import EvalBatch, PromptBatch
from forklight.distributed import Ranks
from forklight.models.architecture import text_settings
from forklight.models.forward_check import forward_check
from forklight.models.loading import PolicyConfig, eos_ids, load_settings, load_tokenizer
from forklight.models.reference import Reference, build, check_reference
from forklight.rollout.collect import Collector, Rollout
from forklight.rollout.config import RolloutConfig
from forklight.rollout.generate import AnswerGenerator
from forklight.sampling.answer_text import AnswerText
from forklight.sampling.base import Sampler
from forklight.sampling.hf import HFSampler
from forklight.sampling.stops import StopCheck
from forklight.sampling.weight_check import WeightSyncCheck
from forklight.stopwatch import Stopwatch
from forklight.training.optimizers import optimizers
from forklight.training.state import RolloutState, TokenState
from forklight.training.update import Learner

EVALUATION = -1
"""Takes the place of the rollout's number in the noise of evaluations, so that all checkpoints get the same noise."""


class ForkGRPOModule(LightningModule):
    """GRPO on forking tokens: only the answer tokens that the selection keeps carry policy gradient.

    Args:
        policy: the model that is trained.
        rollout: how answers are sampled and filtered.
        sampler: the engine that samples: `HFSampler`, with the policy's own model, if not given; or `VLLMSampler`.
        selection: which tokens carry gradient; `preset` sets all keys at once: forklight (if not given), top-20, paper,
            paper-code, trl, all-tokens, random-20 or bottom-80; keys next to or after it override it.
        objective: the policy's loss; `Dapo` if not given.
        advantage: how rewards become advantages: `grpo`, `dr_grpo` (no standard deviation), `batch_std`, `rloo`,
            `reinforce_pp`, `reinforce_pp_baseline`, or a `class_path` of your own.
        kl: the KL term; its reference model is loaded only if it is needed.
        entropy_coef: weight of the entropy bonus.
        correction: importance weights against a mismatch of sampler and trainer.
        old_logp_from: the source of the ratio's old log-probabilities: the trainer, for the policy that starts the
            rollout's updates, or the sampler.
        optimizer: made for the policy's parameters.
        lr_scheduler: stepped after every update; constant if not given.
        init_from: a checkpoint whose weights the policy starts from, and the reference too; nothing else of it is used.
    """

    def __init__(
        self,
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008  a frozen value
        rollout: RolloutConfig = RolloutConfig(),  # noqa: B008
        sampler: Sampler | None = None,
        selection: ForkSelection = ForkSelection.preset("forklight"),  # noqa: B008
        objective: Objective | None = None,
        advantage: AdvantageName | Advantage = "grpo",
        kl: KLConfig = KLConfig(),  # noqa: B008
        entropy_coef: float = 0.0,
        correction: CorrectionConfig = CorrectionConfig(),  # noqa: B008
        old_logp_from: OldLogpFrom = "trainer",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.config = AlgorithmConfig(selection, objective or Dapo(), kl, entropy_coef, correction, old_logp_from)
        self.policy_config = policy
        self.init_from = init_from
        self.rollout_config = rollout
        self.sampler = sampler or HFSampler()
        self.advantage = advantage
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        if self.config.needs_reference:
            check_reference(policy)
        optimizers(optimizer, lr_scheduler, [nn.Parameter(torch.zeros(1, 1))])  # refused before anything is built
        settings = load_settings(policy)  # a model that cannot be trained is refused before anything is written
        self.tokenizer = load_tokenizer(policy)
        positions = getattr(text_settings(settings), "max_position_embeddings", None)
        self.prompt_limit = PromptLimit(self.tokenizer, positions, rollout.max_new_tokens)
        """What the policy can read; the data module checks its problems by it."""
        self.answer_text = AnswerText(self.tokenizer, rollout.keep_special_tokens)
        self.stops = StopCheck(rollout.stop, self.tokenizer, self.answer_text) if rollout.stop else None
        self.ranks = Ranks()
        self.stopwatch = Stopwatch()
        """Wall time by phase since the start; callbacks read differences."""
        self.rollout: Rollout | None = None
        """The last rollout collected in this process; callbacks read it."""
        self.state: RolloutState | None = None
        """The rollout that is trained on; callbacks read it."""
        self.curves: dict[str, float] = {}
        """What ForkMonitor logged of the last rollout so far; callbacks read it."""
        self.grad_norm = torch.tensor(torch.nan)
        """Norm of the last update's gradient before clipping; callbacks read it."""
        self._forward_checked = False
        self._position = (0, 0)  # rollout, and number of its micro-batches that are done
        self._resumed: tuple[RolloutBatch, TokenState] | None = None

    # -- building ------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Loads the policy, and the reference if needed; builds the parts that depend on the seed and the ranks."""
        if not hasattr(self, "policy"):
            self.policy, reference = build(self.policy_config, self.init_from, reference=self.config.needs_reference)
            self._reference = [] if reference is None else [reference]
        seed = int(os.environ.get("PL_GLOBAL_SEED", "42"))
        self.generator = AnswerGenerator(
            self.sampler,
            self.tokenizer,
            eos_ids(self.policy_config, self.tokenizer),
            seed=seed,
            stops=self.stops,
            answer_text=self.answer_text,
            max_positions=getattr(text_settings(self.policy.model.config), "max_position_embeddings", None),
            embeddings=self.policy.embeddings,
            stopwatch=self.stopwatch,
        )
        self.weight_sync = WeightSyncCheck(self.rollout_config.weight_sync_tolerance, self.ranks)
        self.collector = Collector(self.generator, self.rollout_config, self.advantage, self.ranks)
        self.learner = Learner(
            self.config,
            temperature=self.rollout_config.temperature,
            length_limit=self.rollout_config.max_new_tokens,
            seed=seed,
            ranks=self.ranks,
            # a module that `load_from_checkpoint` makes has no trainer yet
            context=nullcontext if self._trainer is None else self.trainer.precision_plugin.forward_context,
            cost=Cost(self.policy.shape.pair_cost, self.policy.packing),
            stopwatch=self.stopwatch,
        )

    def configure_optimizers(self) -> Any:
        """The optimiser, and a scheduler that steps with every update."""
        return optimizers(self.optimizer, self.lr_scheduler, self.policy.parameters())

    @property
    def reference(self) -> Reference | None:
        """The reference model, or None. It is outside the module tree: checkpoints have it only if it is refreshed."""
        return self._reference[0] if self._reference else None

    # -- a training step -----------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Moves the reference to the policy's device."""
        if self.reference is not None:
            self.reference.to(self.policy.head_weight)

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """The first micro-batch of a rollout collects it; the first one of every update prepares the update."""
        if batch.micro_batch == 0:
            self._collect(batch)
        elif self._resumed is not None:
            self._begin(batch, *self._resumed)
        if batch.starts_update:
            self.learner.prepare_update(self.current, batch.update, self.policy, self.reference)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        """The micro-batch's share of the loss, and its metrics for the callbacks."""
        loss, metrics = self.learner.loss(self.current, batch.micro_batch, self.policy)
        self._position = (batch.rollout + 1, 0) if batch.ends_rollout else (batch.rollout, batch.micro_batch + 1)
        return {"loss": loss, "metrics": metrics}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by global norm with torch's own function, which supports sharded parameters, and keeps the norm."""
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        bound = gradient_clip_val if gradient_clip_val and gradient_clip_algorithm != "value" else torch.inf
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), bound).detach()

    def _collect(self, batch: PromptBatch) -> None:
        """Samples and verifies answers, computes advantages, and plans the micro-batches."""
        self._refresh_reference(batch.rollout)
        difference = self._sync()
        with self.trainer.precision_plugin.forward_context():
            sampled = self.collector.sample(batch)
        penalty = None
        if self.reference is not None and self.config.kl_in_reward:
            penalty = self.learner.kl_penalty(
                sampled.batch.to(self.device),
                self.policy,
                self.reference,
                rollout=batch.rollout,
                parts=batch.updates * batch.micro_batches,
            )
        self.rollout = self.collector.finish(sampled, penalty)
        self.sampler.sleep()
        if difference is not None:
            self.rollout.metrics["rollout/weight_sync_diff"] = difference
        self._begin(batch, self.rollout.batch, None)

    def _begin(self, batch: PromptBatch, sampled: RolloutBatch, tokens: TokenState | None) -> None:
        """Plans the micro-batches of a rollout; `tokens` is their state from a checkpoint inside it, if any."""
        self._resumed = None
        self.state = self.learner.begin(
            sampled.to(self.device),
            rollout=batch.rollout,
            updates=batch.updates,
            micro_batches=batch.micro_batches,
            tokens=None if tokens is None else tokens.to(self.device),
        )

    def _sync(self) -> float | None:
        """Syncs the policy's weights to the sampler and checks them; returns the largest difference, in nats."""
        with self.stopwatch.phase("sync"), self.trainer.precision_plugin.forward_context():
            self._check_forward()
            return self.weight_sync.sync(self.sampler, self.policy)

    def _check_forward(self) -> None:
        """Checks once that policy and reference compute what their models compute; it may switch packing off."""
        if not self._forward_checked:
            for policy in (self.policy, *(reference.policy for reference in self._reference)):
                forward_check(policy, self.ranks.maximum)
            self.learner.cost = Cost(self.policy.shape.pair_cost, self.policy.packing)
        self._forward_checked = True

    def _refresh_reference(self, rollout: int) -> None:
        """Copies the policy's weights to the reference every `kl.refresh_every_rollouts` rollouts."""
        every = self.config.kl.refresh_every_rollouts
        if self.reference is not None and every and rollout and rollout % every == 0:
            self.reference.copy_from(self.policy)

    @property
    def current(self) -> RolloutState:
        """The rollout that is trained on.

        Raises:
            RuntimeError: none has been collected.
        """
        if self.state is None:
            raise RuntimeError("a micro-batch came before its rollout was collected")
        return self.state

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Syncs the present weights to the sampler."""
        self._sync()

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self) -> None:
        """Lets the sampler free its memory until the next rollout."""
        self.sampler.sleep()

    def teardown(self, stage: str) -> None:
        """Closes the sampler."""
        self.sampler.close()

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> Any:
        """Answers to the batch's problems, with verdicts."""
        sampling = batch.spec.sampling
        return self.generator.answer(
            batch.problems,
            [0] * len(batch.problems),
            EVALUATION,
            answers=sampling.answers,
            max_new_tokens=batch.spec.max_new_tokens or self.rollout_config.max_new_tokens,
            temperature=sampling.temperature,
            template=batch.template,
            verifier=batch.verifier,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=batch.spec.seed,
        )

    test_step = predict_step = validation_step

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the tensors of all ranks if the checkpoint lies inside a rollout; at a rollout's end there are none."""
        rollout, done = self._position
        mine = {"batch": self.current.batch.state_dict(), "tokens": self.current.tokens.state_dict()} if done else {}
        checkpoint["forklight"] = {"rollout": rollout, "micro_batch": done, "ranks": self.ranks.gather(mine)}
        checkpoint["forklight"]["low_since"] = self.learner.low_since
        if self.reference is not None and self.config.kl.refresh_every_rollouts:
            checkpoint["forklight"]["reference"] = self.reference.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores this rank's part of a rollout in progress."""
        saved = checkpoint["forklight"]
        self._position = (saved["rollout"], saved["micro_batch"])
        self.learner.low_since = saved["low_since"]
        if saved["micro_batch"]:
            if len(saved["ranks"]) != self.ranks.size:
                raise ValueError(
                    f"the checkpoint lies inside a rollout of {len(saved['ranks'])} ranks and cannot go on with "
                    f"{self.ranks.size}; resume from one at a rollout boundary"
                )
            mine = saved["ranks"][self.ranks.rank]
            self._resumed = RolloutBatch(**mine["batch"]), TokenState(**mine["tokens"])
        if "reference" in saved and self.reference is not None:
            self.reference.load_state_dict(saved["reference"])
