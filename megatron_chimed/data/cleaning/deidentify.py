"""Replaces personal data in medical text by placeholders that name its kind.

There are two kinds of rule. What can be recognised by itself is replaced anywhere: an ID card by
its region, date and check digit, a bank card by its issuer and check digit, a mobile number by its
prefix and length, a telephone number by its area code, a plate and an e-mail address by their
forms, an address down to the room. Record numbers, passports, names, other addresses and birth
dates are replaced only after a label. So doses, laboratory values, years, drug approval numbers and
ICD codes stay; so do hotlines of up to five digits, a surname alone ("Dr Zhang"), the names of
authors and of formulas, and the speakers of a dialogue.
"""

import itertools
import re

from megatron_chimed.data.cleaning.contact_rules import CONTACT_RULES
from megatron_chimed.data.cleaning.document_rules import DOCUMENT_RULES
from megatron_chimed.data.cleaning.normalize import TextChange
from megatron_chimed.data.cleaning.person_rules import PERSON_RULES
from megatron_chimed.data.cleaning.personal_data import PersonalDataRule, Search

# A number after the label of a record is none of a telephone: documents come first.
RULES = (*DOCUMENT_RULES, *CONTACT_RULES, *PERSON_RULES)
# Most texts need nothing but the first search of each group.
GROUPS = tuple(
    (need, tuple(rules)) for need, rules in itertools.groupby(RULES, lambda rule: rule.needs[0])
)


def deidentify(text: str) -> tuple[str, list[TextChange]]:
    """Replaces personal data by placeholders.

    Returns:
        The text, and the number of replacements of each rule that applied. The example is the
        placeholder alone: the text beside it may hold a name that no rule found.
    """
    counts: dict[str, int] = {}
    placeholders: dict[str, str] = {}
    for need, rules in GROUPS:
        if not need(text):
            continue
        known: dict[Search, bool] = {}  # of the text as it is now
        for rule in rules:
            if not _may_match(rule, text, known):
                continue
            text, count = _replace(rule, text)
            if count:
                known.clear()
                counts[rule.name] = counts.get(rule.name, 0) + count
                placeholders[rule.name] = rule.placeholder
    return text, [TextChange(name, counts[name], placeholders[name]) for name in counts]


def _may_match(rule: PersonalDataRule, text: str, known: dict[Search, bool]) -> bool:
    """Whether all that a rule needs is found; most rules need what others need too."""
    for need in rule.needs[1:]:
        if need not in known:
            known[need] = need(text) is not None
        if not known[need]:
            return False
    return True


def _replace(rule: PersonalDataRule, text: str) -> tuple[str, int]:
    count = 0

    def substitute(match: re.Match[str]) -> str:
        nonlocal count
        if not rule.is_valid(match[0][len(match[1]) :]):
            return match[0]
        count += 1
        return match[1] + rule.placeholder

    return rule.pattern.sub(substitute, text), count
