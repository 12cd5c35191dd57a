"""The parts of evaluation.json that the pages show, and the reader of both files; null means not measured."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import read_json
from toolkit.report.report_file import Part, Report


class Measure(Part):
    """A mean with its 95 % interval over `n` rows or items."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


class Comparison(Part):
    """System `b` against system `a`; `difference` is b minus a, `p_corrected` the p-value among all comparisons."""

    measure: str
    a: str
    b: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    n: int = 0
    verdict: str


class Copied(Part):
    """The longest run of words that an answer shares with a training answer."""

    longest: int | None = None
    row: int | None = None
    text: str = ""
    median: float | None = None


class HeldOutSystem(Part):
    """One system's answers to the held-out questions."""

    chrf: Measure | None = None
    rouge_l: Measure | None = None
    nll: Measure | None = None
    tokens: Measure | None = None
    ended: Measure | None = None
    language: Measure | None = None
    copied: Copied | None = None


class SystemAnswer(Part):
    """One answer of one system."""

    text: str
    tokens: int | None = None
    ended: bool | None = None


class HeldOutAnswer(Part):
    """A held-out question with the answers of all systems."""

    row: int | None = None
    question: str
    instruction: str = ""
    reference: str = ""
    answers: dict[str, SystemAnswer] = {}


class Identical(Part):
    """How often two systems give the same answer."""

    a: str
    b: str
    share: float | None = None


class HeldOut(Part):
    """The answers to held-out questions."""

    rows: int | None = None
    questions: int | None = None
    answer_tokens: int | None = None
    systems: dict[str, HeldOutSystem] = {}
    identical: list[Identical] = []
    comparisons: list[Comparison] = []
    answers: list[HeldOutAnswer] = []


class Continued(Part):
    """Training answers that a system continued from their first words: `learned` are those it gave back."""

    rows: int = 0
    share: Measure | None = None
    longest: int | None = None
    row: int | None = None
    text: str = ""
    learned: list[int] = []
    personal: int = 0


class Memorised(Part):
    """How much comes back of training answers of which the first words are given."""

    rows: int = 0
    first_words: int = 0
    words: int = 0
    systems: dict[str, Continued] = {}


class Choice(Part):
    """One multiple-choice task."""

    task: str
    title: str = ""
    items: int | None = None
    metric: str = ""
    systems: dict[str, Measure] = {}
    comparisons: list[Comparison] = []

    @property
    def is_share(self) -> bool:
        """Tell whether its figures are shares of right answers, unlike BLEU or bits per byte."""
        return self.metric.startswith("acc") or self.metric == "exact_match"


class Preference(Part):
    """How often raters preferred system `b` to `a`."""

    a: str
    b: str
    better: int = 0
    worse: int = 0
    same: int = 0
    both_unsafe: int = 0
    win_rate: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: str = ""
    disagreed: int | None = None


class Ballot(Part):
    """One file of votes."""

    name: str = ""
    sha256: str = ""
    rater: str = ""
    votes: int | None = None


class Agreement(Part):
    """How far raters agree, on so many `items`; of a judge with them, on `n`."""

    raters: int | None = None
    items: int | None = None
    kappa: float | None = None
    method: str | None = None
    n: int | None = None


class Unsafe(Part):
    """An answer that a rater called unsafe."""

    row: int | None = None
    question: str = ""
    answer: str = ""
    system: str = ""
    rater: str = ""
    comment: str = ""


class Votes(Part):
    """What clinicians said."""

    files: list[Ballot] = []
    pairs: list[Preference] = []
    agreement: Agreement | None = None
    unsafe: list[Unsafe] = []


class Judge(Part):
    """What a local model said as a judge."""

    model: str = ""
    digest: str = ""
    pairs: list[Preference] = []
    agreement_with_votes: Agreement | None = None
    unusable: int = 0


class System(Part):
    """A system that was evaluated, or why it was not."""

    name: str
    kind: str = ""
    file: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    device: str | None = None
    skipped: str = ""
    seconds: float | None = None
    tokens: int | None = None


class Evaluation(Part):
    """evaluation.json."""

    seconds: float | None = None
    versions: dict[str, str] = {}
    systems: list[System] = []
    held_out: HeldOut | None = None
    memorised: Memorised | None = None
    choice: list[Choice] = []
    comparisons_made: int | None = None
    votes: Votes | None = None
    judge: Judge | None = None

    @property
    def comparisons(self) -> list[Comparison]:
        """All comparisons, of answers and of tasks."""
        held_out = self.held_out.comparisons if self.held_out else []
        return [*held_out, *(one for choice in self.choice for one in choice.comparisons)]


Name = Literal["report", "evaluation"]
KINDS: dict[Name, type[Report] | type[Evaluation]] = {"report": Report, "evaluation": Evaluation}


def read_source(name: Name, path: Path) -> tuple[Any, dict[str, Any], str]:
    """Read one of the two files; return it checked, as it stands there, and what is wrong with it.

    An absent file is None and no problem; of a damaged one only the problem is returned.
    """
    if not path.exists():
        return None, {}, ""
    try:
        values = read_json(path)
    except ToolkitError as exc:
        return None, {}, exc.message
    return check_source(name, values, path)


def check_source(name: Name, values: dict[str, Any], path: Path) -> tuple[Any, dict[str, Any], str]:
    """Check the content of one of the two files; the same three values."""
    try:
        return KINDS[name].model_validate(values), values, ""
    except ValidationError as exc:
        first = exc.errors()[0]
        return None, {}, f"`{path}` is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}"
