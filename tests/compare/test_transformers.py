"""What we export is the same model in an older transformers, whose config has other keys."""

import pytest
import torch

from tests.compare.environments import run_in
from tests.integration.commands import call
from tests.integration.hf_folders import make_hf

pytestmark = pytest.mark.compare

LOGITS = """
    import json, sys
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32).eval()
    with torch.no_grad():
        print(json.dumps(model(torch.tensor(json.loads(sys.argv[2]))).logits.tolist()))
"""


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1}], ids=["grouped", "one head"])
def test_an_export_has_the_same_logits(tmp_path, changes):
    model = make_hf(tmp_path / "source", **changes).eval()
    words = ("--input", tmp_path / "source", "--output", tmp_path / "checkpoint")
    assert call("convert_checkpoint", "import-hf", *words).code == 0
    words = ("--checkpoint", tmp_path / "checkpoint", "--output", tmp_path / "hf")
    assert call("convert_checkpoint", "export-hf", *words).code == 0
    tokens = torch.arange(60).view(2, 30) * 5 % 300
    theirs = run_in("transformers-4.46", LOGITS, tmp_path / "hf", tokens.tolist())
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(theirs), model(tokens).logits, rtol=1e-4, atol=1e-4)
