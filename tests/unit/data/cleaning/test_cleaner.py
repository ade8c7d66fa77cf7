"""The cleaner as workers use it: every text of an example, nothing by default, a full report."""

import copy
import dataclasses
import json
import subprocess
import sys

import pytest

from megatron_chimed.data.cleaning import (
    Cleaner,
    CleaningConfig,
    CleaningReport,
    Deduplicator,
    RuleReport,
    cleaning_identity,
    merge_reports,
    report_from_json,
)
from megatron_chimed.data.formats.example import Conversation, Ranking, Text, Turn
from megatron_chimed.errors import ConfigError

ALL = CleaningConfig(normalize=True, deidentify=True, deduplicate="exact")
DIRTY = "每次０．５ｍｇ，电话13812345678"
CLEAN = "每次0.5mg，电话[电话]"


def test_nothing_happens_by_default():
    config = CleaningConfig()
    cleaner = Cleaner(config)
    example = Text(f"  {DIRTY}\x00 ")
    assert config.is_off and not ALL.is_off
    assert cleaner.clean(example) == (example, {})
    assert cleaner.signature(example) is None
    assert cleaner.drain() == CleaningReport(seen=1)


def test_every_text_of_an_example_is_cleaned():
    cleaner = Cleaner(ALL)
    turn, clean_turn = Turn(DIRTY, DIRTY), Turn(CLEAN, CLEAN)
    opened, clean_opened = Turn(DIRTY, ""), Turn(CLEAN, "")
    ranking = Ranking(Conversation((turn, opened), DIRTY), (DIRTY, "ｂ"), (0, 1), (0.5, 0.1))
    for dirty, clean in (
        (Text(DIRTY), Text(CLEAN)),
        (Conversation((turn, turn), DIRTY), Conversation((clean_turn, clean_turn), CLEAN)),
        (
            ranking,
            Ranking(
                Conversation((clean_turn, clean_opened), CLEAN), (CLEAN, "b"), (0, 1), (0.5, 0.1)
            ),
        ),
    ):
        assert cleaner.clean(dirty)[0] == clean
        assert cleaner.clean(clean) == (clean, {})


@pytest.mark.parametrize(
    "example",
    [
        Text("\u200b \u3000"),
        Conversation((Turn("问", "\ufeff"),)),
        Conversation((Turn("问", "答"), Turn("\x00", "答"))),
        Ranking(Conversation((Turn("问", ""),)), ("好", "\u200b"), (0, 1)),
        Ranking(Conversation((Turn("问", ""),)), ("ａ", "a"), (0, 1)),
    ],
)
def test_an_example_of_which_too_little_is_left_is_removed(example):
    cleaner = Cleaner(ALL)
    cleaned, counts = cleaner.clean(example)
    assert cleaned is None and counts["removed.empty"] == 1
    assert cleaner.drain().removed == 1


def test_the_report_has_counts_and_examples_and_starts_anew():
    cleaner = Cleaner(ALL)
    _, counts = cleaner.clean(Text(DIRTY))
    assert counts == {"normalize.full_width": 3, "deidentify.phone": 1}
    cleaner.clean(Text("另 13912345678"))
    report = cleaner.drain()
    assert (report.seen, report.removed) == (2, 0)
    rules = {rule.rule: rule for rule in report.rules}
    assert rules["deidentify.phone"].count == 2
    assert rules["deidentify.phone"].examples == ("[电话]",)
    assert cleaner.drain() == CleaningReport()


def test_reports_of_blocks_add_up_to_the_report_of_all():
    texts = [Text(f"第{n}份 ｍｇ{n} 电话1381234567{n % 10}") for n in range(30)]
    whole = Cleaner(ALL)
    for text in texts:
        whole.clean(text)
    parts, worker = [], Cleaner(ALL)
    for start in range(0, 30, 7):
        for text in texts[start : start + 7]:
            worker.clean(text)
        parts.append(worker.drain())
    merged = merge_reports(parts)
    expected = whole.drain()
    assert merged == expected
    assert [len(rule.examples) for rule in merged.rules] == [1, 1]
    written = json.loads(json.dumps(dataclasses.asdict(merged)))
    assert report_from_json(written) == merged


def test_examples_that_differ_in_more_than_their_words_are_no_duplicates():
    cleaner = Cleaner(CleaningConfig(deduplicate="exact"))
    prompt = Conversation((Turn("发热", ""),))
    examples = [
        *(Ranking(prompt, ("是", "否"), ranks) for ranks in ((0, 1), (1, 0))),
        Conversation((Turn("发热", "是"),)),
        Conversation((Turn("发热", "是"),), system="医生"),
        Text("发热\n是"),
    ]
    assert len({cleaner.signature(example) for example in examples}) == len(examples)
    assert cleaner.signature(examples[0]) == cleaner.signature(copy.deepcopy(examples[0]))


def test_duplicates_join_the_report():
    cleaner, deduplicator = Cleaner(ALL), Deduplicator(ALL)
    conversation = Conversation((Turn("发热", "ｍｇ"),))
    kept = []
    for example in (conversation, Conversation((Turn("发热", "mg"),)), Text("咳嗽")):
        cleaned, _ = cleaner.clean(example)
        if not deduplicator.is_duplicate(cleaner.signature(cleaned)):
            kept.append(cleaned)
    assert kept == [Conversation((Turn("发热", "mg"),)), Text("咳嗽")]
    report = merge_reports([cleaner.drain(), deduplicator.report()])
    assert (report.seen, report.removed) == (3, 1)
    assert report.rules[-1] == RuleReport(rule="removed.exact_duplicate", count=1)


def test_the_identity_knows_settings_and_test_files(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "发热"}\n')
    config = CleaningConfig(decontaminate=(str(path),))
    first = cleaning_identity(config)
    assert first == cleaning_identity(CleaningConfig(decontaminate=(str(path),)))
    path.write_text('{"question": "咳嗽"}\n')
    others = {
        cleaning_identity(config),
        cleaning_identity(CleaningConfig()),
        cleaning_identity(ALL),
    }
    assert len({first, *others}) == 4


def test_the_identity_without_test_files_is_that_of_version_0_1_0():
    """So that its stopped runs resume, although the search for test questions has changed."""
    identity = "9b6c147d62e3a5ec6def62703366bb4dea445fd7e875a7d12cb3ec2780e67492"
    assert cleaning_identity(CleaningConfig()) == identity


@pytest.mark.parametrize(
    ("options", "version"),
    [({"deidentify": True}, "DEIDENTIFY_VERSION"), ({"deduplicate": "near"}, "NEAR_VERSION")],
)
def test_the_identity_knows_the_version_of_the_rules(options, version, monkeypatch):
    config = CleaningConfig(**options)
    before, other = cleaning_identity(config), cleaning_identity(CleaningConfig(normalize=True))
    monkeypatch.setattr(f"megatron_chimed.data.cleaning.cleaner.{version}", 99)
    assert cleaning_identity(config) != before
    assert cleaning_identity(CleaningConfig(normalize=True)) == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deduplicate": "fuzzy"}, "none of off, exact, near"),
        ({"near_threshold": 0.95}, "from 0.5, half of all 5-grams in common, to 0.9"),
        ({"dedup_memory_mb": 0}, "at least 1 MiB"),
        ({"ngram_size": 3}, "give 4 to 32"),
        ({"ngram_overlap": 0.0}, "every example would be contaminated"),
        ({"max_contaminated": 1.5}, "a share from 0 to 1"),
        (
            {"remove_contaminated": True},
            "--remove-contaminated has no effect without --decontaminate",
        ),
        ({"max_contaminated": 0.0}, "--max-contaminated has no effect without --decontaminate"),
        ({"near_threshold": 0.7}, "--near-threshold has no effect without --deduplicate near"),
        ({"dedup_memory_mb": 7}, "--dedup-memory-mb has no effect without --deduplicate"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        CleaningConfig(**options)
    assert message in str(caught.value)


def test_the_duplicate_library_is_loaded_only_for_near_duplicates():
    code = (
        "import sys; import megatron_chimed.data.cleaning as c;"
        "c.Cleaner(c.CleaningConfig(deduplicate='exact'));"
        "print([m for m in ('rensa', 'torch', 'scipy', 'yaml') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_rules_of_deidentification_are_compiled_only_where_they_are_on():
    """They take half a second, as long as the rest of a short preprocessing run."""
    code = (
        "import sys; from megatron_chimed.data.cleaning import Cleaner, CleaningConfig; "
        "name = 'megatron_chimed.data.cleaning.deidentify'; Cleaner(CleaningConfig()); "
        "assert name not in sys.modules; Cleaner(CleaningConfig(deidentify=True)); "
        "assert name in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
