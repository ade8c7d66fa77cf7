"""A decoder-only transformer: embedding, layers, final norm, a head; whole or one chunk of it."""

from typing import cast

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import EngineSettings, ShardedLayer, ShardSpec, mark_tied
from megatron_chimed.kernels import AUTO, Kernels
from megatron_chimed.model.attention import AttentionContext
from megatron_chimed.model.kv_cache import Decode, Prefill
from megatron_chimed.model.layer import DecoderLayer
from megatron_chimed.model.loss import chunked_losses
from megatron_chimed.model.norm import RMSNorm
from megatron_chimed.model.parallel import (
    EMBEDDING_KEY,
    HEAD_KEY,
    VocabParallelEmbedding,
    VocabParallelHead,
)
from megatron_chimed.model.reward_head import RewardHead
from megatron_chimed.model.rope import RotaryEmbedding
from megatron_chimed.model.segments import Segments


class Transformer(torch.nn.Module):
    """Some layers of the model, with the embedding before the first and the head after the last.

    Args:
        config: Sizes and numerics.
        layers: Global indices of the layers of this chunk.
        settings: The job's engine settings.
        group: Tensor-parallel group.
        kernels: The ops, bound to a back end.
        vp_stage: Which of this rank's chunks it is; None when there is one.
    """

    # What megatron-core's schedules look for on a model.
    model_type = ModelType.encoder_or_decoder

    def __init__(
        self,
        config: ModelConfig,
        layers: range,
        *,
        settings: EngineSettings,
        group: dist.ProcessGroup,
        kernels: Kernels = AUTO,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.model_config, self.kernels = settings, config, kernels
        self.vp_stage = vp_stage
        self.layer_indices = layers
        self.pre_process = layers.start == 0
        self.post_process = layers.stop == config.num_layers
        padded = config.padded_vocab_size(group.size())

        self.embed_tokens = (
            VocabParallelEmbedding(config.known_vocab_size, padded, settings=settings, group=group)
            if self.pre_process
            else None
        )
        self.rope = RotaryEmbedding(config)
        # Keyed by the global index, so that a parameter has the same name on every layout.
        self.layers = torch.nn.ModuleDict(
            {
                str(i): DecoderLayer(config, i, settings=settings, group=group, kernels=kernels)
                for i in layers
            }
        )
        self.norm = (
            RMSNorm("norm", eps=config.rms_norm_eps, settings=settings, kernels=kernels)
            if self.post_process
            else None
        )
        self.lm_head = (
            VocabParallelHead(
                config.known_vocab_size,
                padded,
                settings=settings,
                group=group,
                key=EMBEDDING_KEY if config.has_tied_head else HEAD_KEY,
                shared=self._embedding() if config.has_tied_head else None,
            )
            if self.post_process and config.head == "lm"
            else None
        )
        self.score = (
            RewardHead(settings=settings, group=group)
            if self.post_process and config.head == "score"
            else None
        )
        self._input: torch.Tensor | None = None
        if self.share_embeddings_and_output_weights and (self.pre_process or self.post_process):
            mark_tied(
                self.shared_embedding_or_output_weight(),
                is_whole=self.pre_process and self.post_process,
                is_copy=not self.pre_process,
            )

    # The next two are megatron-core's names, which its reduction of gradients looks up.
    @property
    def share_embeddings_and_output_weights(self) -> bool:
        """Whether the embedding is the head too."""
        return self.model_config.has_tied_head

    def shared_embedding_or_output_weight(self) -> torch.nn.Parameter:
        """The embedding of a model with a tied head, on the first or the last chunk."""
        weight = self._embedding()
        if weight is not None:
            return weight
        assert self.lm_head is not None and self.lm_head.weight is not None, "a first or last chunk"
        return self.lm_head.weight

    def _embedding(self) -> torch.nn.Parameter | None:
        return None if self.embed_tokens is None else self.embed_tokens.weight

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers of this chunk, in order."""
        return [cast(DecoderLayer, layer) for layer in self.layers.values()]

    def set_input_tensor(self, tensors: list[torch.Tensor | None]) -> None:
        """Takes the hidden states [s(/t), b, h] that the previous stage sent."""
        (self._input,) = tensors

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        *,
        segment_ids: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cache: Prefill | Decode | None = None,
        ends: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs this chunk.

        Args:
            tokens: [b, s] int64; only the first chunk reads them.
            positions: [b, s] int64, the position of each token for RoPE.
            segment_ids: [b, s] int, equal within each packed sample, which sees no other; None: a
                row is one sample.
            mask: True where a query may see a key, [b, 1, s, keys]; None is causal.
            cache: How this pass uses a cache; a prefill has the logits that it wants, or none.
            ends: [b] index of the one token of each row whose logits are needed; None is all.
            labels: [b, s] int64: with `loss_chunk_tokens` and labels, losses take the place of
                logits.

        Returns:
            Hidden states [s(/t), b, h]; on the last chunk logits [s or 1, b, padded v/t] (of a
            prefill [wanted, 1, padded v/t], or still the hidden states), losses
            [b, s], or of a reward model scores [s, b] fp32.
        """
        hidden = self.embed_tokens(tokens) if self.embed_tokens is not None else self._input
        assert hidden is not None, "the input of a later chunk is set before it runs"
        cos, sin = self.rope(positions)  # [s*b, d/2]
        segments = None if segment_ids is None else Segments(segment_ids)
        context = AttentionContext(cos=cos, sin=sin, mask=mask, segments=segments, cache=cache)
        for layer in self.decoder_layers:
            hidden = self._run(layer, hidden, context)
        if self.norm is None:
            return hidden
        if isinstance(cache, Prefill):
            if cache.wanted is None:
                return hidden
            hidden = hidden[cache.wanted]
        if self.score is not None:
            return self.score(self.norm(hidden))
        if ends is not None:
            hidden = hidden[ends, torch.arange(len(ends), device=ends.device)].unsqueeze(0)
        normed = self.norm(hidden)
        assert self.lm_head is not None, "the last chunk has a head"
        if labels is not None and self.model_config.chunk_tokens:
            return chunked_losses(
                normed,
                labels,
                head=self.lm_head,
                chunk_tokens=self.model_config.chunk_tokens,
                kernels=self.kernels,
            )
        return self.lm_head(normed)

    def _run(
        self, layer: DecoderLayer, hidden: torch.Tensor, context: AttentionContext
    ) -> torch.Tensor:
        if self.model_config.recompute != "full" or not torch.is_grad_enabled():
            return layer(hidden, context)
        return tensor_parallel.checkpoint(lambda x: layer(x, context), False, hidden)

    def shard_specs(self) -> dict[torch.nn.Parameter, list[ShardSpec]]:
        """What each parameter of this chunk holds, under Hugging Face names."""
        found: dict[torch.nn.Parameter, list[ShardSpec]] = {}
        for name, module in self.named_modules():
            if isinstance(module, ShardedLayer) and module is not self:
                owner = name.rpartition(".")[0]
                root = "" if module is self.lm_head or module is self.score else "model."
                specs = module.shard_specs(f"{root}{owner}." if owner else root)
                found[self.get_parameter(f"{name}.weight")] = specs
        return found
