"""What a registration says of its proof at its end."""

from pathlib import Path

from toolkit.cli import summary
from toolkit.core.run_folder import RunFolder
from toolkit.pipeline import Done

PARTED = {"after": 24, "lead": 0.2051, "server_lead": 0.0377, "llama.cpp": " a", "server": " b"}
NEAR = {"after": 7, "lead": 0.01, "server_lead": None, "llama.cpp": " a", "server": " b"}


def tag(*parted: dict[str, object]) -> dict[str, object]:
    greedy = {"answers": 10, "agreed": 10 - len(parted), "rounding": 0.817, "parted": list(parted)}
    proof = {"prompts_verified": 192, "prompts_counted": 68, "greedy": greedy, "done_reason": "stop"}
    return {"digest": "ab" * 32, **proof}


def test_where_greedy_answers_part_is_shown() -> None:
    figures = {
        "server": "http://127.0.0.1:1",
        "server_version": "0.34.1",
        "name": "m",
        "tags": {"f16": tag(), "q4_k_m": tag(PARTED, NEAR), "latest": tag(PARTED, NEAR)},
    }
    done = Done("register", fresh=False, why="", seconds=1.0, figures=figures)
    payload, text = summary.of(done, RunFolder(Path("exports/m"), "m"))
    assert payload["tags"] == figures["tags"]
    assert "registered in Ollama 0.34.1 at http://127.0.0.1:1" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip().startswith("m:")}
    assert "10 of 10" in rows["m:f16"] and "8 of 10" in rows["m:latest"] and " 192 " in rows["m:latest"]
    assert text.splitlines()[-1] == (
        "m:q4_k_m: 2 of 10 answers part from llama.cpp's, after 7 to 24 equal tokens, over two that are at most "
        "0.205 logits apart (rounding makes up to 0.82 in this file)"
    )
    assert sum("part from" in line for line in text.splitlines()) == 1
