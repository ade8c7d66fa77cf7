"""Model FLOPs of a LLaMA-shaped decoder, the numerator of every reported TFLOP/s figure."""

FLOPS_FORMULA = (
    "6*(P - V*h) - 2*F + 6*L*a*S per token (a: heads x head size, F weights frozen, causal "
    "attention halved, recompute not counted)"
)


def model_flops_per_token(
    *,
    num_parameters: int,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    sequence_length: int,
    attention_width: int | None = None,
    num_frozen: int = 0,
) -> int:
    """FLOPs of forward and backward pass per token of a full causal sequence.

    `6*(P - V*h) - 2*F + 6*L*a*S`. Each weight in a matrix product costs one multiply-add forward
    and two backward, for the gradients of its input and of itself; a frozen one has only the
    first. The embedding (V*h) is only looked up. Scores and weighted values cost 4*a*S per layer
    forward for the full square, half of that under a causal mask, and three times that with the
    backward pass. Recomputation is not counted: these are model FLOPs, comparable across recompute
    settings. Conventions that count the full square give 6*L*a*S more (6 % for 13B at 4096), so
    name the formula with every figure.

    Args:
        num_parameters: P, all of them: input embedding, output head and adapters too; an embedding
            that is the head as well counts twice, since it is looked up and multiplied.
        vocab_size: V, rows of the embedding as computed (padded).
        hidden_size: h.
        num_layers: L.
        sequence_length: S, tokens over which attention runs.
        attention_width: a, heads x head size; None: the hidden size. Grouped-query attention
            changes P only.
        num_frozen: F, frozen weights in matrix products that gradients still pass through.

    Returns:
        FLOPs per token (not GFLOPs).

    Source: Narayanan et al. 2021 (arXiv 2104.04473) appendix, with its attention term halved.
    """
    matmul_weights = num_parameters - vocab_size * hidden_size
    width = hidden_size if attention_width is None else attention_width
    return 6 * matmul_weights - 2 * num_frozen + 6 * num_layers * width * sequence_length
