"""The whole job from Python, in a process of its own: two runs at once, each in a thread, and nothing is printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import save_model
from tests.support.places import REPOSITORY

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys, threading
from pathlib import Path
from toolkit import Run, ToolkitError

base, data, place = map(Path, sys.argv[1:])
lines, told = {"a": [], "b": []}, {}

def work(name, progress):
    run = Run.load(
        None, progress=progress, run={"name": name, "folder": place}, data={"source": data}, model={"base": base},
        train={"max_steps": 2, "max_length": 512, "gradient_checkpointing": False, "learning_rate": 1e-3},
        export={"quantizations": ["F32", "Q8_0"], "default": "Q8_0"},
        validate={"rows": 3, "max_kl": {"Q8_0": 0.1}, "answer_tokens": 4}, ollama={"host": "127.0.0.1:9"},
    )
    done = run.run()
    prepared, trained, exported, validated = done.stages
    again = run.run()
    answer = run.ask("What helps against a cold?")
    try:
        run.register()
    except ToolkitError as problem:
        refused = [problem.exit_code, problem.message]
    told[name] = {
        "kinds": [type(stage).__name__ for stage in done.stages], "registered": done.registered,
        "fresh": [[stage.fresh for stage in each.stages] for each in (done, again)],
        "warnings": done.warnings, "paths": [str(trained.adapter), *map(str, exported.gguf.values())],
        "losses": [trained.held_out_loss_before, trained.held_out_loss_after], "mean_kl": validated.mean_kl,
        "through": answer.through, "refused": refused, "text": str(validated),
    }

sinks = {"a": lines["a"].append, "b": None}
threads = [threading.Thread(target=work, args=each) for each in sinks.items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
(place / "told.json").write_text(json.dumps([told, lines]))
"""


def test_two_runs_at_once_do_the_whole_job_in_silence(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    place = tmp_path / "results"
    place.mkdir()
    arguments = [str(base), str(REPOSITORY / "data" / "sample.csv"), str(place)]
    done = subprocess.run(  # afresh: what libraries say when they are imported is to be silent too
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    told, lines = json.loads((place / "told.json").read_text())
    for name in ("a", "b"):
        found = told[name]
        assert found["kinds"] == ["Prepared", "Trained", "Exported", "Validated"] and found["registered"] is False
        assert found["fresh"] == [[False] * 4, [True] * 4]
        assert all(Path(path).exists() and f"/{name}/" in path for path in found["paths"])
        assert all(loss > 0 for loss in found["losses"]) and found["mean_kl"]["Q8_0"] < 0.1
        assert found["through"] == "llama.cpp" and "Q8_0" in found["text"]
        assert found["refused"][0] == 3 and "no Ollama server" in found["refused"][1]
        missing = [text for text in found["warnings"] if "the model is not registered" in text]
        assert len(missing) == 1 and "toolkit register" in missing[0]
        log = (place / name / "log.txt").read_text()
        assert log.count("train (first time)") == 1 and all(text in log for text in found["warnings"])
    said = "\n".join(lines["a"])
    for stage in ("prepare", "train", "export", "validate"):
        assert f"\n{stage} (first time)" in said and f"{stage}: fresh, skipped" in said
    assert "held-out loss at step 2" in said and lines["b"] == []
