"""SFT on packed conversations: losses and gradients of every layout are those of transformers."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from tests.distributed import jobs, ranked
from tests.distributed.test_layouts import assert_gradients_agree
from tests.distributed.test_packing import PACKS, Packed, sequence
from tests.tiers import full_but

OPTIONS = {
    "samples": Packed(),
    "training": {"micro_batch_size": 1, "global_batch_size": len(PACKS)},
    "init": False,
}
# name -> (parallel section, data-parallel size)
LAYOUTS = {
    "1 rank": (jobs.ONE, 1),
    "TP2": (jobs.TP2, 1),
    "TP2+SP": (jobs.TP2_SP, 1),
    "PP2": (jobs.PP2, 1),
    "DP2": (jobs.ONE, 2),
    "DP2, distributed optimizer": (jobs.DP2_DISTRIBUTED, 2),
    "TP2xPP2": ({**jobs.TP2, **jobs.PP2}, 1),
}


@pytest.fixture(scope="module")
def reference(gloo_pool):
    """The loss and its gradients, each conversation alone in plain torch.

    The mean is over all supervised tokens of the global batch: ranks and micro-batches hold
    different numbers of them, so that a mean of means is another number.
    """
    (weights,) = gloo_pool.run(ranked.whole_weights, 1, parallel=jobs.ONE, **OPTIONS)
    model = ranked.reference_model(LlamaForCausalLM, weights)
    packs, number = [], 0
    for lengths in PACKS:
        losses = []
        for length in lengths:
            tokens, is_target = map(torch.from_numpy, sequence(number, length))
            table = F.log_softmax(model(tokens[None]).logits[0], dim=-1)
            losses += [-table[i - 1, tokens[i]] for i in range(1, length) if is_target[i]]
            number += 1
        packs.append(torch.stack(losses))
    mean = torch.cat(packs).mean()
    of_means = torch.stack([losses.mean() for losses in packs]).mean()
    assert abs(of_means - mean) > 1e-4 * mean, "a mean of means would not be seen"
    mean.backward()
    return mean.item(), {name: weight.grad.numpy() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", full_but(["1 rank", "TP2+SP", "DP2", "TP2xPP2"], LAYOUTS))
def test_loss_and_gradients_are_those_of_transformers(gloo_pool, reference, name):
    parallel, data_parallel_size = LAYOUTS[name]
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel, data_parallel_size),
        parallel=parallel,
        steps=1,
        look_at=(1,),
        **OPTIONS,
    )
    loss, gradients = reference
    for result in results:
        assert result["losses"][0] == pytest.approx(loss, rel=1e-5)
    found = jobs.assemble([result["gradients"][1] for result in results])
    assert_gradients_agree(found, gradients)
