"""Rounds of rejection sampling by their command: what lies in the folder, and where it is from."""

import itertools
import json

import pytest
import yaml

from megatron_chimed import engine
from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.data.templates import encode_prompts, load_template
from megatron_chimed.generation import SamplingConfig, generate, open_session, prompt_seed
from megatron_chimed.generation.prompts import read_prompts
from megatron_chimed.rejection.candidate import read_candidates
from megatron_chimed.tokenizer import load_tokenizer
from tests.integration.commands import call
from tests.integration.preferences import BAD, GOOD, SEQ_LENGTH, write_jsonl
from tests.integration.rejection import (
    EXTERNAL,
    NUM_HELD_OUT,
    NUM_PROMPTS,
    PER_PROMPT,
    configure_rounds,
    read_jsonl,
    sample,
)

SEED = 1234  # the default


@pytest.fixture(scope="module")
def rounds(rejection_project):
    """A folder of two rounds with answers by all who can give some, and what was said."""
    folder = rejection_project
    candidates = {"references": True, "external": [str(folder / "doctors.jsonl")]}
    path = configure_rounds(folder, "two", rounds=2, candidates=candidates)
    return folder / "two", sample(path)


def candidates_of(rounds, number):
    return read_candidates(rounds / f"round_{number:02d}/candidates.parquet")


def test_everything_lies_where_it_is_said_to(rounds):
    folder, said = rounds
    assert (folder / "config.yaml").is_file() and (folder / "report.md").is_file()
    assert (folder / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (folder / "round_00").iterdir()} == {"samples.parquet"}
    for number in (1, 2):
        here = folder / f"round_{number:02d}"
        report = json.loads((here / "report.json").read_text())
        assert report["number"] == number
        names = ("report.md", "rewards.png", "selected.jsonl", "data.bin", "train")
        assert all((here / name).exists() for name in names)
        assert f"round {number}: {NUM_PROMPTS * (PER_PROMPT + 1) + 2} candidates: " in said
    left = [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert not left, "what was kept on the way is gone"


def test_every_candidate_has_its_place_seed_score_and_decision(rounds):
    folder, _ = rounds
    for number in (1, 2):
        found = candidates_of(folder, number)
        places = [(c.prompt, c.source, c.number) for c in found]
        assert places == sorted(set(places))
        assert {c.prompt_id for c in found} == {f"q{n}" for n in range(NUM_PROMPTS)}
        assert all(c.category == "ab"[c.prompt % 2] and c.decision for c in found)
        for c in found:
            assert (c.score is None) <= (not c.text.strip())
            assert (c.seed is not None) == (c.source == "policy") == (c.finish_reason is not None)
        by_others = [(c.prompt_id, c.text, c.source) for c in found if c.source != "policy"]
        given = [(f"q{n}", GOOD[n % 2], "reference") for n in range(NUM_PROMPTS)]
        given += [(row["id"], row["completion"], row.get("source", "doctors")) for row in EXTERNAL]
        assert sorted(by_others) == sorted(given)
    seeds = {c.seed for number in (1, 2) for c in candidates_of(folder, number)} - {None}
    assert len(seeds) == 2 * NUM_PROMPTS * PER_PROMPT


def policy_of(rounds, number):
    run = rounds / f"round_{number:02d}/train" if number else rounds.parent / "sft"
    (checkpoint,) = (run / "checkpoints").glob("iter_*")
    return checkpoint


def redraw(policy, prompts, seed, num_candidates):
    """Draws again, alone and in other batches, as plain generation."""
    tokenizer = load_tokenizer(str(policy / "tokenizer"))
    conversations = [prompt.conversation for prompt in read_prompts([str(prompts)])]
    ids = encode_prompts(tokenizer, load_template("ziya"), conversations)
    sampling = SamplingConfig(
        max_new_tokens=12, temperature=1.0, seed=seed, stop_token_ids=(tokenizer.eos_id,)
    )
    with open_session(policy, engine.ParallelConfig()) as session:
        found = generate(session, ids, sampling, num_candidates=num_candidates, max_batch=3)
    return {(c.prompt_id, c.candidate): (c.token_ids, c.finish_reason) for c in found}


@pytest.mark.parametrize("number", [1, 2])
def test_the_policy_before_a_round_draws_its_candidates_from_their_seeds(rounds, number):
    folder, _ = rounds
    seed = prompt_seed(SEED, number)
    drawn = [c for c in candidates_of(folder, number) if c.source == "policy"]
    assert [c.seed for c in drawn] == [prompt_seed(seed, c.prompt, c.number) for c in drawn]
    expected = redraw(policy_of(folder, number - 1), folder.parent / "train.jsonl", seed, 4)
    assert {(c.prompt, c.number): (c.token_ids, c.finish_reason) for c in drawn} == expected
    tokenizer = load_tokenizer(str(folder.parent / "tokenizer.model"))
    assert all(c.text == tokenizer.decode(c.token_ids).replace("\0", "") for c in drawn)
    answers = {answer: tuple(tokenizer.encode(answer)) for answer in (*GOOD, *BAD)}
    learned = [c for c in drawn if c.text in answers]
    assert learned and all(c.token_ids == answers[c.text] for c in learned)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_fresh_answers_are_by_the_policy_after_a_round_with_the_same_seeds(rounds, number):
    folder, _ = rounds
    fresh = read_candidates(folder / f"round_{number:02d}/samples.parquet")
    assert [c.prompt for c in fresh] == [*range(NUM_HELD_OUT)]
    policy = policy_of(folder, number)
    expected = redraw(policy, folder.parent / "held.jsonl", prompt_seed(SEED, 0), 1)
    assert {(c.prompt, c.number): (c.token_ids, c.finish_reason) for c in fresh} == expected
    assert all(c.log_prob < 0 and c.first_log_prob < 0 for c in fresh)
    is_first = [c.log_prob == c.first_log_prob for c in fresh]
    assert all(is_first) if number == 0 else not any(is_first)


def test_scores_are_those_of_the_scoring_command(rounds, tmp_path):
    folder, _ = rounds
    asked = {row["id"]: row for row in read_jsonl(folder.parent / "train.jsonl")}
    scored = [c for n in (1, 2) for c in candidates_of(folder, n) if c.text.strip()]
    rows = [asked[c.prompt_id] | {"completion": c.text} for c in scored]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    words = ["--input", source, "--output", tmp_path / "scored.jsonl"]
    done = call("score", "--checkpoint", folder.parent / "judge", *words)
    assert done.code == 0, done.err
    expected = [row["score"] for row in read_jsonl(tmp_path / "scored.jsonl")]
    assert [c.score for c in scored] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("number", [1, 2])
def test_the_best_answer_to_each_prompt_is_learned_and_nothing_else(rounds, number):
    folder, _ = rounds
    here, found = folder / f"round_{number:02d}", candidates_of(folder, number)
    best = [
        max((c for c in answers if c.text.strip()), key=lambda c: c.score)
        for _, answers in itertools.groupby(found, key=lambda c: c.prompt)
    ]
    assert [c for c in found if c.decision == "selected"] == best
    asked = read_prompts([str(folder.parent / "train.jsonl")])
    for row, prompt, candidate in zip(
        read_jsonl(here / "selected.jsonl"), asked, best, strict=True
    ):
        *earlier, question, answer = (message["value"] for message in row["conversations"])
        turns = prompt.conversation.turns
        assert earlier == [text for turn in turns[:-1] for text in (turn.question, turn.answer)]
        assert (question, answer) == (turns[-1].question, candidate.text)
        assert (row["id"], row["source"]) == (candidate.prompt_id, candidate.source)
        assert row["reward"] == candidate.score
    tokenizer = load_tokenizer(str(folder.parent / "tokenizer.model"))
    data = open_prefix(str(here / "data"))
    tokens, learned = list(data.indexed.tokens), data.targets.astype(bool)
    targets = [token for token, is_target in zip(tokens, learned, strict=True) if is_target]
    answers = [[*tokenizer.encode(c.text), tokenizer.eos_id] for c in best]
    assert targets == [*itertools.chain(*answers)]


def test_each_round_starts_where_the_last_one_ended(rounds):
    folder, said = rounds
    for number in (1, 2):
        config = yaml.safe_load((folder / f"round_{number:02d}/train/config.yaml").read_text())
        assert config["checkpoint"]["load"] == str(policy_of(folder, number - 1))
        assert config["data"]["train"] == [
            {"prefix": str(folder / f"round_{number:02d}/data"), "weight": 1.0}
        ]
        assert f"weights from {policy_of(folder, number - 1)}" in said


def test_the_folder_is_a_run_of_the_last_policy(rounds, tmp_path):
    folder, _ = rounds
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "发热？"}, {"prompt": "咳嗽"}])
    outputs = []
    for name, checkpoint in (("a", folder), ("b", policy_of(folder, 2))):
        words = ["--prompts", prompts, "--output", tmp_path / name, "--max-new-tokens", 8]
        done = call("generate", "--checkpoint", checkpoint, *words)
        assert done.code == 0, done.err
        outputs.append((tmp_path / name).read_text())
    assert outputs[0] == outputs[1]
    words = ["--output", tmp_path / "hf", "--verify-logits"]
    done = call("convert_checkpoint", "export-hf", "--checkpoint", folder, *words)
    assert done.code == 0, done.err
    assert "logits agree with transformers" in done.out


def test_a_finished_job_does_nothing_more_until_it_is_given_more_rounds(rounds):
    two, _ = rounds
    folder = two.parent / "more"
    candidates = yaml.safe_load((two.parent / "two.yaml").read_text())["candidates"]
    path = configure_rounds(two.parent, "more", candidates=candidates)
    sample(path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "round_" in str(p)}
    said = sample(path)
    assert f"round 1 is done: {folder}/round_01/report.md" in said and "by /" not in said
    said = sample(path, "--rounds", 2)
    assert "round 1 is done" in said and "round 2: 4 answers to each of 6 prompts by /" in said
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for number, name in itertools.product((1, 2), ("candidates", "samples")):
        name = f"round_{number:02d}/{name}.parquet"
        assert (folder / name).read_bytes() == (two / name).read_bytes(), name
    link = folder / "checkpoints"
    assert link.resolve() == (folder / "round_02/train/checkpoints").resolve()


def test_from_the_first_policy_on_all_answers_with_other_data(rejection_project):
    project = rejection_project
    mix = [{"prefix": str(project / "chat"), "weight": 0.25}]
    path = configure_rounds(
        project, "mixed", rounds=2, start_from="first", train_on="all", training={"mix": mix}
    )
    said = sample(path)
    folder = project / "mixed"
    selected = [folder / f"round_{number:02d}/selected.jsonl" for number in (1, 2)]
    for number in (1, 2):
        here = folder / f"round_{number:02d}"
        config = yaml.safe_load((here / "train/config.yaml").read_text())
        assert config["checkpoint"]["load"] == str(policy_of(folder, 0))
        assert config["data"]["train"] == [{"prefix": f"{here}/data", "weight": 1.0}, *mix]
        learned = [row for n in range(number) for row in read_jsonl(selected[n])]
        data = open_prefix(str(here / "data"))
        assert len(data.indexed.lengths) == len(learned) == NUM_PROMPTS * number
        samples = -(-int(data.indexed.lengths.sum()) // SEQ_LENGTH)  # packed in at least so many
        assert config["training"]["train_steps"] >= samples * 2.0 * 1.25 / 2
    assert said.count(f"weights from {policy_of(folder, 0)}") == 2
    drawn = [c for c in candidates_of(folder, 2) if c.source == "policy"]
    expected = redraw(policy_of(folder, 1), project / "train.jsonl", prompt_seed(SEED, 2), 4)
    assert {(c.prompt, c.number): (c.token_ids, c.finish_reason) for c in drawn} == expected


def test_the_best_of_all_answers_by_others_without_a_draw(rejection_project):
    """The other reading of the paper: the best N, whatever they answer."""
    project = rejection_project
    candidates = {"per_prompt": 0, "references": True, "external": [str(project / "doctors.jsonl")]}
    path = configure_rounds(
        project, "given", candidates=candidates, selection={"per_prompt": 0, "total": 3}
    )
    sample(path)
    found = candidates_of(project / "given", 1)
    assert {c.source for c in found} == {"reference", "gpt-4", "doctors"}
    ranked = sorted(found, key=lambda c: -c.score)
    assert [c.decision for c in ranked] == ["selected"] * 3 + ["not_in_total_top"] * 5


def test_rounds_train_adapters(rejection_project):
    path = configure_rounds(
        rejection_project, "lora", rounds=2, training={"settings": {"lora": {"rank": 4}}}
    )
    said = sample(path)
    folder = rejection_project / "lora"
    assert said.count("fresh adapters") == 2
    drawn = [c for c in candidates_of(folder, 2) if c.source == "policy"]
    prompts = rejection_project / "train.jsonl"
    expected = redraw(policy_of(folder, 1), prompts, prompt_seed(SEED, 2), 4)
    assert {(c.prompt, c.number): (c.token_ids, c.finish_reason) for c in drawn} == expected


def test_a_dry_run_says_what_would_be_drawn_and_does_nothing(rejection_project):
    path = configure_rounds(rejection_project, "dry", rounds=3)
    said = sample(path, "--dry-run", "--inference.tensor_parallel_size", 2, "--world-size", 2)
    assert "rounds: 3; answers a round: 24 (4 x 6 prompts), of at most 12 tokens" in said
    assert "reports: fresh answers to each held-out prompt: 1 x 4" in said
    assert "nothing was drawn" in said and "TP2 x PP1 x DP1" in said
    assert not (rejection_project / "dry").exists()
