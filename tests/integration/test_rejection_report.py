"""What the rounds say of themselves, against the files they leave; and folders that lie."""

import json
import shutil
import statistics

import pytest
import yaml

from megatron_chimed import engine
from megatron_chimed.data.templates import encode_prompts, load_template
from megatron_chimed.generation import (
    SamplingConfig,
    answer_log_probs,
    generate,
    open_session,
    prompt_seed,
)
from megatron_chimed.generation.prompts import read_prompts
from megatron_chimed.rejection.candidate import read_candidates
from megatron_chimed.tokenizer import load_tokenizer
from tests.integration.commands import call
from tests.integration.rejection import configure_rounds, sample

PER_PROMPT = 3  # fresh answers


@pytest.fixture(scope="module")
def folder(rejection_project):
    """Two rounds with several fresh answers to each held-out prompt."""
    evaluation = {"per_prompt": PER_PROMPT}
    sample(configure_rounds(rejection_project, "told", rounds=2, evaluation=evaluation))
    return rejection_project / "told"


@pytest.fixture
def copied(folder, request):
    """A copy of the folder to be spoiled, and how its job is started again."""
    name = f"copy_{request.node.name}"
    copy = shutil.copytree(folder, folder.parent / name, symlinks=True)
    config = configure_rounds(folder.parent, name, rounds=2, evaluation={"per_prompt": PER_PROMPT})

    def again(*words):
        done = call("rejection_sample", "--config", config, *words)
        return done.code, done.err

    yield copy, again
    shutil.rmtree(copy)


def samples_of(folder, number):
    return read_candidates(folder / f"round_{number:02d}/samples.parquet")


def policy_of(folder, number):
    run = folder / f"round_{number:02d}/train" if number else folder.parent / "sft"
    (checkpoint,) = (run / "checkpoints").glob("iter_*")
    return checkpoint


@pytest.mark.parametrize("number", [0, 1, 2])
def test_log_probabilities_are_those_of_both_policies(folder, number):
    """The own ones as generation gives them while it draws, the first policy's in a pass apart."""
    fresh = samples_of(folder, number)
    assert any(c.finish_reason == "stop" for c in fresh), "an end has a probability, too"
    tokenizer = load_tokenizer(str(folder.parent / "tokenizer.model"))
    prompts = read_prompts([str(folder.parent / "held.jsonl")])
    ids = encode_prompts(tokenizer, load_template("ziya"), [p.conversation for p in prompts])
    with open_session(policy_of(folder, number), engine.ParallelConfig()) as session:
        drawn = generate(
            session,
            ids,
            SamplingConfig(
                max_new_tokens=12,
                temperature=1.0,
                seed=_seed_of(folder),
                stop_token_ids=(tokenizer.eos_id,),
            ),
            num_candidates=PER_PROMPT,
            with_log_probs=True,
        )
    assert [c.token_ids for c in fresh] == [c.token_ids for c in drawn]
    own = [sum(c.log_probs) for c in drawn]
    assert [c.log_prob for c in fresh] == pytest.approx(own, abs=1e-4)
    answers = [
        c.token_ids + ((tokenizer.eos_id,) if c.finish_reason == "stop" else ()) for c in fresh
    ]
    with open_session(policy_of(folder, 0), engine.ParallelConfig()) as session:
        first = answer_log_probs(session, [ids[c.prompt] for c in fresh], answers)
    assert [c.first_log_prob for c in fresh] == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize("number", [1, 2])
def test_a_report_compares_the_policies_around_its_round(folder, number):
    report = json.loads((folder / f"round_{number:02d}/report.json").read_text())
    for part, place in (("before", number - 1), ("after", number)):
        scored = [c for c in samples_of(folder, place) if c.score is not None]
        told = report[part]
        assert told["reward"]["mean"] == pytest.approx(statistics.fmean(c.score for c in scored))
        ratios = [c.log_prob - c.first_log_prob for c in samples_of(folder, place)]
        assert told["kl"]["mean"] == pytest.approx(statistics.fmean(ratios), abs=1e-9)
    assert report["number"] == number and report["held_out"] is True
    assert sum(report["decisions"].values()) == len(
        read_candidates(folder / f"round_{number:02d}/candidates.parquet")
    )


def test_fresh_prompts_are_spread_over_the_file_and_a_mix_lengthens_training(
    folder, rejection_project
):
    """The same answers are selected; beside as much of a mix they are read as often."""
    name = "thinned"
    mix = [{"prefix": f"{rejection_project}/chat", "weight": 1.0}]
    path = configure_rounds(
        rejection_project, name, evaluation={"max_prompts": 2}, training={"mix": mix}
    )
    sample(path)
    thinned = rejection_project / name
    assert [c.prompt_id for c in samples_of(thinned, 1)] == ["q6", "q8"]
    assert _train_steps(thinned) == 2 * _train_steps(folder)


def test_a_lost_round_is_not_passed_over(copied):
    folder, again = copied
    shutil.rmtree(folder / "round_01")
    code, said = again()
    assert code == 78
    assert "round_02 was made from" in said and "round_01, which is not complete" in said


def test_a_lost_policy_is_not_passed_over(copied):
    folder, again = copied
    shutil.rmtree(folder / "round_02/train")
    code, said = again()
    assert code == 74 and "round_02/train" in said


def test_fewer_rounds_than_there_are_do_not_turn_the_policy_back(copied):
    folder, again = copied
    code, said = again("--rounds", 1)
    assert code == 78 and "holds 2 finished rounds" in said
    assert (folder / "checkpoints").resolve() == (folder / "round_02/train/checkpoints").resolve()


def test_answers_of_another_policy_are_not_taken_over(copied):
    folder, again = copied
    (folder / "round_02/report.json").unlink()
    shutil.rmtree(folder / "round_01/train")
    shutil.copytree(folder.parent / "sft", folder / "round_01/train")
    code, said = again()
    assert code == 78 and "holds answers of another policy than" in said


def test_settings_of_training_may_change_for_the_rounds_to_come(copied):
    folder, again = copied
    code, said = again("--rounds", 3, "--training.settings", '{"optim": {"lr": 1.0e-4}}')
    assert code == 0, said
    config = yaml.safe_load((folder / "round_03/train/config.yaml").read_text())
    assert config["optim"]["lr"] == 1e-4


def test_data_that_are_not_there_are_missed_before_anything_is_drawn(rejection_project):
    mix = [{"prefix": f"{rejection_project}/nowhere", "weight": 1.0}]
    path = configure_rounds(rejection_project, "early", training={"mix": mix})
    done = call("rejection_sample", "--config", path)
    assert done.code == 78 and "nowhere.bin does not exist" in done.err
    assert not (rejection_project / "early").exists()


def _seed_of(folder):
    return prompt_seed(yaml.safe_load((folder / "config.yaml").read_text())["seed"], 0)


def _train_steps(folder):
    config = yaml.safe_load((folder / "round_01/train/config.yaml").read_text())
    return config["training"]["train_steps"]
