"""Settings of cleaning. Everything is off by default."""

from dataclasses import dataclass
from typing import Literal

from megatron_chimed.data.cleaning.ngrams import MAX_N
from megatron_chimed.errors import ConfigError

DEDUPLICATE_CHOICES = ("off", "exact", "near")
TEST_FILE_SETTINGS = ("remove_contaminated", "ngram_size", "ngram_overlap", "max_contaminated")


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """Settings of `Cleaner`, `Deduplicator` and `Decontaminator`."""

    normalize: bool = False
    """Unicode NFC, half-width letters and digits, no control or invisible characters."""

    deidentify: bool = False
    """Replace numbers of documents, records and telephones, accounts, e-mail and other addresses,
    dates of birth, plates, and labelled names."""

    deduplicate: Literal["off", "exact", "near"] = "off"
    """Drop examples whose text occurred before, exactly or nearly."""

    near_threshold: float = 0.8
    """Jaccard similarity of character 5-grams at which about two of three near-duplicates are
    found; above it more are found, below it fewer."""

    dedup_memory_mb: int = 1024
    """Memory limit of deduplication in MiB; the run stops with an error if it is reached."""

    decontaminate: tuple[str, ...] = ()
    """Test files whose questions are searched for in the data: files, folders or patterns."""

    encoding: str = "utf-8"
    """Encoding of the test files that are not in UTF-8."""

    remove_contaminated: bool = False
    """Drop examples that contain a test question instead of only reporting them."""

    ngram_size: int = 4
    """Length of the n-grams by which passages are compared with test questions, in Chinese
    characters, words and numbers."""

    ngram_overlap: float = 0.75
    """Share of a question, or of question and choices, that a passage of a contaminated example
    covers."""

    max_contaminated: float = 1.0
    """Largest share of a test file's questions that may occur in the data; more is an error."""

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ConfigError: One is out of range.
        """
        if self.deduplicate not in DEDUPLICATE_CHOICES:
            raise ConfigError(
                f"--deduplicate {self.deduplicate!r} is none of {', '.join(DEDUPLICATE_CHOICES)}."
            )
        if not 0.5 <= self.near_threshold <= 0.9:
            raise ConfigError(
                f"--near-threshold is {self.near_threshold}; give a similarity from 0.5, half of "
                "all 5-grams in common, to 0.9. For equal texts use --deduplicate exact."
            )
        if self.dedup_memory_mb < 1:
            raise ConfigError(f"--dedup-memory-mb is {self.dedup_memory_mb}; give at least 1 MiB.")
        if not 4 <= self.ngram_size <= MAX_N:
            raise ConfigError(
                f"--ngram-size is {self.ngram_size}; give 4 to {MAX_N} characters, words or "
                "numbers."
            )
        for name, share in (
            ("--ngram-overlap", self.ngram_overlap),
            ("--max-contaminated", self.max_contaminated),
        ):
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"{name} is {share}; give a share from 0 to 1.")
        if self.ngram_overlap == 0.0:
            raise ConfigError("--ngram-overlap is 0: every example would be contaminated.")
        self._check_idle()

    def _check_idle(self) -> None:
        """Refuses a setting given without the one it depends on."""
        needs = {
            **dict.fromkeys(TEST_FILE_SETTINGS, ("--decontaminate", bool(self.decontaminate))),
            "near_threshold": ("--deduplicate near", self.deduplicate == "near"),
            "dedup_memory_mb": ("--deduplicate exact or near", self.deduplicate != "off"),
        }
        for name, (other, is_there) in needs.items():
            if not is_there and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} has no effect without {other}. Add that, or "
                    "remove it."
                )

    @property
    def is_off(self) -> bool:
        """Whether no rule is on."""
        return not (
            self.normalize or self.deidentify or self.decontaminate or self.deduplicate != "off"
        )
