"""megatron-core's linear layer on a CPU, with our products."""

import torch
from megatron.core import tensor_parallel

from megatron_chimed.engine import engine_settings
from megatron_chimed.model.linear import CpuProducts
from tests.unit.engine.world import one_rank


class Linear(CpuProducts, tensor_parallel.ColumnParallelLinear):
    """As our layers are made of it."""


def test_a_bias_does_not_vanish():
    """The fast product has none: with a bias, megatron-core's own is taken."""
    with one_rank() as ranks:
        settings = engine_settings(
            ranks.layout, hidden_size=8, precision="fp32", fused_weight_gradients=True
        )
        layer = Linear(
            8,
            6,
            config=settings,
            init_method=lambda w: None,
            bias=True,
            tp_group=ranks.tensor_group,
        )
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
        x = torch.randn(3, 2, 8)
        with torch.no_grad():
            found, _ = layer(x)
        torch.testing.assert_close(found, x @ layer.weight.t() + layer.bias)
        assert not torch.allclose(found, x @ layer.weight.t(), atol=1e-2)
