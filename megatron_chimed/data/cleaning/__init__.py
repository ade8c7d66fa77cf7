"""Cleaning of medical text: normalisation, de-identification, duplicates, test overlap.

Everything is off by default and reported per rule. In a worker, then in the parent:

    cleaner = Cleaner(config)
    example, counts = cleaner.clean(example)      # None: removed
    results = cleaner.clean_all(examples)         # the same for many, faster
    signature = cleaner.signature(example)        # None: nothing to compare
    report = cleaner.drain()                      # of all examples since the last call

    duplicates = Deduplicator(config)
    duplicates.is_duplicate(signature)            # in the order of the data
    report = merge_reports([*reports, duplicates.report()])
    Decontaminator(config).check(report.found)    # raises if too many were found
"""

from megatron_chimed.data.cleaning.cleaner import Cleaner, cleaning_identity
from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.decontaminate import Decontaminator, Overlap
from megatron_chimed.data.cleaning.duplicates import Deduplicator
from megatron_chimed.data.cleaning.report import (
    CleaningReport,
    FoundItem,
    RuleReport,
    merge_reports,
    report_from_json,
)

__all__ = [
    "Cleaner",
    "CleaningConfig",
    "CleaningReport",
    "Decontaminator",
    "Deduplicator",
    "FoundItem",
    "Overlap",
    "RuleReport",
    "cleaning_identity",
    "merge_reports",
    "report_from_json",
]
