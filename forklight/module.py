"""The LightningModule: which part of the algorithm runs in which hook. No mathematics here."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from forklight.algo.advantages import Advantage, AdvantageName
from forklight.algo.correction import Correction
from forklight.algo.kl import KLTerm
from forklight.algo.objective import Objective
from forklight.algo.objectives import Dapo
from forklight.algo.plan import Cost
from forklight.algo.selection import ForkSelection
from forklight.algo.terms import Loss, OldLogpFrom
from forklight.algo.types import Experience
from forklight.data.visits import EvalBatch, PromptBatch
from forklight.models.loading import PolicyConfig, eos_ids, load_settings, load_tokenizer
from forklight.models.policy import Policy
from forklight.models.reference import Reference, check_reference
from forklight.rollout.answers import Answerer, Group
from forklight.rollout.collect import Collector, Rollout, RolloutSpec
from forklight.rollout.hf import HFSampler
from forklight.rollout.learn import Learner
from forklight.rollout.lesson import Lesson
from forklight.rollout.probe import ArrivalProbe
from forklight.rollout.ranks import Ranks
from forklight.rollout.sampler import Sampler

EVALUATION = -1
"""Stands for the rollout's number in the noise of evaluations, so that every checkpoint sees the same draws."""


class ForkGRPOModule(LightningModule):
    """GRPO on forking tokens: only the answer tokens that the selection keeps carry policy gradient.

    Args:
        policy: the model that is trained.
        rollout: how answers are sampled and filtered.
        sampler: the engine that samples: `HFSampler`, with the policy's own model, if not given; or `VLLMSampler`.
        selection: which tokens carry gradient; `preset` stands for all keys at once: forklight, paper, paper-code, trl,
            all-tokens, random-20 or bottom-80; keys beside or after it override it.
        objective: the policy's loss; `Dapo` if not given.
        advantage: how rewards become advantages: `grpo`, `dr_grpo` (no standard deviation), `batch_std`, `rloo`,
            `reinforce_pp`, `reinforce_pp_baseline`, or a `class_path` of your own.
        kl: the KL to a reference model, which is loaded only if something compares with it.
        entropy_coef: weight of the entropy bonus.
        correction: importance weights against a mismatch of sampler and trainer.
        old_logp_from: whose log-probabilities the ratio compares with: the trainer's, of the policy that starts the
            rollout's updates, or the sampler's, as it drew the tokens.
        optimizer: made for the policy's parameters.
        lr_scheduler: stepped after every update; constant if not given.
    """

    def __init__(
        self,
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008  a frozen value
        rollout: RolloutSpec = RolloutSpec(),  # noqa: B008
        sampler: Sampler | None = None,
        selection: ForkSelection = ForkSelection(),  # noqa: B008
        objective: Objective | None = None,
        advantage: AdvantageName | Advantage = "grpo",
        kl: KLTerm = KLTerm(),  # noqa: B008
        entropy_coef: float = 0.0,
        correction: Correction = Correction(),  # noqa: B008
        old_logp_from: OldLogpFrom = "trainer",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.loss = Loss(selection, objective or Dapo(), kl, entropy_coef, correction, old_logp_from)
        self.policy_config = policy
        self.rollout_spec = rollout
        self.sampler = sampler or HFSampler()
        self.advantage = advantage
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        if self.loss.needs_reference:
            check_reference(policy)
        load_settings(policy)  # a model that cannot be trained is refused before anything is written
        self.tokenizer = load_tokenizer(policy)
        self.ranks = Ranks()
        self.rollout: Rollout | None = None
        """The last rollout collected in this process; callbacks read it."""
        self.lesson: Lesson | None = None
        self.sums: dict[str, Tensor] = {}
        """Sums of the update in progress, over its visits on this rank."""
        self.seconds = dict.fromkeys(("sync", "statistics", "forward", "backward", "optimizer"), 0.0)
        """Wall time by part since the start; callbacks read differences."""
        self._position = (0, 0)  # rollout and number of its visits that are done
        self._resumed: Experience | None = None
        self._uids: dict[int, str] = {}

    # -- building ------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Loads the policy, and the reference if anything compares with it; wires the rest to seed and ranks."""
        if not hasattr(self, "policy"):
            self.policy = Policy(self.policy_config)
            self._reference = [Reference(self.policy_config)] if self.loss.needs_reference else []
        seed = int(os.environ.get("PL_GLOBAL_SEED", "42"))
        self.answerer = Answerer(
            self.sampler,
            self.tokenizer,
            eos_ids(self.policy_config, self.tokenizer),
            seed=seed,
            max_positions=getattr(self.policy.model.config, "max_position_embeddings", None),
        )
        self.probe = ArrivalProbe(self.rollout_spec.probe_tolerance, self.ranks)
        self.collector = Collector(self.answerer, self.rollout_spec, self.advantage, self.ranks)
        self.learner = Learner(
            self.loss,
            temperature=self.rollout_spec.temperature,
            length_limit=self.rollout_spec.max_new_tokens,
            seed=seed,
            ranks=self.ranks,
            context=self.trainer.precision_plugin.forward_context,
            cost=Cost(self.policy.shape.pair_cost, self.policy.packing),
        )

    def configure_optimizers(self) -> Any:
        """The optimiser, and a scheduler that steps with every update."""
        optimizer = self.optimizer(self.policy.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    @property
    def reference(self) -> Reference | None:
        """What KL terms compare with, or None. Outside of the module tree: only a refreshed one is in checkpoints."""
        return self._reference[0] if self._reference else None

    # -- a training step -----------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Moves the reference to where the policy is."""
        if self.reference is not None:
            self.reference.to(self.policy.head_weight)

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """Visit 0 collects experience; the first visit of every update prepares it."""
        if batch.visit == 0:
            self._refresh_reference(batch.rollout)
            arrival = self._sync()
            with self.trainer.precision_plugin.forward_context():
                self.rollout = self.collector.collect(batch, self._penalty(batch))
            self.sampler.pause()
            self.rollout.metrics.update(arrival)
            self._uids = self.collector.uids
            self._begin(self.rollout.experience, batch)
        elif self._resumed is not None:
            self._begin(self._resumed, batch)
        if batch.starts_update:
            self.sums = {}
            started = time.perf_counter()
            self.learner.prepare_update(self._lesson, batch.update, self.policy, self.reference)
            self.seconds["statistics"] += time.perf_counter() - started

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """The visit's share of the loss."""
        started = time.perf_counter()
        loss, sums = self.learner.loss(self._lesson, batch.visit, self.policy)
        for name, value in sums.items():
            combine = torch.maximum if name.endswith("_max") else torch.add
            self.sums[name] = combine(self.sums[name], value) if name in self.sums else value
        self._position = (batch.rollout, batch.visit + 1) if not batch.ends_rollout else (batch.rollout + 1, 0)
        self.seconds["forward"] += time.perf_counter() - started
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward, timed."""
        started = time.perf_counter()
        super().backward(loss, *args, **kwargs)
        self.seconds["backward"] += time.perf_counter() - started

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by global norm with torch's own function, which knows sharded parameters, and keeps the norm."""
        started = time.perf_counter()
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        bound = gradient_clip_val if gradient_clip_val and gradient_clip_algorithm != "value" else torch.inf
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), bound)
        self.sums["grad_norm"] = norm.detach()
        self.seconds["optimizer"] += time.perf_counter() - started

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser's step, timed without the closure that Lightning runs inside of it."""
        inside = ("forward", "backward", "optimizer")
        before = sum(self.seconds[part] for part in inside)
        started = time.perf_counter()
        super().optimizer_step(*args, **kwargs)
        elapsed = time.perf_counter() - started
        self.seconds["optimizer"] += elapsed - (sum(self.seconds[part] for part in inside) - before)

    def _sync(self) -> dict[str, float]:
        """Hands the weights to the sampler, and sees that they arrive."""
        started = time.perf_counter()
        with self.trainer.precision_plugin.forward_context():
            largest = self.probe.sync(self.sampler, self.policy)
        self.seconds["sync"] += time.perf_counter() - started
        return {} if largest is None else {"rollout/probe": largest}

    def _begin(self, experience: Experience, batch: PromptBatch) -> None:
        self._resumed = None
        self.lesson = self.learner.begin(
            experience.to(self.device),
            rollout=batch.rollout,
            updates=batch.updates,
            micro_batches=batch.micro_batches,
            uids=self._uids,
        )

    def _penalty(self, batch: PromptBatch) -> Callable[[Experience], Tensor] | None:
        """What the KL takes from the rewards, if that is its place."""
        reference = self.reference
        if reference is None or not self.loss.kl_in_reward:
            return None
        visits = batch.updates * batch.micro_batches

        @torch.no_grad()
        def penalty(experience: Experience) -> Tensor:
            x = experience.to(self.device)
            taken = self.learner.statistics.penalty(
                x, self.policy, reference, rollout=batch.rollout, uids=self.collector.uids, passes=visits
            )
            return taken.to(experience.rewards.device)

        return penalty

    def _refresh_reference(self, rollout: int) -> None:
        """Every so many rollouts the policy becomes its own reference."""
        every = self.loss.kl.refresh_every_rollouts
        if self.reference is not None and every and rollout and rollout % every == 0:
            self.reference.copy_from(self.policy)

    @property
    def _lesson(self) -> Lesson:
        assert self.lesson is not None, "a visit before its rollout"
        return self.lesson

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """The sampler answers with the present weights."""
        self._sync()

    def on_test_start(self) -> None:
        """The sampler answers with the present weights."""
        self._sync()

    def on_predict_start(self) -> None:
        """The sampler answers with the present weights."""
        self._sync()

    def on_validation_end(self) -> None:
        """No more answers before the next rollout."""
        self.sampler.pause()

    def teardown(self, stage: str) -> None:
        """Ends the sampler's engine."""
        self.sampler.close()

    def _answer(self, batch: EvalBatch) -> list[Group]:
        sampling = batch.spec.sampling
        return self.answerer.answer(
            batch.problems,
            [0] * len(batch.problems),
            EVALUATION,
            answers=sampling.answers,
            max_new_tokens=batch.spec.max_new_tokens or self.rollout_spec.max_new_tokens,
            temperature=sampling.temperature,
            template=batch.template,
            verifier=batch.verifier,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=batch.spec.seed,
        )

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> Any:
        """Answers to the batch's problems, with verdicts."""
        return self._answer(batch)

    def test_step(self, batch: EvalBatch, batch_idx: int) -> Any:
        """Answers to the batch's problems, with verdicts."""
        return self._answer(batch)

    def predict_step(self, batch: EvalBatch, batch_idx: int) -> Any:
        """Answers to the batch's problems, with verdicts."""
        return self._answer(batch)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inside a rollout its tensors, of all ranks, go into the checkpoint; at its end there is nothing to keep."""
        rollout, visit = self._position
        state = self._lesson.experience.state_dict() if visit else {}
        checkpoint["forklight"] = {
            "rollout": rollout,
            "visit": visit,
            "experience": self.ranks.gather(state),
            "uids": self._uids if visit else {},
        }
        if self.reference is not None and self.loss.kl.refresh_every_rollouts:
            checkpoint["forklight"]["reference"] = self.reference.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes this rank's part of a rollout in progress."""
        saved = checkpoint["forklight"]
        self._position = (saved["rollout"], saved["visit"])
        if len(saved["experience"]) != self.ranks.size and saved["visit"]:
            raise ValueError(
                f"the checkpoint lies inside a rollout of {len(saved['experience'])} ranks and cannot go on with "
                f"{self.ranks.size}; resume from one at a rollout boundary"
            )
        if saved["visit"]:
            self._resumed = Experience(**saved["experience"][self.ranks.rank])
            self._uids = saved["uids"]
        if "reference" in saved and self.reference is not None:
            self.reference.load_state_dict(saved["reference"])
