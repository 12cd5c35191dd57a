"""A run as Python sees it; the command line calls the same methods. Imports come late: `import toolkit` is cheap."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from toolkit import pipeline
from toolkit.core import console, streams
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.network import is_offline
from toolkit.core.streams import State
from toolkit.pipeline import arguments, beside, freshness, performing, results
from toolkit.pipeline.ahead import look_first, server_answers, stops_at_adapter
from toolkit.pipeline.findings import Answer, Compared, Findings, Finished, Reported, Status
from toolkit.pipeline.results import Done, Evaluated, Exported, Prepared, Registered, Trained, Validated
from toolkit.pipeline.speaking import Progress, be_first, speaking

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A run: its settings, and the calls that perform its stages.

    A stage that is fresh is not performed again, unless `force`. `progress` is called with every line that the command
    line would show (`print` in a notebook); None shows nothing, "terminal" what the command line shows. Whatever goes
    wrong is raised as ToolkitError, with a hint; Ctrl-C as KeyboardInterrupt, and the same call continues. Every result
    holds the warnings of its call. Several runs may work at once, each in a thread and a folder of its own.
    """

    config: "Config"
    progress: Progress = None
    warnings: tuple[str, ...] = ()
    command: Callable[[str], str] = field(default="toolkit {}".format, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *overrides: str,
        progress: Progress = None,
        **sections: Mapping[str, Any],
    ) -> "Run":
        """Read a settings file, or the folder of a run; None takes the defaults.

        Settings change by section, as in `train={"max_steps": 8}`, or as `--set` takes them, as in "train.max_steps=8".
        Raises ToolkitError (exit code 2) that lists every problem.
        """
        with speaking(progress) as state:
            arguments.check_path(path)
            from toolkit.core.config_file import build, load_config
            from toolkit.core.run_folder import folder_of, heal

            heard = len(state.warnings)
            found = load_config(Path(path), overrides, sections) if path is not None else build({}, overrides, sections)
            heal(folder_of(found))
            return cls(found, progress, tuple(state.warnings[heard:]))

    @property
    def folder(self) -> "RunFolder":
        """The run's folder, and the paths in it."""
        from toolkit.core.run_folder import folder_of

        return folder_of(self.config)

    def prepare(self, *, force: bool = False) -> Prepared:
        """Read, clean, de-duplicate and split the data."""
        return cast(Prepared, self.perform("prepare", force=force))

    def train(self, *, force: bool = False, gpus: int = 1) -> Trained:
        """Fine-tune the base model; an interrupted training continues."""
        return cast(Trained, self.perform("train", force=force, gpus=gpus))

    def export(self, *, force: bool = False) -> Exported:
        """Merge, and write all GGUF quantizations."""
        return cast(Exported, self.perform("export", force=force))

    def validate(self, *, force: bool = False) -> Validated:
        """Compare each GGUF with the trained model; ToolkitError (exit code 4) says which is too far off."""
        return cast(Validated, self.perform("validate", force=force))

    def register(self, *, force: bool = False, replace: tuple[str, ...] = ()) -> Registered:
        """Create the model in Ollama, and check it there; `replace` names models that are not ours."""
        return cast(Registered, self.perform("register", force=force, replace=replace))

    def evaluate(self, *, force: bool = False) -> Evaluated:
        """Ask base, trained model and each GGUF the same held-out questions, and compare; `run` does not do it."""
        return cast(Evaluated, self.perform("evaluate", force=force))

    def perform(self, stage: str, *, force: bool = False, gpus: int = 1, replace: tuple[str, ...] = ()) -> Done:
        """Perform one stage by its name, unless it is fresh; the doctor looks before a training."""
        from toolkit.core.run_folder import locked

        with speaking(self.progress) as state:
            arguments.check_stage(stage, gpus, replace)
            heard = len(state.warnings)
            be_first(state)
            with locked(self.folder):
                console.log_to(self.folder.log)
                done = performing.perform(
                    stage,
                    self.config,
                    self.folder,
                    force=force,
                    offline=is_offline(),
                    before=lambda: pipeline.stage(stage).costly and look_first(self.config, self.folder, (stage,)),
                    gpus=gpus,
                    replace=replace,
                )
            if done.fresh:
                console.info(f"{stage}: fresh, skipped (--force runs it again)")
            told = self._told(done, state, heard)
            if state.sink is not None:  # the command line prints the text as its result
                streams.write_log(told.summary)
            return told

    def run(self, *, force: bool = False) -> Finished:
        """Perform all stages that are out of date, in order; without an Ollama server all but `register`."""
        from toolkit.core.run_folder import locked

        with speaking(self.progress) as state:
            first = len(state.warnings)
            finished: list[Done] = []
            be_first(state)
            with locked(self.folder):
                console.log_to(self.folder.log)
                stale = {stage: why for stage, why in freshness.state(self.config, self.folder).items() if why or force}
                if not stale:
                    performing.keep_settings(self.config, self.folder)
                # Without a server all but registering is done, so its absence must not stop the run here.
                asked = look_first(self.config, self.folder, tuple(stage for stage in stale if stage != "register"))
                for stage in pipeline.STAGES:
                    if stage == "export" and stale and stops_at_adapter(self.config, self.folder):
                        break
                    if (
                        stage == "register"
                        and stale
                        and not server_answers(self.config.ollama, self.command("register"))
                    ):
                        break
                    heard = len(state.warnings)
                    done = performing.perform(
                        stage, self.config, self.folder, force=force, offline=is_offline(), before=lambda: asked
                    )
                    told = self._told(done, state, heard)
                    if stale:
                        console.info(f"{stage}: fresh, skipped" if done.fresh else told.summary)
                    finished.append(told)
            warnings = tuple(dict.fromkeys([*self.warnings, *state.warnings[first:]]))
            return Finished(tuple(finished), self.folder.path, len(finished) == len(pipeline.STAGES), warnings)

    def ask(
        self, question: str, instruction: str | None = None, *, piece: Callable[[str], object] | None = None
    ) -> Answer:
        """Ask through Ollama, or else llama.cpp; `piece` is called with each piece of the answer as it comes."""
        with speaking(self.progress) as state:
            from toolkit.ask import answer

            arguments.check_question(question, instruction)
            heard, whole = len(state.warnings), []
            through, pieces = answer(self.config, self.folder, question, instruction)
            for each in pieces:
                whole.append(each)
                if piece is not None:
                    piece(each)
            return Answer(question, "".join(whole), through, self._heard(state, heard))

    def doctor(self) -> Findings:
        """Check this machine for the run: tools, base model, data, memory and disk, Ollama; nothing is written."""
        with speaking(self.progress) as state:
            from toolkit.doctor import doctor

            heard, every = len(state.warnings), pipeline.records(pipeline.STAGES)
            found = doctor(self.config, self.folder, offline=is_offline(), stages=every)
            return Findings(tuple(found), self._heard(state, heard))

    def status(self) -> Status:
        """Say what is fresh, stale or not run, and what the Ollama server holds."""
        with speaking(self.progress) as state:
            heard = len(state.warnings)
            return beside.status(self.config, self.folder, lambda: self._heard(state, heard))

    def report(self, *, force: bool = False) -> Reported:
        """Write the page and the model card again, from the run's own files."""
        with speaking(self.progress) as state:
            heard = len(state.warnings)
            self._there(f"run `{self.command('run')}` first")
            page, card = beside.pages(self.config, self.folder, force=force)
            return Reported(page, card, self._heard(state, heard))

    def compare(self, other: "Run") -> Compared:
        """Compare this run with another one; the page is written into the other's folder."""
        with speaking(self.progress) as state:
            heard = len(state.warnings)
            for run in (self, other):
                run._there("name two runs that have at least prepared their data")
            page, found = beside.comparison((self.config, self.folder), (other.config, other.folder))
            return Compared(page, str(found), found.figures, self._heard(state, heard))

    def foresee_evaluation(self, *, force: bool = False) -> dict[str, Any]:
        """Say what an evaluation would ask, and about how long it would take (s); nothing is written."""
        with speaking(self.progress):
            return beside.foresee(self.config, self.folder, force=force)

    def write_sheet(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Write the blind sheet of the evaluation's answers for clinicians; returns its files and what it shows."""
        with speaking(self.progress):
            return beside.sheet(self.config, self.folder, dry_run=dry_run)

    def count_votes(self, files: Sequence[str | os.PathLike[str]], *, dry_run: bool = False) -> dict[str, Any]:
        """Count the votes in files that the sheet saved, keep the count in evaluation.json, and return it."""
        with speaking(self.progress):
            counted = beside.votes(self.folder, [Path(file) for file in files], dry_run=dry_run)
            if not dry_run:
                performing.update_pages(self.config, self.folder)
            return counted

    def roll_back(self, *, dry_run: bool = False, replace: tuple[str, ...] = ()) -> dict[str, Any]:
        """Give the model that `NAME:previous` holds its name back; returns what `register/rollback.py` says."""
        with speaking(self.progress):
            arguments.check_stage("register", 1, replace)
            from toolkit.register.rollback import roll_back

            return roll_back(self.config, dry_run=dry_run, replace=replace)

    def modelfile(self) -> str:
        """Return the text for `ollama create -f`; it belongs next to the run's gguf/."""
        with speaking(self.progress):
            return beside.modelfile(self.config, self.folder, self.command("run"))

    def _there(self, hint: str) -> None:
        if not self.folder.manifest.is_file():
            raise ToolkitError(f"there is no run in `{self.folder.path}`", hint=hint, exit_code=MISSING)

    def _heard(self, state: State, since: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.warnings, *state.warnings[since:]]))

    def _told(self, done: Done, state: State, since: int) -> Done:
        """Return a stage's typed result, after a warning of what is wrong with it."""
        if done.warning:
            console.warn(done.warning)
        return results.result_of(done, self.folder, self._heard(state, since))
