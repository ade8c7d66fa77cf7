"""Scores of a toy reward model: how rows are laid, what is refused, and the forms of rows."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification

from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint
from megatron_chimed.data.formats.example import Conversation, Ranking, Turn
from megatron_chimed.data.templates import (
    STORED_KEY,
    encode_conversations,
    encode_rankings,
    load_template,
    store_template,
)
from megatron_chimed.engine import ParallelConfig, TensorShard
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import CheckpointError, ConfigError, DataError, NumericError
from megatron_chimed.generation import (
    open_session,
    read_answers,
    require_template,
    score_conversations,
    score_sequences,
    write_scores,
)
from tests.unit.generation import toy

SEQUENCES = [np.array(prompt) for prompt in toy.PROMPTS]


@functools.cache
def reference_scorer():
    """transformers' reward model."""
    torch.manual_seed(3)
    config = toy.reference_model().config
    config.num_labels = 1
    return LlamaForSequenceClassification(config).eval()


def save_scorer(root, *, spoil=None, **changes):
    """The reference as a committed checkpoint."""
    tensors = {k: v.clone() for k, v in reference_scorer().state_dict().items()}
    if spoil:
        spoil(tensors)
    model = dataclasses.asdict(dataclasses.replace(toy.model_config(), head="score"))
    content = {
        "iteration": 0,
        "shards": [
            TensorShard(key=k, global_shape=tuple(v.shape), offset=(0,) * v.dim(), tensor=v)
            for k, v in tensors.items()
        ],
        "state": {"tokenizer_identity": toy.toy_tokenizer().identity},
        "config": {"model": model, STORED_KEY: store_template(load_template("ziya"))},
        "tokenizer": {"tokenizer.model": toy.toy_tokenizer().model_bytes},
    }
    snapshot = Snapshot(**(content | changes))
    return save_checkpoint(root, snapshot, agreement=Agreement(), run_id="toy")


def opened(checkpoint):
    return open_session(checkpoint, ParallelConfig(), head="score", world=(0, 1, 0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_scorer(tmp_path_factory.mktemp("scorer"))


def expected(sequences):
    """Each sequence alone, by transformers."""
    with torch.no_grad():
        return [
            reference_scorer()(torch.tensor(ids)[None]).logits[0, 0].item() for ids in sequences
        ]


@pytest.mark.parametrize("batch_tokens", [1, 40, 8192])
def test_scores_are_those_of_transformers_however_they_are_packed(checkpoint, batch_tokens):
    with opened(checkpoint) as session:
        found = score_sequences(session, SEQUENCES, batch_tokens=batch_tokens)
        assert score_sequences(session, []) == []
        with pytest.raises(ConfigError, match="batch_tokens is 0"):
            score_sequences(session, SEQUENCES, batch_tokens=0)
    assert found == pytest.approx(expected(SEQUENCES), abs=1e-5)
    assert len({round(score, 4) for score in found}) == len(found)


def test_a_conversation_is_encoded_as_in_training():
    """As a candidate of a ranking is, with its end token."""
    turns = (Turn("发热三天", "体温？"), Turn("咳嗽", ""))
    prompt = Conversation(turns, "system")
    answered = Conversation((turns[0], Turn("咳嗽", "三十九度")), "system")
    for name in ("ziya", "chimed", "zhongjing"):
        common = toy.toy_tokenizer(), load_template(name)
        ranking = Ranking(prompt, ("体温", "三十九度"), (1, 0))
        (ranked,) = encode_rankings(*common, [ranking])
        (encoded,) = encode_conversations(*common, [answered], targets="last")
        assert encoded.ids.tolist() == ranked.ids[1].tolist()
        assert encoded.ids[-1] == toy.toy_tokenizer().eos_id


def test_texts_are_scored_with_the_stored_template(checkpoint):
    conversations = [Conversation((Turn("发热", answer),)) for answer in ("三天", "体温最高")]
    with opened(checkpoint) as session:
        template = require_template(session)
        assert template.identity == load_template("ziya").identity
        found = score_conversations(session, conversations, template)
        encoded = encode_conversations(session.tokenizer, template, conversations)
        with pytest.raises(ConfigError, match="was trained with template 'ziya' .* not 'chimed'"):
            require_template(session, load_template("chimed"))
        too_long = [*conversations, Conversation((Turn("发热", "三天" * 200),))]
        with pytest.raises(DataError, match="1 of 3 rows cannot be scored: row 3"):
            score_conversations(session, too_long, template)
        # The turn that does not fit would leave the answer before it to be scored.
        late = Conversation((Turn("发热", "三天"), Turn("咳嗽", "三天" * 200)))
        with pytest.raises(DataError, match="1 of 1 rows cannot be scored"):
            score_conversations(session, [late], template)
        with pytest.raises(CheckpointError, match="saved without its tokenizer"):
            score_conversations(dataclasses.replace(session, tokenizer=None), [], template)
    assert found == pytest.approx(expected([item.ids.tolist() for item in encoded]), abs=1e-5)


def lose_head(tensors):
    del tensors["score.weight"]


def spoil_head(tensors):
    tensors["score.weight"][0, 0] = float("inf")


def refusal(root, error, use=lambda session: None, **changes):
    """The message with which a checkpoint, or its use, is refused."""
    with pytest.raises(error) as caught, opened(save_scorer(root, **changes)) as session:
        use(session)
    return str(caught.value)


def test_a_model_without_its_own_head_tokenizer_or_template_is_refused(tmp_path):
    said = refusal(tmp_path / "a", CheckpointError, spoil=lose_head)
    assert "has no reward head (score.weight)" in said
    lm = {"model": dataclasses.asdict(toy.model_config())}
    assert "has no reward head" in refusal(tmp_path / "b", CheckpointError, config=lm)
    other = {"tokenizer_identity": "f" * 64}
    said = refusal(tmp_path / "c", CheckpointError, state=other)
    assert "is not the tokenizer that the model was trained with" in said
    model = dataclasses.asdict(dataclasses.replace(toy.model_config(), head="score"))
    changed = {**store_template(load_template("ziya")), "separator": "\n\n"}
    config = {"model": model, STORED_KEY: changed}
    assert "would make other tokens" in refusal(tmp_path / "d", DataError, config=config)
    config = {"model": model}
    said = refusal(tmp_path / "e", ConfigError, require_template, config=config)
    assert "does not name its chat template" in said


def test_a_score_that_is_no_number_is_refused(tmp_path):
    said = refusal(
        tmp_path, NumericError, lambda s: score_sequences(s, SEQUENCES), spoil=spoil_head
    )
    assert "a score is not finite" in said


def test_a_reward_model_is_no_language_model(checkpoint):
    with pytest.raises(CheckpointError, match="holds a reward model, which writes no text"):
        with open_session(checkpoint, ParallelConfig(), world=(0, 1, 0)):
            pass


def test_rows_are_read_in_all_their_forms_and_written_back(tmp_path):
    rows = [
        {"prompt": "q", "completion": "a", "id": 7},
        {"prompt": "q", "completion": "a", "history": [["x", "y"]], "system": "s"},
        {"messages": [{"role": "user", "content": "q"}], "completion": "a"},
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "x"},
                {"from": "gpt", "value": "y"},
                {"from": "human", "value": "q"},
            ],
            "completion": "a",
        },
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    found, conversations = read_answers(source)
    assert found == rows
    short, long = (
        Conversation((Turn("q", "a"),)),
        Conversation((Turn("x", "y"), Turn("q", "a")), "s"),
    )
    assert conversations == [short, long, short, long]
    write_scores(tmp_path / "out.jsonl", rows, [0.1, -2.0, 3.5, 1e-9])
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [row | {"score": s} for row, s in zip(rows, (0.1, -2.0, 3.5, 1e-9), strict=True)]
    assert [*map(json.loads, lines)] == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('["a"]', "a list instead of a JSON object"),
        ('{"prompt": "q"', "malformed JSON"),
        ('{"prompt": 3, "completion": "a"}', "'prompt' is of type int"),
        ('{"prompt": "q", "completion": ""}', "no answer"),
        ('{"prompt": "q", "completion": "a", "score": 0}', 'a key "score" already'),
        ('{"messages": [{"role": "assistant", "content": "x"}], "completion": "a"}', "role"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(tmp_path, line, message):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n" + line)
    with pytest.raises(DataError, match=message) as caught:
        read_answers(source)
    assert str(caught.value).startswith(f"{source}:2: ")
