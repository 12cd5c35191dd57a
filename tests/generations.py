"""Run the tests that need a real Ollama server against each supported version, and print what was proven as a table.

    python -m tests.generations [--only VERSION]... [pytest's arguments]

A server is TOOLKIT_TEST_OLLAMA_0_34_0=/path/to/ollama (and so on), else what the script
TOOLKIT_TEST_OLLAMA_INSTALL builds (by default ollama/install.sh in the folder `shared` beside the repository). A row is
a test module, by the first line of its docstring; a cell says how many of its tests passed. Exit status 1 if a test
failed or a generation could not be tested.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from tests.support.ollama_server import GENERATIONS, install_script
from tests.support.places import REPOSITORY

Results = dict[str, Counter[str]]


def server_of(version: str) -> Path | None:
    """Return a generation's `ollama`, built first if need be; None where there is no way to it."""
    named = os.environ.get(f"TOOLKIT_TEST_OLLAMA_{version.removeprefix('v').replace('.', '_')}")
    if named:
        return Path(named)
    script = install_script()
    if not script.is_file():
        return None
    print(f"{version}: looking for it, building it if need be (about 10 minutes)", file=sys.stderr, flush=True)
    built = subprocess.run(["bash", str(script), version], stdout=subprocess.PIPE, text=True, check=True)
    return Path(built.stdout.split()[-1])


def tested(binary: Path, version: str, arguments: list[str]) -> Results:
    """Run the tests against one server; count outcomes by row."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        # tests/conftest.py writes each test's row into the report.
        subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "ollama", f"--junitxml={report}", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "TOOLKIT_TEST_OLLAMA": str(binary), "TOOLKIT_TEST_OLLAMA_VERSION": version},
            stdout=sys.stderr,
        )
        return read(report)


def read(report: Path) -> Results:
    """Count the outcomes of a JUnit report by row."""
    rows: Results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((c.tag for c in case if c.tag in ("failure", "error", "skipped")), "passed")
        row = next((p.get("value", "") for p in case.iter("property") if p.get("name") == "row"), "other")
        rows.setdefault(row, Counter())[outcome] += 1
    return rows


def table(found: dict[str, Results]) -> str:
    """Lay the counts out in Markdown: rows are promises, columns generations."""
    rows = dict.fromkeys(row for results in found.values() for row in results)
    lines = [["proven against a real server", *found], ["---", *("---" for _ in found)]]
    lines += [[row, *(_cell(results.get(row, Counter())) for results in found.values())] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(counts: "Counter[str]") -> str:
    ran = counts.total() - counts["skipped"]
    words = f"{counts['passed']} of {ran}" if ran else "-"
    return words + (f", {counts['skipped']} skipped" if counts["skipped"] else "")


def main() -> int:
    """Test every generation and print the table on stdout, all else on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=GENERATIONS, metavar="VERSION")
    options, arguments = parser.parse_known_args()
    found: dict[str, Results] = {}
    missing = []
    for version in options.only or GENERATIONS:
        binary = server_of(version)
        if binary is None:
            missing.append(version)
        else:
            found[version] = tested(binary, version, arguments)
    print(table(found))
    for version in missing:
        name = f"TOOLKIT_TEST_OLLAMA_{version.removeprefix('v').replace('.', '_')}"
        print(f"{version}: not tested, name its `ollama` with {name}", file=sys.stderr)
    bad = any(counts["failure"] + counts["error"] for results in found.values() for counts in results.values())
    return int(bad or bool(missing) or not any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
