"""FusedAdam against torch's AdamW and against the paper's formula in float64."""

import copy
import math

import pytest
import torch

from megatron_chimed.kernels import FusedAdam

SHAPES = ((7, 5), (64,), (3, 1, 2), (1,))
BETAS, EPS = (0.9, 0.95), 1e-8


def make_parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def make_groups(parameters):
    """Matrices decay, vectors do not, each at a rate of its own."""
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() == 1]
    return [
        {"params": matrices, "weight_decay": 0.1, "lr": 1e-2},
        {"params": vectors, "weight_decay": 0.0, "lr": 3e-3},
    ]


def set_gradients(parameters, step):
    """Gradients of very different sizes, zeros among them."""
    generator = torch.Generator().manual_seed(step)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator) * 10.0 ** (index - 2)
        parameter.grad = torch.where(gradient.abs() < 1e-3, 0.0, gradient)


def test_ten_steps_equal_torch_adamw():
    ours, theirs = make_parameters(), make_parameters()
    fused = FusedAdam(make_groups(ours), betas=BETAS, eps=EPS)
    reference = torch.optim.AdamW(make_groups(theirs), betas=BETAS, eps=EPS, foreach=False)
    for step in range(1, 11):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        fused.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        for name in ("exp_avg", "exp_avg_sq"):
            # One fused multiply-add more or less: a few units in the last place.
            torch.testing.assert_close(
                fused.state[a][name], reference.state[b][name], rtol=3e-6, atol=1e-9
            )


def paper_adamw(weights, gradients, *, lr, weight_decay):
    """Algorithm 2 of arXiv 1711.05101 in float64, step by step."""
    weights = weights.double().clone()
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        first = BETAS[0] * first + (1 - BETAS[0]) * g
        second = BETAS[1] * second + (1 - BETAS[1]) * g * g
        first_hat, second_hat = first / (1 - BETAS[0] ** t), second / (1 - BETAS[1] ** t)
        decayed = lr * weight_decay * weights
        weights = weights - lr * first_hat / (second_hat.sqrt() + EPS) - decayed
    return weights


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_ten_steps_equal_the_paper_in_float64(weight_decay):
    parameters = make_parameters(seed=3)
    before = [p.detach().clone() for p in parameters]
    adam = FusedAdam(parameters, lr=1e-2, betas=BETAS, eps=EPS, weight_decay=weight_decay)
    history = [[] for _ in parameters]
    for step in range(1, 11):
        set_gradients(parameters, step)
        for kept, parameter in zip(history, parameters, strict=True):
            kept.append(parameter.grad.clone())
        adam.step()
    for parameter, start, gradients in zip(parameters, before, history, strict=True):
        expected = paper_adamw(start, gradients, lr=1e-2, weight_decay=weight_decay)
        error = (parameter.double() - expected).norm() / expected.norm()
        assert error < 1e-6


def test_first_step_moves_by_the_rate():
    """m/sqrt(v) is the gradient's sign after bias correction: the step count is 1, not 0 or 2."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    adam = FusedAdam([parameter], lr=0.5, betas=BETAS)
    parameter.grad = torch.tensor([2.0, -3.0, 1e-3])
    adam.step()
    assert parameter.tolist() == pytest.approx([-0.5, 0.5, -0.5], rel=1e-4)


def test_step_count_is_in_the_group_and_state_is_the_two_moments():
    parameters = make_parameters()
    adam = FusedAdam(make_groups(parameters))
    assert [group["step"] for group in adam.param_groups] == [0, 0]
    for step in range(3):
        set_gradients(parameters, step)
        adam.step()
    assert [group["step"] for group in adam.param_groups] == [3, 3]
    for parameter in parameters:
        assert set(adam.state[parameter]) == {"exp_avg", "exp_avg_sq"}
        for moment in adam.state[parameter].values():
            assert moment.dtype == torch.float32
            assert moment.shape == parameter.shape and moment.is_contiguous()


def test_a_given_step_count_is_kept():
    """What a checkpoint puts there decides the bias correction of the next step."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    adam = FusedAdam([{"params": [parameter], "step": 9}], lr=1.0, betas=BETAS, eps=0.0)
    parameter.grad = torch.ones(1)
    adam.step()
    assert adam.param_groups[0]["step"] == 10
    first = (1 - BETAS[0]) / (1 - BETAS[0] ** 10)
    second = (1 - BETAS[1]) / (1 - BETAS[1] ** 10)
    assert parameter.item() == pytest.approx(-first / math.sqrt(second), rel=1e-6)


def test_initialize_state_changes_no_parameter():
    parameters = make_parameters()
    before = [p.detach().clone() for p in parameters]
    set_gradients(parameters, 1)
    adam = FusedAdam(make_groups(parameters), lr=1.0)
    adam.initialize_state()
    assert [group["step"] for group in adam.param_groups] == [0, 0]
    for parameter, start in zip(parameters, before, strict=True):
        assert torch.equal(parameter, start)
        assert set(adam.state[parameter]) == {"exp_avg", "exp_avg_sq"}
        assert not any(moment.any() for moment in adam.state[parameter].values())


def test_initialize_state_keeps_moments_that_are_there():
    parameters = make_parameters()
    adam = FusedAdam(parameters)
    set_gradients(parameters, 1)
    adam.step()
    before = {p: adam.state[p]["exp_avg"].clone() for p in parameters}
    adam.initialize_state()
    assert all(torch.equal(adam.state[p]["exp_avg"], before[p]) for p in parameters)


def test_parameters_without_gradient_are_untouched():
    used, unused = make_parameters()[:2]
    before = unused.detach().clone()
    adam = FusedAdam([used, unused], lr=0.1, weight_decay=0.5)
    used.grad = torch.ones_like(used)
    adam.step()
    assert torch.equal(unused, before)
    assert unused not in adam.state
    assert not torch.equal(used, make_parameters()[0])


def test_empty_parameters_and_shards_of_a_buffer_are_taken():
    """A distributed optimizer hands over slices of one flat buffer, empty ones too."""
    buffer = torch.zeros(10)
    shard, empty = buffer[3:7], buffer[4:4]
    shard.grad, empty.grad = torch.ones(4), torch.ones(0)
    adam = FusedAdam([shard, empty], lr=0.5)
    adam.step()
    assert buffer.tolist() == pytest.approx([0, 0, 0, -0.5, -0.5, -0.5, -0.5, 0, 0, 0])


def test_half_precision_parameters_are_our_own_bug():
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    with pytest.raises(AssertionError, match="fp32, not torch.bfloat16"):
        FusedAdam([parameter]).initialize_state()


def test_state_dict_round_trip_goes_on_alike():
    parameters, copies = make_parameters(), make_parameters()
    adam, other = FusedAdam(make_groups(parameters)), FusedAdam(make_groups(copies))
    set_gradients(parameters, 1)
    adam.step()
    with torch.no_grad():
        for mine, theirs in zip(copies, parameters, strict=True):
            mine.copy_(theirs)
    other.load_state_dict(copy.deepcopy(adam.state_dict()))  # torch's shares the tensors
    for values, optimizer in ((parameters, adam), (copies, other)):
        set_gradients(values, 2)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, copies, strict=True))
