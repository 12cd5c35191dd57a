"""How long near-duplicates take to be counted and dropped, and how much memory, for files of many rows.

    python benchmarks/near_duplicates.py [--rows 10000 100000 1000000]

The rows are made up: questions of thirteen forms about diseases with made-up names, answers of 30 to 200 words of which
few are common, as in real texts. One row in twenty nearly is another one. Each number of rows runs in a process of its
own. Printed: seconds of CPU, rows a second, what was found, and the memory that the search needs beside the rows.
"""

import argparse
import itertools
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from toolkit.core.input_settings import DataSettings
from toolkit.prepare.clean import Record, normalise
from toolkit.prepare.near import drop_across, drop_near, near_duplicates
from toolkit.prepare.split import grouped_split

FORMS = (
    "What is (are) {} ?", "What are the symptoms of {} ?", "What causes {} ?", "How to diagnose {} ?",
    "How to prevent {} ?", "Is {} inherited ?", "What are the treatments for {} ?",
    "What are the genetic changes related to {} ?",
    "How many people are affected by {} ?", "Who is at risk for {} ?", "What is the outlook for {} ?",
    "What are the signs and symptoms of {} ?", "Do you have information about {}",
)  # fmt: skip
TAILS = ("", "", "syndrome", "disease", "disorder", "type 1", "type 2", "deficiency", "familial", "congenital")
SYLLABLES = ("ba", "ne", "co", "ri", "the", "lo", "mi", "sy", "ta", "gen", "os", "ul", "phe", "dro", "car")


def word(chance: random.Random) -> str:
    """Return a made-up word."""
    return "".join(chance.choice(SYLLABLES) for _ in range(chance.randint(2, 5)))


def rows(count: int, answers: bool) -> list[Record]:
    """Return made-up records, always the same ones; their answers take long to make, and count for "drop" alone."""
    chance = random.Random(0)
    words = [word(chance) for _ in range(60_000)]
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))  # as often as in real texts
    records: list[Record] = []
    for number in range(1, count + 1):
        if number % len(FORMS) == 1:
            names = [word(chance) for _ in range(chance.choice((1, 2, 2, 3, 3, 4)))]
            name = " ".join([*names, chance.choice(TAILS)]).strip()
        question = FORMS[number % len(FORMS)].format(name)
        if number % 20 == 0:
            twin = records[chance.randrange(len(records))]
            question, answer = twin.question, f"{twin.answer} {word(chance)}"
        elif not answers:
            answer = str(number)
        else:
            answer = " ".join(chance.choices(words, cum_weights=weights, k=chance.randint(30, 200)))
        records.append(Record(str(number), number, number, "Explain:", question, answer, normalise(question)))
    return records


def main() -> None:
    """Print a line for each way and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--way", choices=("count", "drop-across", "drop"))
    arguments = parser.parse_args()
    if arguments.way:
        return measure(arguments.way, arguments.rows[0])
    print(f"{'way':<13}{'rows':>10}{'seconds':>9}{'rows/s':>9}{'found':>8}{'MB':>6}", flush=True)
    for count in arguments.rows:
        for way in ("count", "drop-across", "drop"):
            subprocess.run([sys.executable, __file__, "--way", way, "--rows", str(count)], check=True)


def measure(way: str, count: int) -> None:
    """Run one way in this process."""
    records = rows(count, way == "drop")
    splits = grouped_split(records, DataSettings())
    ways: dict[str, Callable[[], int]] = {
        "count": lambda: len(near_duplicates(splits, 0.8)),
        "drop-across": lambda: len(drop_across(splits, 0.8)[1]),
        "drop": lambda: len(drop_near(records, 0.8)[1]),
    }
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = ways[way]()
    seconds = time.process_time() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"{way:<13}{count:>10,}{seconds:>9.1f}{count / seconds:>9,.0f}{found:>8,}{memory:>6,}", flush=True)


if __name__ == "__main__":
    main()
