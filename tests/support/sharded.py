"""A policy in shards on two ranks, whose weights go to an engine on each; run by torchrun."""

import sys

import torch
import torch.distributed as dist
from tiny import EOS, load
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from forklight.distributed import Ranks
from forklight.sampling import VLLMSampler
from forklight.sampling.base import SamplingParams
from forklight.sampling.weight_check import WeightSyncCheck


def main(folder):
    dist.init_process_group("gloo")
    ranks, policy = Ranks(), load(folder, "float32")
    for layer in policy.model.model.layers:
        fully_shard(layer)
    fully_shard(policy)
    assert all(isinstance(weight, DTensor) for weight in policy.parameters())
    probe, sampler = WeightSyncCheck(None, ranks), VLLMSampler(kv_cache_gb=0.1)
    answers = []
    for _ in range(2):
        assert probe.sync(sampler, policy) < 1e-4
        answers.append(sampler.sample([[5, 9], [7]], [1, 2], 4, SamplingParams(8, 1.0, (EOS,))))
        with torch.no_grad():
            for weight in policy.parameters():
                weight.mul_(1.1)
    assert answers[0] != answers[1]
    mine, others = ranks.gather([[answer.token_ids for answer in group] for call in answers for group in call])
    assert mine == others
    sampler.close()
    assert ranks.any(ranks.rank == 1)  # the trainer's group is still there
    dist.destroy_process_group()
    print("arrived")


if __name__ == "__main__":
    main(sys.argv[1])
