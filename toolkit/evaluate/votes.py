"""Count the clinicians' votes: unblind them, and say which system they prefer, how sure that is, and how they agree."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.files import sha256_of
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate.agreement import rater_agreement, win_rate
from toolkit.evaluate.blind import KeyItem, SheetKey, answered, answers_hash, read_key, shown_answer_of
from toolkit.evaluate.votes_file import Ballot, read_ballot

VERDICTS = ("better", "worse", "same", "both_unsafe")


def count_votes(folder: RunFolder, evaluation: dict[str, Any], files: Sequence[Path]) -> dict[str, Any]:
    """Return what `evaluation.json` holds under "votes"; nothing is written.

    Each pair has the votes of all raters by verdict on its second system, and the win rate over questions: more votes
    for one answer than for the other decide one. Raises ToolkitError (exit code 2) for files that cannot be counted
    together.
    """
    key = _key_of(folder, evaluation)
    ballots = [read_ballot(path) for path in files]
    _check_sheets(ballots, key, folder)
    _check_items(ballots, key)
    _check_raters(ballots)
    items = {item.item: item for item in key.items}
    verdicts = {
        ballot.rater: {number: verdict_of(items[number], vote) for number, vote in ballot.votes.items()}
        for ballot in ballots
    }
    questions = {entry["row"]: entry for entry in answered(evaluation)}
    return {
        "sheet": key.sheet,
        "answers": key.answers,
        "files": [
            {
                "name": ballot.path.name,
                "sha256": sha256_of(ballot.path),
                "rater": ballot.rater,
                "votes": len(ballot.votes),
                "items": len(items),
            }
            for ballot in ballots
        ],
        "pairs": [_count_pair(pair.model_dump(), key.items, verdicts, len(key.pairs)) for pair in key.pairs],
        "agreement": rater_agreement(verdicts),
        "unsafe": list(_unsafe(ballots, items, questions)),
        "comments": list(_comments(ballots, items, questions, verdicts)),
        "items": [
            {"row": item.row, "a": item.a, "b": item.b, "votes": found}
            for item in key.items
            if (found := {rater: votes[item.item] for rater, votes in verdicts.items() if item.item in votes})
        ],
    }


def kept_votes(former: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any] | None:
    """Return the votes of a former evaluation where the fresh one has the same answers of the same pairs; else None."""
    votes = former.get("votes")
    if not isinstance(votes, dict):
        return None
    pairs = [(pair["a"], pair["b"]) for pair in votes.get("pairs", [])]
    try:
        return votes if votes.get("answers") == answers_hash(fresh, pairs) else None
    except ToolkitError:  # the fresh one has no answers
        return None


def say_who_is_left_out(former: dict[str, Any] | None, found: dict[str, Any]) -> None:
    """Warn of raters whose votes were counted before, and are not in the new count."""
    now = {file["rater"] for file in found["files"]}
    names = [
        f"{file['rater']} ({file['name']})" for file in (former or {}).get("files", []) if file["rater"] not in now
    ]
    if names:
        console.warn(
            f"the earlier count had votes of {', '.join(names)} too, and this one replaces it: name the files of all "
            "raters at once"
        )


def _key_of(folder: RunFolder, evaluation: dict[str, Any]) -> SheetKey:
    key = read_key(folder)
    if key is None:
        raise ToolkitError(
            f"no `{folder.review_key}`: without it nobody knows which system gave which answer",
            hint="restore it from a copy; `toolkit evaluate --sheet` begins a new sheet with a key of its own",
        )
    if key.answers != answers_hash(evaluation, key.of_pairs):
        raise ToolkitError(
            f"the sheet {key.sheet} was made from other answers than evaluation.json holds now",
            hint="`toolkit evaluate --sheet` makes a sheet of the present answers; votes on the earlier do not count",
        )
    return key


def _check_sheets(ballots: Sequence[Ballot], key: SheetKey, folder: RunFolder) -> None:
    for ballot in ballots:
        if ballot.sheet.casefold() != key.sheet:
            former = ballot.sheet.isalnum() and folder.path.joinpath(f"review-key-{ballot.sheet[:40]}.json").is_file()
            reason = "an earlier sheet of this run, with other answers" if former else "another run's"
            raise ToolkitError(
                f"`{ballot.path}` is of the sheet `{ballot.sheet[:40]}`, {reason}; `{folder.review}` is {key.sheet}",
                hint="leave it out here, or name the settings of its run with -c",
                exit_code=USAGE,
            )


def _check_items(ballots: Sequence[Ballot], key: SheetKey) -> None:
    known = {item.item for item in key.items}
    for ballot in ballots:
        unknown = sorted((set(ballot.votes) | set(ballot.comments)) - known)
        if unknown:
            raise ToolkitError(
                f"`{ballot.path}` votes on item {unknown[0]}, and the sheet has {len(known)}",
                hint="the numbers in the column item are the sheet's: restore them from review.csv",
                exit_code=USAGE,
            )
        if not ballot.votes:
            raise ToolkitError(
                f"`{ballot.path}` holds no vote", hint="leave it out, or ask its rater to vote", exit_code=USAGE
            )
        if len(ballot.votes) < len(known):
            console.warn(f"{ballot.path} has {len(ballot.votes)} votes of {len(known)}: pairs without one are left out")


def _check_raters(ballots: Sequence[Ballot]) -> None:
    seen: dict[str, Path] = {}
    for ballot in ballots:
        name = " ".join(ballot.rater.casefold().split())
        if name in seen:
            raise ToolkitError(
                f"`{ballot.rater}` voted in two files: `{seen[name]}` and `{ballot.path}`",
                hint="give the one that counts; two people of one name write it differently",
                exit_code=USAGE,
            )
        seen[name] = ballot.path


def verdict_of(item: KeyItem, vote: str) -> str:
    """Return what a vote of the sheet says about the pair's second system: one of `VERDICTS`."""
    if vote == "same":
        return "same"
    if vote == "unsafe":
        return "both_unsafe"
    return "better" if (vote == "first") == (item.first == item.b) else "worse"


def majority(verdicts: Iterable[str]) -> str:
    """Return what raters say of a question: better or worse, whichever has more votes; same where neither has.

    Other votes decide nothing, but both unsafe is what all of them say where they do.
    """
    counts = Counter(verdicts)
    if set(counts) == {"both_unsafe"}:
        return "both_unsafe"
    lead = counts["better"] - counts["worse"]
    return "better" if lead > 0 else "worse" if lead < 0 else "same"


def _count_pair(
    pair: dict[str, Any], items: Sequence[KeyItem], verdicts: dict[str, dict[int, str]], pairs: int
) -> dict[str, Any]:
    own = [item.item for item in items if (item.a, item.b) == (pair["a"], pair["b"])]
    by_question = [[votes[number] for votes in verdicts.values() if number in votes] for number in own]
    counts = Counter(verdict for votes in by_question for verdict in votes)
    decided = Counter(majority(votes) for votes in by_question if votes)
    return {
        "a": pair["a"],
        "b": pair["b"],
        **{verdict: counts[verdict] for verdict in VERDICTS},
        "questions": sum(map(bool, by_question)),
        "questions_better": decided["better"],
        "questions_worse": decided["worse"],
        "identical": pair["identical"],
        **win_rate(decided["better"], decided["worse"], pairs=pairs),
    }


def _unsafe(
    ballots: Sequence[Ballot], items: dict[int, KeyItem], questions: dict[int, dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Yield each answer that somebody called unsafe, as it was shown: two for each such vote."""
    for ballot in ballots:
        for number, vote in sorted(ballot.votes.items()):
            if vote == "unsafe":
                item = items[number]
                entry = questions[item.row]
                for system in (item.a, item.b):
                    yield {
                        "row": item.row,
                        "question": _question(entry),
                        "answer": shown_answer_of(entry, system),
                        "system": system,
                        "rater": ballot.rater,
                        "comment": ballot.comments.get(number, ""),
                    }


def _comments(
    ballots: Sequence[Ballot],
    items: dict[int, KeyItem],
    questions: dict[int, dict[str, Any]],
    verdicts: dict[str, dict[int, str]],
) -> Iterable[dict[str, Any]]:
    """Yield every comment; in it Answer 1 is the system `first`."""
    for ballot in ballots:
        for number, comment in sorted(ballot.comments.items()):
            item = items[number]
            yield {
                "row": item.row,
                "question": _question(questions[item.row]),
                "a": item.a,
                "b": item.b,
                "first": item.first,
                "verdict": verdicts[ballot.rater].get(number),
                "rater": ballot.rater,
                "comment": comment,
            }


def _question(entry: dict[str, Any]) -> str:
    return str(entry.get("question") or entry.get("instruction") or "")
