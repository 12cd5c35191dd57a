"""Personal data in the rows, such as a patient's telephone: found, listed, and masked or refused (`data.personal`).

What is listed is evidence for whoever decides about the data. It proves neither that all was found nor that all
that was found is a patient's.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from toolkit.core.config import Config
from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.core.spool import Spool
from toolkit.prepare.clean import SHOWN, Record, Rejection, normalise
from toolkit.prepare.columns import Columns
from toolkit.prepare.personal.analyzer import INSTALL, Find, finder, presidio_there
from toolkit.prepare.personal.masking import Placeholders, everywhere, hidden
from toolkit.prepare.personal.passages import passages

PLACES = 3  # findings named in a refusal
_WORDS = {  # of the kinds that are no country's own number
    "CREDIT_CARD": "credit card",
    "DATE_OF_BIRTH": "date of birth",
    "EMAIL_ADDRESS": "e-mail address",
    "IBAN_CODE": "IBAN",
    "INSURANCE_NUMBER": "insurance number",
    "IP_ADDRESS": "IP address",
    "LOCATION": "place",
    "MEDICAL_RECORD": "record number",
    "PERSON": "name",
    "PHONE_NUMBER": "telephone",
    "URL_WITH_USER": "URL with a user",
}
Look = Callable[[Record | Rejection], Record | Rejection]
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class Finding:
    """One finding, without its value: `text` is what stands around its placeholder."""

    file: str
    row: int
    column: str
    kind: str
    score: float
    text: str


@dataclass
class Personal:
    """What was found in the records. `unread` counts rows to look at where Presidio is missing; `names`: looked for."""

    mode: str = "off"
    names: bool = False
    records: int = 0
    findings: Spool[Finding] = field(default_factory=Spool)
    unread: int = 0

    def add(self, more: "Personal") -> None:
        """Add what was found in further records."""
        self.records, self.unread = self.records + more.records, self.unread + more.unread
        self.findings.extend(more.findings)

    @property
    def rows(self) -> int:
        """The number of rows with a finding."""
        return len({(finding.file, finding.row) for finding in self.findings})

    @property
    def kinds(self) -> dict[str, int]:
        """Kind → number of findings, most first."""
        return dict(Counter(finding.kind for finding in self.findings).most_common())

    def counted(self) -> str:
        """Say how many of each kind were found."""
        words = {kind: _WORDS.get(kind) or kind.removeprefix("BR_").removeprefix("US_") for kind in self.kinds}
        return ", ".join(f"{count:,} {words[kind]}" for kind, count in self.kinds.items())

    def figures(self) -> dict[str, object]:
        """Return what the manifest keeps."""
        looked = self.mode != "off" and presidio_there()
        return {"mode": self.mode, "looked": looked, "names": self.names, "rows": self.rows, "kinds": self.kinds}


def looker(personal: Personal, columns: Columns, file: str, config: Config) -> Look:
    """Return what looks for personal data in a row of one table, and adds it; with `mask`, it returns it without.

    With `refuse`, rejections alone are returned without it: they are listed, and no row that is used has any.

    Raises ToolkitError (exit 3) where Presidio or the model is missing that the settings ask for.
    """
    settings = config.data
    there = settings.personal != "off" and presidio_there()
    if settings.personal != "off" and not there and (settings.personal != "warn" or settings.personal_model):
        name = "personal_model" if settings.personal == "warn" else "personal"
        raise ToolkitError(
            f'data.{name} = "{getattr(settings, name)}" needs Presidio, which is not installed',
            hint=f"`{INSTALL}`, or `--set data.personal=off`, which does not look for personal data",
            exit_code=MISSING,
        )
    find = functools.lru_cache(256)(finder(settings.personal_model)) if there else None  # for repeated instructions

    def look(row: Record | Rejection) -> Record | Rejection:
        if isinstance(row, Rejection):
            return row if find is None or settings.personal == "warn" else _masked_rejection(row, find)
        personal.records += 1
        if find is None:
            unread = settings.personal != "off" and any(map(passages, (row.question, row.answer, *_earlier(row))))
            personal.unread += unread
            return row
        masked = _look_at(row, find, columns, file, config, personal.findings)
        return masked if settings.personal == "mask" else row

    return look


def _look_at(
    record: Record, find: Find, columns: Columns, file: str, config: Config, findings: Spool[Finding]
) -> Record:
    """Add what is found in a record, and return the record with placeholders."""
    earlier = {f"history {number}": text for number, text in enumerate(_earlier(record))}
    names = {
        **dict.fromkeys(earlier, columns.earlier),
        "question": columns.question or columns.answer,
        "answer": columns.answer,
        "instruction": columns.instruction or columns.earlier,  # a chat's own system message
    }
    texts = {**earlier, **{name: getattr(record, name) for name in ("question", "answer", "instruction")}}
    if record.instruction == config.prompt.instruction:  # the settings', not the row's
        del texts["instruction"]
    own = f"{record.file}:{record.number}" if record.file else str(record.number)
    if columns.id is not None and record.id != own:
        names["id"] = columns.id
        texts["id"] = f"{columns.id}: {record.id}"  # the name of the column says what its number is
    placeholders = Placeholders([*texts.values()])
    changed: dict[str, Any] = {}
    for (name, text), spans in zip(texts.items(), everywhere([*texts.values()], find), strict=True):
        if not spans:
            continue
        changed[name], excerpts = hidden(text, spans, placeholders)
        for span, excerpt in zip(spans, excerpts, strict=True):
            findings.append(Finding(record.file or file, record.number, names[name], span.kind, span.score, excerpt))
    if "id" in changed:
        changed["id"] = own
    if not changed:
        return record
    said = [changed.pop(name, text) for name, text in earlier.items()]
    masked = replace(record, **changed, history=tuple(zip(said[::2], said[1::2], strict=True)))
    if masked.first_question == record.first_question:
        return masked
    return replace(masked, normalised=normalise(masked.first_question))


def _earlier(record: Record) -> list[str]:
    return [text for turn in record.history for text in turn]


def _masked_rejection(rejection: Rejection, find: Find) -> Rejection:
    text = rejection.text
    if len(text) >= SHOWN:
        text = _without_cut_end(text) + " …"
    # Control characters may stand inside a number, as in UTF-16 that was read as UTF-8.
    texts = [_CONTROL.sub("", part) for part in (text, rejection.detail)]
    placeholders = Placeholders(texts)
    masked = [hidden(part, spans, placeholders)[0] for part, spans in zip(texts, everywhere(texts, find), strict=True)]
    return replace(rejection, text=masked[0], detail=masked[1])


def _without_cut_end(text: str) -> str:
    """Leave out the end of a text that was cut: its last word, and those with digits before it, are parts of more."""
    words = re.findall(r"\s*\S+", text)  # one pattern for all of it would take years for a number of 30 digits
    if words and not text[-1].isspace():
        words.pop()
    while words and _DIGIT.search(words[-1]):
        words.pop()
    return "".join(words)


def for_screen(text: str, settings: DataSettings) -> str:
    """Return a text as the screen and the log may show it: with placeholders where it may be personal.

    It stays as it is with `data.personal = "off"`. Without Presidio, one that would need a look is not shown.
    """
    plain = _CONTROL.sub("", text)
    if settings.personal == "off" or not (settings.personal_model or passages(plain)):
        return text
    if not presidio_there():
        return "(not shown: it may hold personal data)"
    return hidden(plain, finder(settings.personal_model)(plain), Placeholders([plain]))[0]


def refuse_personal(personal: Personal) -> None:
    """Raise ToolkitError (exit 2) where `data.personal` is "refuse" and something was found, with the first places."""
    if personal.mode != "refuse" or not personal.findings:
        return
    first = list({(each.file, each.row, each.column): each for each in personal.findings}.values())[:PLACES]
    places = "; ".join(f"row {each.row} of `{each.file}`, {each.column}: `{each.text}`" for each in first)
    raise ToolkitError(
        f"{personal.rows:,} of {personal.records:,} rows may hold personal data ({personal.counted()}), first {places}",
        hint="`--set data.personal=mask` puts placeholders there; `--set data.personal=warn` keeps the rows and lists "
        "every place in personal.jsonl",
        exit_code=USAGE,
        details={"personal": personal.kinds},
    )


def said(personal: Personal, listed: str) -> str:
    """Say what was found, in one line; "" where nothing was asked for and found. `listed` names the list."""
    names = "" if personal.names else "; names were not looked for (data.personal_model)"
    if personal.unread:
        return (
            f"personal data was not looked for, and {personal.unread:,} of {personal.records:,} rows have long numbers "
            f"or the like: `{INSTALL}`, or `--set data.personal=off` to hear no more of it"
        )
    if not personal.findings:
        if personal.mode in ("mask", "refuse"):  # asked for, so what it did not do is said
            return f"nothing personal was found in {personal.records:,} rows{names}"
        return ""
    share = f"{personal.rows:,} of {personal.records:,} rows"
    if personal.mode == "mask":
        return f"placeholders stand for personal data in {share} ({personal.counted()}){listed}{names}"
    return (
        f"{share} may hold personal data ({personal.counted()}){listed}; "
        f"`--set data.personal=mask` puts placeholders there{names}"
    )
