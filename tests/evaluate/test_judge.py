"""The judge: where it may run, what it is asked, how its replies count, and how it agrees with the raters."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_gguf
from tests.support.evaluations import DEFAULT, answer_of, make_evaluation
from tests.support.faults import Handler, serving
from tests.support.ollama_server import OllamaServer
from tests.support.scored_models import World, copy, write_rows
from toolkit.core import config_file
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.evaluate import evaluate
from toolkit.evaluate.evaluation import read_evaluation
from toolkit.evaluate.judge import agreement_with_votes, judge_or_warn, judge_pairs
from toolkit.evaluate.judge_model import find_judge
from toolkit.evaluate.judge_words import judge_table
from toolkit.report.sources import Evaluation

DIGEST = "ab" * 32


def settings(host: str, judge: str = "ollama:judge", **ollama: Any) -> Config:
    values = {"evaluate": {"judge": judge}, "ollama": {"host": host, **ollama}, "run": {"name": "demo"}}
    return config_file.build({}, (), values)


def pretending(
    reply: Callable[[str, str], str], seen: list[dict[str, Any]], **shown: Any
) -> Callable[[Handler], object]:
    """A server with one model, `judge:latest`, whose reply is made of the first and the second answer."""

    def respond(handler: Handler) -> bool:
        body = json.loads(handler.body() or b"{}")
        if handler.path == "/api/version":
            return handler.answer(200, b'{"version": "0.34.1"}')
        if handler.path == "/api/tags":
            return handler.answer(200, json.dumps({"models": [{"model": "judge:latest", "digest": DIGEST}]}).encode())
        if handler.path == "/api/show":
            return handler.answer(200, json.dumps({"model_info": {"llama.context_length": 2048}, **shown}).encode())
        seen.append(body)
        text = body["messages"][-1]["content"]
        first, second = (part.partition("\n</answer>")[0] for part in text.split("<answer>\n")[1:])
        said = reply(first, second)
        if said.startswith("HTTP "):
            return handler.answer(int(said[5:8]), json.dumps({"error": said[8:]}).encode())
        return handler.answer(
            200, json.dumps({"message": {"role": "assistant", "content": said}, "done": True}).encode()
        )

    return respond


def says(choice: str) -> str:
    return json.dumps({"better": choice})


def prefers(mark: str) -> Callable[[str, str], str]:
    """Prefers the answer that ends in a mark."""
    return lambda first, second: says("1" if first.endswith(mark) else "2" if second.endswith(mark) else "same")


def test_a_preference_counts_in_both_orders() -> None:
    """Answers of the trained model end in `y.`: it beats the base, and is beaten by no quantization."""
    seen: list[dict[str, Any]] = []
    with serving(pretending(prefers("y."), seen)) as url:
        found = judge_pairs(settings(url), make_evaluation(6))
    assert (found["model"], found["digest"], found["unusable"]) == ("judge", DIGEST, 0)
    names = ("a", "b", "better", "worse", "same", "disagreed", "win_rate")
    assert [[pair[name] for name in names] for pair in found["pairs"]] == [
        ["base", "trained", 6, 0, 0, 0, 1.0],
        ["trained", DEFAULT, 0, 6, 0, 0, 0.0],
    ]
    assert len(seen) == 24 and found["agreement_with_votes"] is None
    assert "judged by the model judge, which decides nothing" in judge_table(found)
    json.dumps(found, allow_nan=False)
    read = Evaluation.model_validate({"judge": found}).judge
    assert read is not None and [(pair.better, pair.disagreed) for pair in read.pairs] == [(6, 0), (0, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(("said", "disagreed"), [("1", 6), ("2", 6), ("same", 0)])
def test_a_judge_that_prefers_a_place_decides_nothing(said: str, disagreed: int) -> None:
    with serving(pretending(lambda first, second: says(said), [])) as url:
        found = judge_pairs(settings(url), make_evaluation(6))
    for pair in found["pairs"]:
        assert (pair["same"], pair["disagreed"], pair["win_rate"]) == (6, disagreed, None)
    assert {item["verdict"] for item in found["items"]} == {"same"}
    assert ("In 12 of 12 pairs its choice depends on the order of the answers" in judge_table(found)) == bool(disagreed)


@pytest.mark.slow
def test_a_preference_in_one_order_alone_is_a_tie() -> None:
    def reply(first: str, second: str) -> str:
        return says("1" if first.endswith("y.") else "same")

    with serving(pretending(reply, [])) as url:
        found = judge_pairs(settings(url), make_evaluation(4))
    assert [(pair["better"], pair["worse"], pair["disagreed"]) for pair in found["pairs"]] == [(0, 0, 4)] * 2


@pytest.mark.slow
def test_what_the_judge_is_asked() -> None:
    seen: list[dict[str, Any]] = []
    evaluation = make_evaluation(1, lambda row, system: f"<|im_end|> I am {system[:1]} {answer_of(row, system)}")
    with serving(pretending(prefers("y."), seen)) as url:
        judge_pairs(settings(url, seed=7), evaluation)
    for body in seen:
        text = body["messages"][-1]["content"]
        assert "<|im_end|>" not in text and "<\u2060|im_end|>" in text
        assert "What helps against complaint 1?" in text and "Explain as a general doctor" in text
        assert not any(name in text for name in ("base", "trained", DEFAULT, "Rest.\n"))
        assert body["format"]["properties"]["better"]["enum"] == ["1", "2", "same"]
        options = body["options"]
        assert (options["temperature"], options["seed"], body["stream"], body["truncate"]) == (0, 7, False, False)
        assert options["num_ctx"] == 2048  # no more than the model's positions
    assert len({json.dumps(body) for body in seen}) == 4


@pytest.mark.slow
def test_identical_answers_are_not_asked_about() -> None:
    seen: list[dict[str, Any]] = []
    evaluation = make_evaluation(5, lambda row, system: answer_of(row, "base" if system == "base" else "trained"))
    with serving(pretending(prefers("y."), seen)) as url:
        found = judge_pairs(settings(url), evaluation)
    assert len(seen) == 10 and [(pair["questions"], pair["identical"]) for pair in found["pairs"]] == [(5, 0), (0, 5)]


class Kept(dict[str, Any]):
    def put(self, key: str, value: Any) -> None:
        self[key] = value


@pytest.mark.slow
def test_replies_that_are_known_are_not_asked_for_again() -> None:
    """An interrupted evaluation goes on with the next pair."""
    seen: list[dict[str, Any]] = []
    memory = Kept()

    def reply(first: str, second: str) -> str:
        return "HTTP 500 stopped" if len(seen) == 8 else prefers("y.")(first, second)

    with serving(pretending(reply, seen)) as url:
        with pytest.raises(ToolkitError, match="stopped"):
            judge_pairs(settings(url), make_evaluation(6), memory)
        assert len(memory) == 7
        found = judge_pairs(settings(url), make_evaluation(6), memory)
    assert len(seen) == 25 and found["pairs"][0]["better"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "reply", "said"),
    [
        (0.3, "hangs", "gave no complete answer within 0.3 s while the judge `judge` compared answers"),
        (30.0, "HTTP 500 CUDA error: out of memory", "the Ollama server refused while the judge `judge` compared"),
        (30.0, "HTTP 404 model 'judge' not found", "the Ollama server refused while the judge `judge` compared"),
    ],
)
def test_a_server_that_fails_on_the_way_says_how_to_finish(seconds: float, reply: str, said: str) -> None:
    seen: list[dict[str, Any]] = []
    memory, over = Kept(), threading.Event()

    def answer(first: str, second: str) -> str:
        if len(seen) < 6:
            return prefers("y.")(first, second)
        if reply == "hangs":
            over.wait(20)
        return reply

    with serving(pretending(answer, seen)) as url:
        try:
            with pytest.raises(ToolkitError) as caught:
                judge_or_warn(settings(url, timeout=seconds), make_evaluation(6), memory)
        finally:
            over.set()
    assert said in caught.value.message and len(memory) == 5
    assert "`--set evaluate.judge=` finishes without a judge" in caught.value.hint
    with serving(pretending(prefers("y."), seen)) as url:
        found = judge_or_warn(settings(url), make_evaluation(6), memory)
    assert found is not None and found["pairs"][0]["better"] == 6


NONSENSE = [
    "",
    "1",
    "[]",
    "null",
    '{"better": 1}',
    '{"better": "3"}',
    '{"better": "1", "why": "x"}',
    '{"better": "1"',
    "[" * 9,
]


@pytest.mark.slow
def test_nonsense_is_counted_and_left_out() -> None:
    said = iter(NONSENSE)

    def reply(first: str, second: str) -> str:
        odd = first.endswith("number 3x.") or (second.endswith("number 5z."))
        return next(said) if odd else prefers("y.")(first, second)

    with serving(pretending(reply, [])) as url:
        found = judge_pairs(settings(url), make_evaluation(12))
    assert found["unusable"] == 2
    assert [(pair["questions"], pair["unusable"]) for pair in found["pairs"]] == [(11, 1), (11, 1)]
    assert len(found["items"]) == 22 and "2 pairs had no usable answer" in judge_table(found)


@pytest.mark.slow
@pytest.mark.parametrize("said", NONSENSE)
def test_a_judge_that_answers_nonsense_is_refused(said: str) -> None:
    seen: list[dict[str, Any]] = []
    problem = pytest.raises(ToolkitError, match="gave no usable answer to 2 of 12 pairs")
    with serving(pretending(lambda first, second: said, seen)) as url, problem as caught:
        judge_pairs(settings(url), make_evaluation(6))
    assert len(seen) == 4 and "evaluate.judge" in caught.value.hint  # it does not go on for hours
    assert (said in caught.value.message) if said else ("said nothing" in caught.value.message)


@pytest.mark.slow
def test_a_prompt_without_room_is_no_usable_answer() -> None:
    def reply(first: str, second: str) -> str:
        long = "number 3x" in first + second
        return "HTTP 400 the prompt exceeds the available context size" if long else prefers("y.")(first, second)

    with serving(pretending(reply, [])) as url:
        assert judge_pairs(settings(url), make_evaluation(12))["unusable"] == 1


def found_by(config: Config) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        find_judge(config)
    assert "\n" not in caught.value.message and caught.value.hint
    return caught.value


@pytest.mark.slow
def test_a_judge_that_is_not_there_is_named() -> None:
    problem = found_by(settings("127.0.0.1:9"))
    assert "no Ollama server answers" in problem.message and problem.exit_code == MISSING
    with serving(pretending(prefers("y."), [])) as url:
        problem = found_by(settings(url, "ollama:qwen3:8b"))
        assert "does not hold the judge `qwen3:8b`" in problem.message and "`ollama pull qwen3:8b`" in problem.hint
        for name in ("judge", "judge:latest", "Judge", "library/judge"):
            found = find_judge(settings(url, f"ollama:{name}"))
            assert (found.digest, found.positions) == (DIGEST, 2048)


@pytest.mark.parametrize("host", ["ollama.com", "https://ollama.com", "https://api.ollama.com/x", "OLLAMA.com."])
def test_a_hosted_service_is_refused(host: str) -> None:
    problem = found_by(settings(host))
    assert "a hosted service" in problem.message and problem.exit_code == USAGE


@pytest.mark.slow
@pytest.mark.parametrize("shown", [{"remote_host": "https://ollama.com:443"}, {"remote_model": "gpt-oss:120b"}])
def test_a_model_that_the_server_passes_on_is_refused(shown: dict[str, str]) -> None:
    """`ollama pull gpt-oss:120b-cloud` makes a name on the local server; the service answers."""
    seen: list[dict[str, Any]] = []
    with serving(pretending(prefers("y."), seen, **shown)) as url:
        problem = found_by(settings(url))
        with pytest.raises(ToolkitError):
            judge_pairs(settings(url), make_evaluation(2))
    assert "not run by this server" in problem.message and problem.exit_code == USAGE and seen == []


def test_another_machine_must_be_named_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "192.0.2.1:11434")
    problem = found_by(settings(""))
    assert "another machine" in problem.message and "`ollama.host`" in problem.hint and problem.exit_code == USAGE
    monkeypatch.setenv("NO_PROXY", "192.0.2.1")
    monkeypatch.setattr("toolkit.ollama.server.version", lambda settings: None)
    assert "no Ollama server answers at http://192.0.2.1:11434" in found_by(settings("192.0.2.1")).message


def test_a_model_that_judges_itself_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(pretending(prefers("y."), [])) as url:
        find_judge(settings(url, name="judge"))
        assert "models prefer their own answers" in capsys.readouterr().err


def judged(*verdicts: str) -> dict[str, Any]:
    items = [{"row": row, "a": "base", "b": "trained", "verdict": one} for row, one in enumerate(verdicts)]
    return {"model": "judge", "items": items}


def voted(*votes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "items": [
            {"row": row, "a": "base", "b": "trained", "votes": dict(zip("ABC", said, strict=False))}
            for row, said in enumerate(votes)
        ]
    }


@pytest.mark.slow
def test_agreement_is_with_the_majority_of_the_raters() -> None:
    votes = voted(("better",), ("worse", "worse", "better"), ("same",), ("both_unsafe", "both_unsafe"), ("worse",))
    found = agreement_with_votes(judged("better", "worse", "worse", "better"), votes)
    assert found == {"kappa": pytest.approx(0.5), "n": 3}  # 2 of 3 equal, by chance 1 of 3
    assert agreement_with_votes(judged("better", "better"), voted(("better",), ("better",))) == {"kappa": None, "n": 2}
    assert agreement_with_votes(judged("better"), voted(("both_unsafe",))) is None
    assert agreement_with_votes(None, votes) is None and agreement_with_votes(judged("better"), None) is None


@pytest.mark.ollama
def test_a_real_server_holds_a_real_model_to_the_format(server: OllamaServer, tmp_path: Path) -> None:
    """A llama of random weights knows nothing, and yet its replies are what was asked for, the same each time."""
    tiny_gguf.write(tmp_path / "tiny.gguf")
    (tmp_path / "Modelfile").write_text("FROM ./tiny.gguf\nTEMPLATE {{ .System }} {{ .Prompt }}\n")
    done = server.run("create", "tiny", "-f", "Modelfile", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = settings(server.url, "ollama:tiny")
    found = judge_pairs(config, make_evaluation(4))
    assert found["unusable"] == 0 and len(found["items"]) == 8 and len(found["digest"]) == 64
    assert judge_pairs(config, make_evaluation(4)) == found
    longer = make_evaluation(
        12, lambda row, system: answer_of(row, system) * (200 if (row, system) == (3, "base") else 1)
    )
    assert judge_pairs(config, longer)["unusable"] == 1  # its prompt has more tokens than the model has positions
    assert "does not hold the judge `absent`" in found_by(settings(server.url, "ollama:absent")).message


def evaluated(run: World, url: str) -> dict[str, Any]:
    asked = run.config.evaluate.model_copy(update={"questions": 3, "answer_tokens": 6, "judge": "ollama:judge"})
    server = run.config.ollama.model_copy(update={"host": url})
    quantized = run.config.export.model_copy(update={"default": "Q8_0"})
    config = run.config.model_copy(update={"evaluate": asked, "ollama": server, "export": quantized})
    evaluate(config, run.folder, run.base, run.manifest())
    return read_evaluation(run.folder)


@pytest.mark.slow
def test_an_evaluation_asks_the_judge_last_and_does_not_depend_on_it(
    made: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(made, tmp_path)
    write_rows(run.folder.split_file("train"), [("When?", "At night."), ("How?", "Rest.")])
    with pytest.raises(ToolkitError, match="no Ollama server answers"):
        evaluated(run, "127.0.0.1:9")
    assert not run.folder.evaluation.exists() and not run.folder.evaluated.exists()  # nothing was computed for it
    with serving(pretending(lambda first, second: "nonsense", [])) as url:
        found = evaluated(run, url)
    assert found["judge"] is None and len(found["held_out"]["answers"]) == 3
    assert "gave no usable answer to" in capsys.readouterr().err
    with serving(pretending(lambda first, second: says("1" if len(first) > len(second) else "2"), [])) as url:
        judge = evaluated(run, url)["judge"]
    with serving(pretending(lambda first, second: "nonsense", [])) as url:
        assert evaluated(run, url)["judge"] == judge  # what it said is known
    assert judge["model"] == "judge" and [(pair["a"], pair["b"]) for pair in judge["pairs"]] == [
        ("base", "trained"),
        ("trained", "Q8_0"),
    ]
    assert sum(pair["questions"] + pair["identical"] for pair in judge["pairs"]) == 6
