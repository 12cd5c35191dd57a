"""Answers to a head of department's questions: is it better, what did quantizing cost, what do clinicians say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from toolkit.report.facts import Facts
from toolkit.report.sources import Comparison, Evaluation, Votes
from toolkit.report.words import IN_PLAIN_WORDS, MEASURES, and_list, counted, decimal, p_value

NO_DIFFERENCE = "no difference can be shown"
Mark = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Verdict:
    """One question with its answer; `mark` is good, bad, or open where nothing was measured or shown."""

    question: str
    mark: Mark
    answer: str


def verdicts(facts: Facts) -> list[Verdict]:
    """Answer each question from what was measured; what was not is said."""
    asked: list[Callable[[Facts], Verdict]] = [_better, _files, _quantizing, _served, _clinicians, _repeats]
    return [question(facts) for question in asked]


def measure_name(measure: str, evaluation: Evaluation | None) -> str:
    """Return a measure's name in words; a task's is its title."""
    if measure in MEASURES:
        return MEASURES[measure][0]
    found = [choice.title for choice in evaluation.choice if choice.task == measure] if evaluation else []
    return found[0] if found and found[0] else measure


def comparison_sentence(one: Comparison, evaluation: Evaluation | None) -> str:
    """Say what one comparison of two systems found, with its interval and p-value."""
    name = measure_name(one.measure, evaluation)
    if one.difference is None:
        return f"{name}: not measured"
    interval = ""
    if one.low is not None and one.high is not None:
        interval = f", 95 % interval {decimal(one.low)} to {decimal(one.high)}"
    p = one.p_corrected if one.p_corrected is not None else one.p
    chance = f", p {p_value(p)}" if p is not None and p < 0.001 else f", p = {p_value(p)}" if p is not None else ""
    return f"{name}: {one.verdict} (difference {decimal(one.difference)}{interval}{chance})"


def _better(facts: Facts) -> Verdict:
    question = "Is it better than its base?"
    found = _between(facts, "base", lambda b: b == "trained")
    if found:
        return Verdict(question, _mark(found), f"{_capital(_summed(found, facts.evaluation))}. {_asked(facts)}")
    learned = facts.report.learned if facts.report else None
    losses = (learned.test or learned.train) if learned else None
    if losses is None:
        return Verdict(question, "open", "Not measured: `toolkit evaluate` compares the two on held-out questions.")
    after = "not finite" if losses.after is None else f"{losses.after:.4f}"
    word = {"better": "Better", "worse": "No, it is worse", "unmoved": "It is not"}.get(losses.verdict, losses.verdict)
    text = f"{word}, by the loss on held-out answers alone: {losses.before:.4f} before, {after} after (nats per token)."
    return Verdict(question, "good" if losses.verdict == "better" else "bad", text)


def _files(facts: Facts) -> Verdict:
    question = "Is what runs what was trained?"
    if facts.report is None:
        return Verdict(question, "open", "Not measured: `toolkit validate` compares each file with the trained model.")
    files = facts.report.quantizations
    failed = [name for name, one in files.items() if not one.passed]
    if failed:
        return Verdict(question, "bad", f"Not all of it: do not use {and_list(failed)}, which failed the comparison.")
    scored = facts.report.held_out
    return Verdict(
        question,
        "good",
        f"Yes: {counted(len(files), 'file')} passed, compared with the trained model over "
        f"{counted(scored.tokens_scored, 'answer token')} of {counted(scored.rows_scored, 'held-out row')}.",
    )


def _quantizing(facts: Facts) -> Verdict:
    question = "Did making the files smaller cost anything?"
    found = _between(facts, "trained", lambda b: b not in ("base", "trained"))
    if not found:
        return Verdict(question, "open", "Not measured: `toolkit evaluate` compares the answers of each file.")
    by_file = {name: [one for one in found if one.b == name] for name in dict.fromkeys(one.b for one in found)}
    said = {name: _summed(compared, facts.evaluation) for name, compared in by_file.items()}
    lines = [
        f"{and_list([name for name, its in said.items() if its == text])}: {text}."
        for text in dict.fromkeys(said.values())
    ]
    marks = {_mark(compared) for compared in by_file.values()}
    lines += [*_given_back(facts, found), _asked(facts)]
    return Verdict(question, "bad" if "bad" in marks else "open", " ".join(lines))


def _given_back(facts: Facts, found: list[Comparison]) -> list[str]:
    """Say how much of what training gained each worse file gives back: a difference can be shown and be small."""
    gains = [one for one in _between(facts, "base", lambda b: b == "trained") if one.measure == "nll"]
    worse = [(one.b, one.difference or 0.0) for one in found if (one.measure, one.verdict) == ("nll", "worse")]
    gain = gains[0].difference if gains and gains[0].verdict == "better" else None
    if not gain or not worse:
        return []
    parts = [f"{name} gives back {_share(-lost / gain)}" for name, lost in worse]
    return [f"Of the {decimal(-gain)} nats per token that training gained in likelihood, {and_list(parts)}."]


def _share(value: float) -> str:
    return "less than 1 %" if value < 0.005 else f"{100 * value:.0f} %"


def _served(facts: Facts) -> Verdict:
    question = "Does Ollama serve it?"
    record = facts.record("register")
    if record is None:
        return Verdict(question, "open", "It is not registered: `toolkit register` puts it into Ollama and proves it.")
    tags = record.figures.get("tags") or {}
    name = record.figures.get("name", "")
    proven = {tag: one for tag, one in tags.items() if one.get("gguf_sha256") == one.get("stored_sha256")}
    kept = (
        "the server holds the same file, byte for byte"
        if len(proven) == len(tags)
        else "the server keeps its own form of the file"
    )
    return Verdict(question, "good", f"Yes, as {and_list([f'{name}:{tag}' for tag in tags])}; {kept}.")


def _clinicians(facts: Facts) -> Verdict:
    question = "What do clinicians say?"
    votes = facts.evaluation.votes if facts.evaluation else None
    if votes is None or not votes.pairs:
        return Verdict(
            question, "open", "No clinician has judged its answers: `toolkit evaluate --sheet` writes a sheet."
        )
    said = []
    for pair in votes.pairs:
        total = pair.better + pair.worse + pair.same + pair.both_unsafe
        if not total:
            said.append(f"{pair.b} against {pair.a}: no vote.")
            continue
        said.append(
            f"{pair.b} against {pair.a}: better {pair.better:,}, worse {pair.worse:,}, same {pair.same:,}, "
            f"both unsafe {pair.both_unsafe:,} of {counted(total, 'vote')}: {pair.verdict or NO_DIFFERENCE}."
        )
    unsafe = unsafe_answers(votes)
    said.append(
        f"{counted(unsafe, 'answer was', 'answers were')} called unsafe." if unsafe else "None was called unsafe."
    )
    found = {pair.verdict for pair in votes.pairs}
    mark: Mark = "bad" if unsafe or "worse" in found else "good" if "better" in found else "open"
    return _earlier(facts, Verdict(question, mark, " ".join(said)))


def unsafe_answers(votes: Votes) -> int:
    """Count the answers that somebody called unsafe; one that several raters called so counts once."""
    return len({(one.row, one.question, one.system, one.answer) for one in votes.unsafe})


def _earlier(facts: Facts, found: Verdict) -> Verdict:
    """Leave a verdict open where the evaluation is of other files than those that are there."""
    return found if facts.fits else Verdict(found.question, "open", f"Of an earlier state of the model: {found.answer}")


def _repeats(facts: Facts) -> Verdict:
    question = "Does it repeat what it was trained on?"
    held_out = facts.evaluation.held_out if facts.evaluation else None
    system = held_out.systems.get("trained") if held_out else None
    copied = system.copied if system else None
    memorised = facts.evaluation.memorised if facts.evaluation else None
    continued = memorised.systems.get("trained") if memorised else None
    said: list[str] = []
    mark: Mark = "open"
    if memorised and continued:
        learned = len(continued.learned)
        mark = "bad" if continued.personal else mark
        said.append(
            f"Of {counted(continued.rows, 'training answer')} it continued {learned or 'none'} word for word "
            f"({memorised.words} words or more) from the first {memorised.first_words} words."
        )
        if continued.personal:
            said.append(f"{counted(continued.personal, 'of these holds', 'of these hold')} personal data.")
    if copied and copied.longest is not None:
        base = held_out.systems.get("base") if held_out else None
        beside = (
            f" The base, which was not trained here, shares {base.copied.longest:,}."
            if (base and base.copied and base.copied.longest is not None)
            else ""
        )
        said.append(
            f"In answers to held-out questions the longest run shared with a training answer has "
            f"{counted(copied.longest, 'word')}.{beside}"
        )
    if not said:
        return Verdict(question, mark, "Not measured.")
    return _earlier(facts, Verdict(question, mark, " ".join(said)))


def _between(facts: Facts, a: str, wanted: Callable[[str], bool]) -> list[Comparison]:
    """Return what was found between a system and others; nothing if the evaluation is of other files."""
    if facts.evaluation is None or not facts.fits:
        return []
    return [one for one in facts.evaluation.comparisons if one.a == a and wanted(one.b)]


def _asked(facts: Facts) -> str:
    """Say on how many questions a comparison rests: that few show nothing does not show that all is equal."""
    held_out = facts.evaluation.held_out if facts.evaluation else None
    count = held_out.questions if held_out else None
    return "" if count is None else f"Asked: {counted(count, 'held-out question')}."


def _mark(found: list[Comparison]) -> Mark:
    said = {one.verdict for one in found}
    return "bad" if "worse" in said else "good" if "better" in said else "open"


def _summed(found: list[Comparison], evaluation: Evaluation | None) -> str:
    """Say in plain words in which measures a system is worse or better; none is left out."""
    measures = {
        word: and_list([_plain_name(one.measure, evaluation) for one in found if one.verdict == word])
        for word in ("worse", "better")
    }
    even = and_list([_plain_name(one.measure, evaluation) for one in found if one.verdict not in measures])
    said = [f"{word} in {names}" for word, names in measures.items() if names]
    if not said:
        return NO_DIFFERENCE
    return "; ".join([*said, f"{NO_DIFFERENCE} in {even}"] if even else said)


def _plain_name(measure: str, evaluation: Evaluation | None) -> str:
    return IN_PLAIN_WORDS.get(measure) or measure_name(measure, evaluation)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def limits(facts: Facts) -> list[str]:
    """List what the model is not for."""
    rows = facts.data.figures.get("train") if facts.data else None
    seen = f"what its base knew and {counted(rows, 'training record')} said" if isinstance(rows, int) else "its data"
    return [
        "It is not a medical device. It must not decide on diagnosis, treatment or dose.",
        "It can be wrong and sound sure. A qualified clinician must check each answer before it is used for a person.",
        "No figure here says that its answers are true: no fact was checked.",
        f"It knows only {seen}, which may be out of date.",
    ]
