"""What the doctor asks about the data: it is read, cleaned and split as prepare does it, and nothing is written."""

import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import MEDQUAD_CSV, MEDQUAD_FULL_URL, MEDQUAD_URL
from toolkit.core.run_folder import SPLITS
from toolkit.core.stage import Check
from toolkit.formats.names import first_names
from toolkit.model import base
from toolkit.prepare.bounds import MARGIN, TokenBound
from toolkit.prepare.clean import Record, Rejection
from toolkit.prepare.division import Fit, Rows, divide, rows_of
from toolkit.prepare.fit import NO_ROOM, fit
from toolkit.prepare.hub_data import PREFIX, downloaded_place, hub_refusal, is_local, parse_name
from toolkit.prepare.medquad import by_hand, full_place
from toolkit.prepare.personal import said as personal_said
from toolkit.prepare.read import read_source
from toolkit.prepare.source import locate
from toolkit.prepare.table import Table
from toolkit.prepare.thoughts import thoughts_unsaid
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer

SECONDS = 10.0  # that the server of the data has to answer

Loaded = Callable[[], Tokenizer | None]


def tokenizer_here(config: Config) -> Tokenizer | None:
    """Load the base's tokenizer if it is on this machine; None if not, or if it is no usable base.

    Raises ToolkitError where the vocabulary cannot write the prompt, as prepare does.
    """
    label = base.training_label(config.model)
    try:
        folder = base.tokenizer_folder(label, base.revision_of(label, config.model))
        if folder is not None:
            base.check_folder(folder, weights=False)
    except (ToolkitError, OSError):
        return None
    return None if folder is None else load_tokenizer(folder, prompt_format(config.prompt))


def prompt(config: Config, tokenizer: Loaded) -> Check:
    """Check that the base's vocabulary can write the prompt; raises ToolkitError where prepare would."""
    loaded = tokenizer()
    if loaded is None:
        return Check("prompt", None, "to be checked once the base is on this machine", "")
    return Check("prompt", True, f"{config.prompt.preset}, answers end in `{loaded.eos_text}`", "")


def data(config: Config, tokenizer: Loaded, *, offline: bool) -> Check:
    """Check that prepare will take the data file, or can download it; raises ToolkitError where prepare would.

    Only the first rows of a large file are read. Then, and where the answer depends on the tokenizer of a base that is
    not here, nothing is promised.
    """
    if not offline:
        absent = {"medquad": (MEDQUAD_CSV, MEDQUAD_URL), "medquad-full": (full_place(), MEDQUAD_FULL_URL)}
        for name in (name for name in absent if name in config.data.sources and not absent[name][0].exists()):
            return _medquad(*absent[name])
        for name in config.data.sources:
            if name.startswith(PREFIX) and (check := _data_set(name)):
                return check
    sources = locate(config.data, offline=offline)
    tables = [read_source(source, config.data, first_rows=True) for source in sources]
    if not all(table.whole for table in tables):
        return _first_rows(tables, {file for source in sources for file in source.files()}, config)
    rows = rows_of(tables, config)
    form = prompt_format(config.prompt)
    try:
        loaded = tokenizer()
    except ToolkitError:  # the prompt's check reports it
        loaded = None
    if loaded is None:
        return _without_tokenizer(rows, form, config)
    bound = TokenBound(loaded)
    divided = divide(rows, config, lambda records: fit(records, form, bound, config))
    sizes = ", ".join(f"{len(divided.splits[name]):,} {name}" for name in SPLITS)
    said = thoughts_unsaid(divided.records, config.prompt, loaded)
    twice = f", {divided.duplicates:,} duplicates" if divided.duplicates else ""
    found = f"{_usable(rows)}: {sizes}{twice}" + (f"; {said}" if said else "") + _and_personal(rows)
    return Check("data", True, found, "")


def _usable(rows: Rows) -> str:
    names = first_names([one.table.name for one in rows.tables], 3)
    return f"{names}, {rows.count:,} rows, {len(rows.records):,} of them usable"


def _and_personal(rows: Rows) -> str:
    found = personal_said(rows.personal, "")
    return f"; {found}" if found else ""


def _without_tokenizer(rows: Rows, form: PromptFormat, config: Config) -> Check:
    """Try the split with the records alone that fit whatever the tokenizer: those that do not can only be more."""
    try:
        divide(rows, config, _surely_fitting(form, config))
    except ToolkitError:
        divide(rows, config, lambda records: (records, []))  # what no tokenizer can change is reported at once
        found = f"{_usable(rows)}; how many fit train.max_length is unknown until the base is on this machine"
        return Check("data", None, found + _and_personal(rows), "")
    return Check("data", True, _usable(rows) + _and_personal(rows), "")


def _surely_fitting(form: PromptFormat, config: Config) -> Fit:
    """Fit records by their bytes, because a token has at least one."""
    cut = config.data.on_too_long == "truncate"

    def fits(record: Record) -> bool:
        if cut:  # of a chat the first question must fit
            text = render(form, record.first_question, record.instruction).text
        else:  # any text stands for EOS: it is one token
            prompt = render(form, record.question, record.instruction, record.history, "E")
            text = prompt.text + record.answer
        return len(text.encode("utf-8", "surrogatepass")) + MARGIN < config.train.max_length

    def fit_by_bytes(records: Sequence[Record]) -> tuple[list[Record], list[Rejection]]:
        others = [record for record in records if not fits(record)]
        too_long = [Rejection(record.number, record.line, NO_ROOM, record.question) for record in others]
        return [record for record in records if fits(record)], too_long

    return fit_by_bytes


def _first_rows(tables: Sequence[Table], files: Iterable[Path], config: Config) -> Check:
    """Say what the first rows of large files are like."""
    names = first_names([table.name for table in tables], 3)
    size = sum(file.stat().st_size for file in files)
    if not all(table.rows for table in tables):  # the end of what was read may be inside a quoted cell
        return Check("data", None, f"{names}, {console.size(size)}: too large for this check, prepare reads it", "")
    count = sum(len(table.rows) for table in tables)
    try:
        rows = rows_of(tables, config)
    except ToolkitError as exc:
        if "no usable row" not in exc.message:
            raise
        found = f"{names}: none of the first {count:,} rows can be used, the others were not read"
        return Check("data", None, found, exc.hint)
    usable = f"{len(rows.records):,} of its first {count:,} rows are usable"
    found = f"{names}, {console.size(size)}: {usable}; the others were not read"
    return Check("data", None, found + _and_personal(rows), "")


def _data_set(name: str) -> Check | None:
    """Check that a data set of the hub can be downloaded; None where it is here."""
    from huggingface_hub import HfApi

    found, split = parse_name(name)
    if is_local(found) or downloaded_place(found, split).exists():
        return None
    try:
        HfApi().auth_check(found, repo_type="dataset")
    except Exception as exc:
        refusal = hub_refusal(exc, found)
        return Check("data", False, refusal.message, refusal.hint)
    return Check("data", None, f"{name} is there, and will be looked at once it is downloaded", "")


def _medquad(place: Path, url: str) -> Check:
    fix = f"{by_hand(place)}, or set `data.source` to a file of your own"
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
    except (OSError, ValueError) as exc:
        return Check("data", False, f"MedQuAD cannot be downloaded: {getattr(exc, 'reason', None) or exc}", fix)
    shown = f" ({size / 1e6:.1f} MB)" if size else ""
    return Check("data", True, f"MedQuAD can be downloaded{shown}", "")
