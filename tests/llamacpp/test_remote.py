"""Where llama.cpp is built for a GPU, a process without torch has the file open, and answers as this one would."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import remote, scored_models
from tests.support.places import REPOSITORY
from tests.support.waiting import has_ended, wait_for
from toolkit import llamacpp
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.evaluate.scoring import llamacpp_scores
from toolkit.export import export
from toolkit.llamacpp.batched import answer_all
from toolkit.llamacpp.remote import Remote
from toolkit.llamacpp.together import logits_together
from toolkit.llamacpp.vocabulary import open_vocabulary
from toolkit.prompt.format import Part, Prompt

IDS = [5, 7, 11, 13, 17, 19]
PROMPT = Prompt((Part("### Input: ", ours=True), Part("What helps? <s> é 水", ours=False)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("remote")
    scored_models.base_model(folder / "base")
    found = {name: folder / f"a-{name}.gguf" for name in ("F32", "Q8_0")}
    export(folder / "base", None, found, "{{ messages }}", "a")
    return found


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files are opened in a process of their own."""
    remote.pretend(monkeypatch, tmp_path)


def asked(path: Path, *, exact: bool) -> dict[str, Any]:
    """All that can be asked of a file."""
    short: list[list[int]] = []

    def over(*given: Any) -> bool:
        short.append(list(given[-1]))
        return len(given[-1]) == 3

    with llamacpp.opened(path, 64, exact=exact) as llm:
        sampling = llamacpp.Sampling(temperature=0.9, top_p=0.95, top_k=40, repeat_penalty=1.1, seed=3)
        texts = llamacpp.generate(llm, IDS, 8, (), sampling)
        first = next(texts)
        found = {
            "facts": llamacpp.facts(llm),
            "tokenize": llamacpp.tokenize(llm, PROMPT),
            "served": llamacpp.served(llm, "a <s> b"),
            "text_ids": [llamacpp.text_ids(llm, "x"), llamacpp.text_ids(llm, "x", bos=True)],
            "logits": llamacpp.logits(llm, IDS, 2),
            "together": logits_together(llm, [(IDS, 1), (IDS[::-1], 3)]),
            "answers": list(answer_all(llm, [IDS, IDS[:3], IDS[:1]], 5, 2, over)),
            "over": short,
            "scores": list(llamacpp_scores(llm, [(IDS[:3], IDS[3:]), (IDS[:3], [1]), (IDS, [])])),
            "sampled": first,
            "again": "".join(llamacpp.generate(llm, IDS, 8, (), sampling)),
        }
        found["greedy"] = "".join(llamacpp.generate(llm, IDS, 8, (), llamacpp.Sampling()))
    with open_vocabulary(path) as vocabulary:
        found["vocabulary"] = (
            [vocabulary.bos, vocabulary.eos, vocabulary.adds_bos],
            [vocabulary.text(index) for index in (None, 0, 5)],
            vocabulary.served_ids("a <s> b"),
            vocabulary.chat_ids("a b"),
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exact"), [("F32", True), ("Q8_0", False)])
def test_all_answers_are_those_of_one_process(
    files: dict[str, Path], request: pytest.FixtureRequest, name: str, exact: bool
) -> None:
    here = asked(files[name], exact=exact)
    request.getfixturevalue("elsewhere")
    there = asked(files[name], exact=exact)
    assert here.keys() == there.keys() and len(here["answers"]) == 3 and here["over"]
    one, other = here.pop("logits"), there.pop("logits")
    assert np.array_equal(one, other) and one.dtype == other.dtype and one.flags.writeable == other.flags.writeable
    assert all(map(np.array_equal, here.pop("together"), there.pop("together")))
    assert here == there


@pytest.mark.slow
def test_torch_cannot_be_imported_there(files: dict[str, Path], elsewhere: None) -> None:
    with llamacpp.opened(files["Q8_0"], 64) as llm:
        assert isinstance(llm, Remote)
        list(llamacpp_scores(llm, [(IDS[:3], IDS[3:])]))  # which imports a stage
        found = remote.process_of(llm)
    assert found == {"pid": llm.process.pid, "torch": [], "can": False, "gpus": "-1"}
    with open_vocabulary(files["Q8_0"]) as vocabulary:
        found = remote.process_of(vocabulary.handle)
    assert found["pid"] != os.getpid() and found["torch"] == [] and found["gpus"] == "-1"


@pytest.mark.slow
def test_what_goes_to_the_gpu_sees_it(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remote.pretend(monkeypatch, tmp_path, "vulkan")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for exact, gpus in ((False, "3"), (True, "-1")):
        with llamacpp.opened(files["F32"], 64, exact=exact) as llm:
            assert remote.process_of(llm)["gpus"] == gpus


def test_a_build_for_the_cpu_stays_in_this_process(files: dict[str, Path]) -> None:
    with llamacpp.opened(files["Q8_0"], 64) as llm:
        assert remote.process_of(llm)["pid"] == os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "end", "hint"),
    [
        (str(int(signal.SIGSEGV)), "SIGSEGV, CUDA error: out of memory", "CUDA_VISIBLE_DEVICES=-1"),
        (str(int(signal.SIGABRT)), "SIGABRT, CUDA error: out of memory", "llama-cpp-python==0.3.36"),
        (str(int(signal.SIGKILL)), "SIGKILL", "too much memory"),
        ("exit", "exit code 7", "llama-cpp-python==0.3.36"),
    ],
)
def test_a_death_names_file_quantization_and_signal(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, end: str, hint: str
) -> None:
    remote.pretend(monkeypatch, tmp_path, "vulkan")
    with pytest.raises(ToolkitError) as caught, llamacpp.opened(files["Q8_0"], 64) as llm:
        remote.fail(llm, kind)
    assert caught.value.message.startswith(f"llama.cpp died with `{files['Q8_0']}` (Q8_0) open: {end}")
    assert hint in caught.value.hint and "\n" not in caught.value.message and caught.value.exit_code == MISSING
    with llamacpp.opened(files["Q8_0"], 64) as llm:  # another process
        assert llamacpp.text_ids(llm, "x")


@pytest.mark.slow
def test_a_death_while_the_file_is_loaded(
    files: dict[str, Path], elsewhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a GPU beside torch; the loader of the vocabulary dies too."""
    from toolkit.llamacpp import probe

    probe.require()
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    for opener in (llamacpp.opened(files["Q8_0"], 64), open_vocabulary(files["Q8_0"])):
        with pytest.raises(ToolkitError, match=r"a-Q8_0\.gguf` \(Q8_0\) open: SIGSEGV"), opener:
            pass


@pytest.mark.slow
def test_errors_come_through(files: dict[str, Path], elsewhere: None, tmp_path: Path) -> None:
    with llamacpp.opened(files["Q8_0"], 64) as llm:
        with pytest.raises(ValueError, match="no such token"):
            remote.fail(llm, "ValueError")
        with pytest.raises(ToolkitError, match="unexpected Odd: cannot be sent"):
            remote.fail(llm, "unreadable")
        with pytest.raises(ToolkitError, match="could not evaluate tokens"):
            llamacpp.logits(llm, [10**6], 0)  # no such token
        assert llamacpp.text_ids(llm, "x")  # it goes on
    (tmp_path / "odd.gguf").write_bytes(files["Q8_0"].read_bytes().replace(b"llama", b"lxama"))
    with (
        pytest.raises(ToolkitError, match="cannot load") as caught,
        llamacpp.opened(tmp_path / "odd.gguf", 64),
    ):
        pass
    assert "toolkit export --force" in caught.value.hint


@pytest.mark.slow
def test_generators_wait_for_each_other_and_can_be_left(files: dict[str, Path], elsewhere: None) -> None:
    pairs = [(IDS[:3], [number]) for number in range(200)]
    with llamacpp.opened(files["Q8_0"], 64) as llm:
        expected = list(llamacpp_scores(llm, pairs))
        one, other = llamacpp_scores(llm, pairs), llamacpp_scores(llm, pairs)
        found = [next(one), next(other), next(one)]
        other.close()
        assert [found[0], found[2], *one] == expected and found[1] == expected[0]
        left = llamacpp_scores(llm, pairs)
        next(left)
    left.close()


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once(files: dict[str, Path], elsewhere: None, tmp_path: Path) -> None:
    """Its own process ignores Ctrl-C, which a terminal sends to both, and what `timeout` sends to all."""
    started = tmp_path / "started"

    def press() -> None:
        wait_for(started.exists)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            llm.process.send_signal(number)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), llamacpp.opened(files["Q8_0"], 64) as llm:
        threading.Thread(target=press, daemon=True).start()
        remote.wait(llm, str(started))
    assert llm.process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_it_ends_with_the_process_that_asks(files: dict[str, Path], elsewhere: None) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom toolkit import llamacpp\n"
        "with llamacpp.opened(Path(sys.argv[1]), 64) as llm:\n"
        "    print(llm.process.pid, flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(files["Q8_0"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert not has_ended(pid)
        process.kill()
    wait_for(lambda: has_ended(pid))


@pytest.mark.usefixtures("elsewhere")
def test_an_export_is_checked_before_it_has_a_name(tmp_path: Path) -> None:
    """The other process gets the open file, which no path leads to."""
    scored_models.base_model(tmp_path / "base")
    target = tmp_path / "a-Q8_0.gguf"
    export(tmp_path / "base", None, {"Q8_0": target}, "{{ messages }}", "a")
    with open_vocabulary(target) as vocabulary:
        assert isinstance(vocabulary.handle, Remote) and vocabulary.served_ids("water helps")
