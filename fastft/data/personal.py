"""Text that looks like personal data or a secret: where it stands, never what it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

_EMAIL = re.compile(r"[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
# A run of digits with the marks that people put between them: a phone number or the number of a card.
_DIGITS = re.compile(r"(?<![\w.,/=-])\+?\(?\d(?:[ ().-]{0,2}\d){6,18}(?![\w/-])")
_KEYS = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|hf_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16}"
    r"|AIza[\w-]{35}|xox[abprs]-[\w-]{20,}|glpat-[\w-]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
)


def kinds_of(text: str) -> Iterator[str]:
    """The kinds of personal data that `text` seems to hold: e-mail address, phone number, card number, key."""
    if "@" in text and _EMAIL.search(text):
        yield "e-mail address"
    numbers = [found[0] for found in _DIGITS.finditer(text)]
    if any(_is_card(number) for number in numbers):
        yield "card number"
    if any(_is_phone(number) for number in numbers):
        yield "phone number"
    if _KEYS.search(text):
        yield "key or token"


def _is_card(number: str) -> bool:
    """Whether a number has the length and the check digit (ISO 7812, Luhn) of a payment card, and begins as one."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or not re.fullmatch(r"[\d -]+", number):
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len({*digits}) > 1


def _is_phone(number: str) -> bool:
    """Whether a number is written as a phone number: with a country, or in three groups or more of 9 to 15 digits."""
    groups = re.findall(r"\d+", number)
    count = sum(map(len, groups))
    if not 9 <= count <= 15 or _is_card(number) or groups[0] in ("978", "979"):  # these begin an ISBN
        return False
    if number.startswith("+"):
        return True
    is_address = "." in number and len(groups) == 4 and all(int(group) < 256 for group in groups)
    return 3 <= len(groups) <= 5 and all(2 <= len(group) <= 4 for group in groups) and not is_address
