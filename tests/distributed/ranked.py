"""Packs of ranked answers, and what the papers' formulas make of them, an answer at a time.

The references run transformers' models on each answer alone, in plain torch: nothing of ours but
the weights.
"""

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from megatron_chimed.model import initialize_weights, weight_shards
from tests.distributed import jobs
from tests.distributed.test_packing import lay

# Packs of groups: prompt length, answer lengths, ranks, margins. Pairs either way round, a ranking
# of four with a tie, margins that contradict the ranks, a group alone with much padding.
PACKS = (
    ((3, (5, 4), (0, 1), None), (2, (4, 7), (1, 0), (0.5, 2.0))),
    ((2, (3, 5, 4, 6), (2, 0, 1, 1), (0.0, 1.5, 0.25, 2.5)),),
    ((1, (9, 2), (0, 1), None), (4, (3, 1), (0, 1), (1.0, 0.0)), (1, (1, 2), (1, 0), None)),
    ((6, (2, 3), (0, 1), (3.0, 1.0)),),
)


def groups_of(pack):
    """[(prompt ids, [answer ids], ranks, margins)] of a pack."""
    generator = np.random.default_rng(pack)
    found = []
    for prompt, answers, ranks, margins in PACKS[pack]:
        ids = [generator.integers(0, jobs.VOCAB_SIZE, n) for n in (prompt, *answers)]
        found.append((ids[0], ids[1:], ranks, margins or (0.0,) * len(ranks)))
    return found


class Ranked:
    """The packs, over and over, as `PreferenceDataset` lays them out."""

    samples_per_epoch = len(PACKS)

    def __getitem__(self, index):
        candidates = [
            (number, prompt, ids, rank, margin)
            for number, (prompt, answers, *rest) in enumerate(groups_of(index % len(PACKS)))
            for ids, rank, margin in zip(answers, *rest, strict=True)
        ]
        row = lay(
            [
                (np.concatenate([prompt, ids]), np.arange(len(prompt) + len(ids)) >= len(prompt))
                for _, prompt, ids, _, _ in candidates
            ]
        )
        row["group_ids"] = np.full(jobs.SEQ_LENGTH, -1, np.int32)
        row["ranks"] = np.full(jobs.SEQ_LENGTH, -1, np.int32)
        row["margins"] = np.zeros(jobs.SEQ_LENGTH, np.float32)
        row["prompt_lengths"] = np.zeros(jobs.SEQ_LENGTH, np.int32)
        end = -1
        for number, prompt, ids, rank, margin in candidates:
            begin, end = end + 1, end + len(prompt) + len(ids)
            row["group_ids"][begin : end + 1] = number
            row["ranks"][end], row["margins"][end] = rank, margin
            row["prompt_lengths"][end] = len(prompt)
        return row

    def locate(self, index):
        return f"pack {index}"


def all_groups():
    """The groups of all packs."""
    return [group for pack in range(len(PACKS)) for group in groups_of(pack)]


def whole_weights(rank, world_size, store_path, *, seed=1234, **options):
    """The weights of a job by name."""
    job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        for chunk in job.chunks:
            initialize_weights(chunk, seed)
        return {shard.key: shard.tensor.clone() for shard in weight_shards(job.chunks)}
    finally:
        jobs.engine.leave()


def reference_model(kind, weights):
    """transformers' model with these weights."""
    ours = jobs.MODEL
    config = LlamaConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_attention_heads,
        num_key_value_heads=ours.num_key_value_heads,
        intermediate_size=ours.ffn_hidden_size,
        max_position_embeddings=ours.max_position_embeddings,
        rms_norm_eps=ours.rms_norm_eps,
        tie_word_embeddings=False,
        num_labels=1,
        attn_implementation="eager",
    )
    model = kind(config)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def reward_loss(weights):
    """Llama 2 eq. 2 (margin) averaged over the pairs of a group as InstructGPT eq. 1 says.

    Returns:
        The mean over groups, and the gradients by name.
    """
    model = reference_model(LlamaForSequenceClassification, weights)
    losses = []
    for prompt, answers, ranks, margins in all_groups():
        scores = [model(torch.tensor([[*prompt, *ids]])).logits[0, 0] for ids in answers]
        terms = [
            -torch.log(torch.sigmoid(scores[w] - scores[l] - max(margins[w] - margins[l], 0.0)))
            for w in range(len(answers))
            for l in range(len(answers))  # noqa: E741 - winner and loser, as in the papers
            if ranks[w] < ranks[l]
        ]
        losses.append(sum(terms) / len(terms))
    return _mean_and_gradients(losses, model)


def log_prob(model, prompt, answer):
    """log p(answer | prompt), each token of the answer but none of the prompt."""
    ids = torch.tensor([[*prompt, *answer]])
    table = F.log_softmax(model(ids).logits[0, :-1], dim=-1)
    return sum(table[i - 1, ids[0, i]] for i in range(len(prompt), ids.shape[1]))


def log_probs(weights):
    """Of all answers, in the order of the packs."""
    model = reference_model(LlamaForCausalLM, weights)
    with torch.no_grad():
        return [
            log_prob(model, prompt, ids).item()
            for prompt, answers, _, _ in all_groups()
            for ids in answers
        ]


def dpo_loss(weights, reference, *, beta, kind="sigmoid", smoothing=0.0):
    """Rafailov et al. eq. 7, smoothed as its authors' note on conservative DPO; Azar et al. eq. 17.

    Returns:
        The mean over groups of the mean over pairs, and the gradients by name.
    """
    model = reference_model(LlamaForCausalLM, weights)
    with torch.no_grad():
        frozen = reference_model(LlamaForCausalLM, reference)
    losses = []
    for prompt, answers, ranks, _ in all_groups():
        ratios = [
            log_prob(model, prompt, ids) - log_prob(frozen, prompt, ids).detach() for ids in answers
        ]
        terms = []
        for w in range(len(answers)):
            for l in range(len(answers)):  # noqa: E741
                if ranks[w] < ranks[l]:
                    h = ratios[w] - ratios[l]
                    good, bad = torch.sigmoid(beta * h), torch.sigmoid(-beta * h)
                    smooth = -(1 - smoothing) * torch.log(good) - smoothing * torch.log(bad)
                    terms.append(smooth if kind == "sigmoid" else (h - 1 / (2 * beta)) ** 2)
        losses.append(sum(terms) / len(terms))
    return _mean_and_gradients(losses, model)


def _mean_and_gradients(losses, model):
    mean = sum(losses) / len(losses)
    mean.backward()
    gradients = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    return mean.item(), gradients


def merge(weights, scale):
    """W + scale B A of adapters A and B, and what is no adapter as it is."""
    merged = {key: tensor.clone() for key, tensor in weights.items() if "lora" not in key}
    for key in weights:
        if key.endswith("lora_A.weight"):
            matrix = key.removesuffix(".lora_A.weight")
            a, b = weights[key], weights[f"{matrix}.lora_B.weight"]
            merged[f"{matrix}.weight"] += scale * b @ a
    return merged


def adapter_gradients(weights, gradients, scale):
    """dA = scale B^T dW and dB = scale dW A^T, and the head's as it is."""
    found = {key: array for key, array in gradients.items() if key == "score.weight"}
    for key in weights:
        matrix = key.partition(".lora_")[0]
        if matrix == key:
            continue
        dw = torch.from_numpy(gradients[f"{matrix}.weight"])
        a, b = weights[f"{matrix}.lora_A.weight"], weights[f"{matrix}.lora_B.weight"]
        found[key] = scale * (b.t() @ dw if "lora_A" in key else dw @ a.t()).numpy()
    return found
