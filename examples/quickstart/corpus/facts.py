"""Diseases as data: the YAML files under facts/ and the split of entire diseases in split.yaml.

Invariant: no fact of a training disease names a held-out disease, be it as a differential diagnosis
or a complication. Items that do are dropped here; free text that does is an error.
"""

import dataclasses
from pathlib import Path

import yaml

from megatron_chimed.errors import DataError

HERE = Path(__file__).resolve().parent
SPLITS = ("train", "valid", "test")
TEXT_FIELDS = ("group", "cause", "mechanism", "prognosis")
LIST_FIELDS = ("symptoms", "care", "complications", "prevention", "alarm")
PAIR_FIELDS = ("exams", "drugs", "differ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disease:
    """Facts about one disease. Varying numbers are written `{low~high}` in any value."""

    name: str
    """The name used in documents."""
    also: tuple[str, ...]
    """Other names, held out with it."""
    department: str
    """The hospital department that treats it."""
    patient: str
    """`[sex ]youngest-oldest` in years, for invented patients."""
    course: str
    """acute (hours to days before the patient comes) or gradual (days to months)."""
    bp: str
    """Blood pressure of invented patients: low, normal or high."""
    celsius: str
    """`lowest-highest` body temperature of invented patients."""
    texts: dict[str, str]
    """One phrase for each of TEXT_FIELDS."""
    items: dict[str, tuple[tuple[str, str], ...]]
    """(item, what belongs to it) for each of LIST_FIELDS, where the second part is empty, and of
    PAIR_FIELDS: examination and finding, drug and dose, other disease and its distinction."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the disease."""
        return (self.name, *self.also)


def load_diseases() -> list[Disease]:
    """Reads every disease, ordered by file name and position.

    Raises:
        DataError: An entry lacks a field, has an unknown one, or a pair lacks its second part.
    """
    diseases = []
    for path in sorted((HERE / "facts").glob("*.yaml")):
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        diseases += [_disease(entry, document["department"]) for entry in document["diseases"]]
    return diseases


def split_diseases(diseases: list[Disease]) -> dict[str, list[Disease]]:
    """Sorts diseases into train, valid and test, without a held-out name outside its own split.

    Raises:
        DataError: split.yaml names an unknown disease, or free text names a held-out one.
    """
    listed = yaml.safe_load((HERE / "split.yaml").read_text(encoding="utf-8"))
    owner = {name: split for split, names in listed.items() for name in names}
    if unknown := set(owner) - {disease.name for disease in diseases}:
        raise DataError(
            f"split.yaml names {sorted(unknown)}, which no file under facts/ describes."
        )
    parts: dict[str, list[Disease]] = {split: [] for split in SPLITS}
    for disease in diseases:
        parts[owner.get(disease.name, "train")].append(disease)
    hidden = held_out_names(parts)
    return {
        split: [
            _without(
                disease, [n for other, names in hidden.items() if other != split for n in names]
            )
            for disease in members
        ]
        for split, members in parts.items()
    }


def held_out_names(parts: dict[str, list[Disease]]) -> dict[str, list[str]]:
    """All names of the diseases of valid and of test."""
    return {s: [n for disease in parts[s] for n in disease.names] for s in ("valid", "test")}


def _disease(entry: dict[str, str], department: str) -> Disease:
    """Turns one YAML entry, whose lists are joined by a full-width semicolon, into a Disease."""
    required = {"name", "patient", *TEXT_FIELDS, *LIST_FIELDS, *PAIR_FIELDS}
    if wrong := required.symmetric_difference(entry) - {"also", "course", "bp", "celsius"}:
        raise DataError(f"{entry.get('name')}: fields {sorted(wrong)} are missing or unknown.")
    items = {
        field: tuple(tuple(item.partition("=")[::2]) for item in str(entry[field]).split("；"))
        for field in (*LIST_FIELDS, *PAIR_FIELDS)
    }
    for field in PAIR_FIELDS:
        if bare := [item for item, detail in items[field] if not detail]:
            raise DataError(f"{entry['name']}: {field} {bare} need `=` and a detail.")
    return Disease(
        name=entry["name"],
        also=tuple(entry["also"].split("；")) if "also" in entry else (),
        department=department,
        patient=str(entry["patient"]),
        course=entry.get("course", "gradual"),
        bp=entry.get("bp", "normal"),
        celsius=entry.get("celsius", "36.2-37.0"),
        texts={field: str(entry[field]) for field in TEXT_FIELDS},
        items=items,
    )


def _without(disease: Disease, hidden: list[str]) -> Disease:
    """The disease less every list item that contains one of the hidden names."""
    items = {
        field: tuple(pair for pair in pairs if not any(n in part for part in pair for n in hidden))
        for field, pairs in disease.items.items()
    }
    for field, value in (*disease.texts.items(), *items.items()):
        if not value or any(name in value for name in hidden):
            raise DataError(
                f"{disease.name}: {field} {value!r} is empty or names a held-out disease."
            )
    return dataclasses.replace(disease, items=items)
