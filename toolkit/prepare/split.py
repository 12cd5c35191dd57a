"""Exact duplicates, and the split of the rest into train, val and test."""

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.core.run_folder import SPLITS
from toolkit.core.spool import Chosen
from toolkit.prepare.clean import Record
from toolkit.prepare.groups import tied

Splits = dict[str, Sequence[Record]]


def drop_duplicates(records: Sequence[Record]) -> tuple[Sequence[Record], int]:
    """Keep the first of each whose texts are all the same; return the rest's number as well."""
    seen: set[bytes] = set()
    first = array("Q")
    for number, record in enumerate(records):
        texts = "\0".join(record.texts).encode("utf-8", "surrogatepass")  # no record has this character
        digest = hashlib.blake2b(texts, digest_size=16).digest()  # the texts would fill the memory
        if digest not in seen:
            seen.add(digest)
            first.append(number)
    return Chosen(records, first), len(records) - len(first)


def split(records: Sequence[Record], settings: DataSettings) -> Splits:
    """Divide records as `data.split` says; raises ToolkitError if that leaves a split empty (val = 0 may be).

    No split stays empty where there are enough questions (rows, with `random`) for one each.
    """
    splits = random_split(records, settings) if settings.split == "random" else grouped_split(records, settings)
    check_filled(splits, settings)
    return splits


def check_filled(splits: Splits, settings: DataSettings) -> None:
    """Raise ToolkitError if a split is empty that must hold records."""
    for name in wanted_splits(settings):
        if not splits[name]:
            raise _empty(name, splits)


def wanted_splits(settings: DataSettings) -> list[str]:
    """Name the splits that must hold records: all, or all but val where its share is 0."""
    return [name for name in SPLITS if name != "val" or settings.val > 0]


def grouped_split(records: Sequence[Record], settings: DataSettings) -> Splits:
    """Keep all rows of one question, or of one group of `data.group_column`, in one split.

    The splits' sizes come as close to their shares as that allows. What stays together is drawn in the order of a hash
    of seed and name, so the order of the rows does not matter, and a row more moves nothing else, unless it ties two
    groups. scikit-learn's GroupShuffleSplit moves 228 of MedQuAD's 361 held-out questions then.
    """
    together = tied(records) if settings.group_column else {}
    numbers: dict[str, int] = {}  # of what stays together
    where = array("Q")
    for record in records:
        where.append(numbers.setdefault(together.get(record.normalised, record.normalised), len(numbers)))
    counts = Counter(where)
    sizes = Counter({name: counts[number] for name, number in numbers.items()})
    aims = {"test": round(settings.test * len(records)), "val": round(settings.val * len(records))}
    room = dict(aims)
    split_of: dict[str, str] = {}
    for question in sorted(sizes, key=lambda text: hashlib.sha256(f"{settings.seed}:{text}".encode()).digest()):
        split_of[question] = "train"
        for name, left in room.items():
            # Taken if the split is then no further from its size than before.
            if left > 0 and sizes[question] <= 2 * left:
                split_of[question] = name
                room[name] -= sizes[question]
                break
    _fill(split_of, sizes, {**aims, "train": len(records) - sum(aims.values())}, wanted_splits(settings))
    sides = [split_of[name] for name in numbers]
    chosen = {name: array("Q") for name in SPLITS}
    for row, number in enumerate(where):
        chosen[sides[number]].append(row)
    return {name: Chosen(records, rows) for name, rows in chosen.items()}


def _fill(split_of: dict[str, str], sizes: Counter[str], aims: dict[str, int], wanted: list[str]) -> None:
    """Give each empty split a group of another one that has two or more: the one that leaves all nearest their aims.

    Nothing moves where no split is empty. One stays empty only if there are fewer groups than splits.
    """
    rows = Counter({name: 0 for name in SPLITS})
    groups = Counter(split_of.values())
    for question, name in split_of.items():
        rows[name] += sizes[question]
    for empty in wanted:
        givers = [question for question, name in split_of.items() if groups[name] > 1]
        if groups[empty] or not givers:
            continue

        def distance(question: str, to: str = empty) -> int:
            moved = {split_of[question]: -sizes[question], to: sizes[question]}
            return sum(abs(rows[name] + moved.get(name, 0) - aims[name]) for name in SPLITS)

        taken = min(givers, key=distance)  # the first in the order of the hash, where several are as good
        former = split_of[taken]
        split_of[taken] = empty
        rows.update({former: -sizes[taken], empty: sizes[taken]})
        groups.update({former: -1, empty: 1})


def random_split(records: Sequence[Record], settings: DataSettings) -> Splits:
    """Split as the notebook does, rows of one question apart, by scikit-learn's train_test_split.

    The held-out rows are divided into val and test in proportion. Train rows keep the order of the permutation.
    """
    from sklearn.model_selection import train_test_split

    # Shares are decimals: as floats, 0.1 + 0.2 would hold out one row in ten too many.
    val, test = (Fraction(str(share)) for share in (settings.val, settings.test))
    count = min(math.ceil((val + test) * len(records)), len(records))
    for_val = round(count * val / (val + test))
    for_test = count - for_val
    if len(records) >= len(wanted_splits(settings)):
        for_val, for_test = max(for_val, int(settings.val > 0)), max(for_test, 1)
        while for_val + for_test >= len(records):  # one is left to train on
            for_val, for_test = (for_val - 1, for_test) if for_val > for_test else (for_val, for_test - 1)
    count = for_val + for_test
    if count == len(records):  # scikit-learn refuses a split without training rows
        train, held_out = [], [*range(count)]
    else:
        train, held_out = train_test_split(range(len(records)), test_size=count, random_state=settings.seed)
    numbers = {"train": train, "val": held_out[:for_val], "test": held_out[for_val:]}
    return {name: Chosen(records, array("Q", chosen)) for name, chosen in numbers.items()}


def _empty(name: str, splits: Splits) -> ToolkitError:
    rows = sum(map(len, splits.values()))
    questions = len({record.normalised for records in splits.values() for record in records})
    counts = ", ".join(f"{name} {len(splits[name])}" for name in SPLITS)
    groups = {record.group for records in splits.values() for record in records if record.group}
    of = f"{rows} usable row{'s' * (rows != 1)} of {questions} question{'s' * (questions != 1)}"
    of += f" in {len(groups)} group{'s' * (len(groups) != 1)}" if groups else ""
    return ToolkitError(f"the split leaves {name} empty: {of} give {counts}")


def ways_out(settings: DataSettings, attempt: Callable[[DataSettings], Splits]) -> str:
    """Say which settings would split the same rows, each tried by `attempt`, with the sizes that they give.

    `split = "random"` is named only where no split by questions is possible. There may be no way at all.
    """
    changes: list[dict[str, Any]] = [{"val": 0.0}] if settings.val > 0 else []
    if settings.group_column:
        changes.append({"group_column": ""})
    if settings.near_duplicates != "count":
        changes.insert(0, {"near_duplicates": "count"})
    elif settings.split == "grouped" and not settings.group_column:
        changes += [{"split": "random"}, *({"split": "random", **change} for change in changes)]
    more = f"at least {len(wanted_splits(settings))} are needed"
    for change in changes:
        try:
            splits = attempt(settings.model_copy(update=change))
        except ToolkitError:
            continue
        options = " ".join(f"--set data.{key}={'0' if value == 0 else value}" for key, value in change.items())
        sizes = ", ".join(f"{name} {len(splits[name])}" for name in SPLITS)
        if "split" in change:
            return (
                f"add rows with other questions ({more}); `{options}` is the only way without them and gives {sizes}, "
                "but then the held-out rows ask what training has seen"
            )
        return f"`{options}` gives {sizes}; or add rows with other questions ({more})"
    kind = "rows" if settings.split == "random" else "rows with other questions"
    return f"add {kind}: {more}"


def asked(splits: Splits) -> dict[str, "array[int]"]:
    """Return the questions of each split's records, hashed: the texts would fill the memory."""
    return {name: array("q", (hash(record.normalised) for record in records)) for name, records in splits.items()}


def leaked(questions: Mapping[str, "array[int]"]) -> int:
    """Count the questions that are in more than one split; a grouped split has none."""
    return sum(count > 1 for count in Counter(one for some in questions.values() for one in set(some)).values())
