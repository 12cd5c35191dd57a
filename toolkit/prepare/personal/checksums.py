"""Check digits of numbers that name a person or an organization; each function takes the number as it was written."""

import re
from itertools import cycle

_NOT_ALPHANUMERIC = re.compile(r"[^0-9A-Z]")


def _plain(text: str) -> str:
    return _NOT_ALPHANUMERIC.sub("", text.upper())


def _mod_11(body: str, weights: list[int]) -> int:
    """Return the check digit of Receita Federal's CPF and CNPJ; a letter counts as its ASCII code minus 48."""
    rest = sum((ord(char) - 48) * weight for char, weight in zip(body, weights, strict=True)) % 11
    return 0 if rest < 2 else 11 - rest


def valid_cpf(text: str) -> bool:
    """Check a Brazilian CPF: 9 digits and 2 check digits. One digit eleven times is a number to fill in, not a CPF."""
    digits = _plain(text)
    if len(digits) != 11 or not digits.isdigit() or len(set(digits)) == 1:
        return False
    return all(int(digits[at]) == _mod_11(digits[:at], [*range(at + 1, 1, -1)]) for at in (9, 10))


def valid_cnpj(text: str) -> bool:
    """Check a Brazilian CNPJ: 12 digits or capital letters (allowed from July 2026 on), and 2 check digits.

    The source is Receita Federal's Instrução Normativa 2.229 of 2024: the weights are as before.
    """
    chars = _plain(text)
    if len(chars) != 14 or not chars[12:].isdigit() or len(set(chars)) == 1:
        return False

    def weights(count: int) -> list[int]:
        around = cycle(range(2, 10))
        return [next(around) for _ in range(count)][::-1]

    return all(int(chars[at]) == _mod_11(chars[:at], weights(at)) for at in (12, 13))


def valid_cns(text: str) -> bool:
    """Check a number of Brazil's Cartão Nacional de Saúde: 15 digits, whose sum with weights 15 to 1 divides by 11.

    The source is DATASUS: numbers begin with 1 or 2 (definitive) or 7, 8 or 9 (provisional).
    """
    digits = _plain(text)
    if len(digits) != 15 or not digits.isdigit() or digits[0] not in "12789":
        return False
    return sum(int(digit) * weight for digit, weight in zip(digits, range(15, 0, -1), strict=True)) % 11 == 0


def valid_rg(text: str) -> bool:
    """Check a Brazilian RG as São Paulo and Rio write it: 8 digits and one check digit, which may be X.

    Other states count otherwise, so a number that fails may be an RG too.
    """
    digits = _plain(text)
    if not re.fullmatch(r"\d{8}[\dX]", digits) or len(set(digits[:8])) == 1:
        return False
    expected = -sum(int(digit) * weight for digit, weight in zip(digits, range(2, 10), strict=False)) % 11
    return digits[8] == ("X" if expected == 10 else str(expected))


def valid_luhn(text: str) -> bool:
    """Check a number by Luhn's formula (ISO/IEC 7812), as credit cards have it."""
    digits = [int(char) for char in text if char.isdigit()][::-1]
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def valid_ssn(text: str) -> bool | None:
    """Return False for a US SSN that is never given out, None for others: it has no check digit.

    The source is the Social Security Administration: no part is all zeros, and the first is not 666.
    """
    digits = _plain(text)
    wrong = digits[:3] in ("000", "666") or digits[3:5] == "00" or digits[5:] == "0000" or len(set(digits)) == 1
    return False if wrong else None
