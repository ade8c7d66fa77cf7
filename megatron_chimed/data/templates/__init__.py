"""Chat templates: how a conversation becomes text, token ids and a loss mask."""

from megatron_chimed.data.templates.encoding import (
    Dropped,
    Encoded,
    EncodedRanking,
    encode_conversations,
    encode_prompts,
    encode_rankings,
)
from megatron_chimed.data.templates.loading import load_template
from megatron_chimed.data.templates.named import (
    ALL_TEMPLATES,
    FAMILY_TEMPLATES,
    TEMPLATES,
    require_fit,
    template_for,
)
from megatron_chimed.data.templates.segment_template import SegmentTemplate
from megatron_chimed.data.templates.stored import (
    STORED_KEY,
    TemplateUse,
    agreed_template,
    require_one_template,
    store_template,
    stored_template,
    template_of,
    template_uses,
)
from megatron_chimed.data.templates.template import Segment, Template

__all__ = [
    "ALL_TEMPLATES",
    "FAMILY_TEMPLATES",
    "STORED_KEY",
    "TEMPLATES",
    "Dropped",
    "Encoded",
    "EncodedRanking",
    "Segment",
    "SegmentTemplate",
    "Template",
    "TemplateUse",
    "agreed_template",
    "encode_conversations",
    "encode_prompts",
    "encode_rankings",
    "load_template",
    "require_fit",
    "require_one_template",
    "store_template",
    "stored_template",
    "template_for",
    "template_of",
    "template_uses",
]
