"""The stage `prepare`."""

from typing import TYPE_CHECKING, Any

from toolkit.core.stage import Checks, Context, Examination, Stage, StageFiles

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.manifest import Outcome
    from toolkit.core.run_folder import RunFolder
    from toolkit.prompt.tokenizer import Tokenizer


def _files(config: "Config", folder: "RunFolder") -> StageFiles:
    from toolkit.core.run_folder import SPLITS
    from toolkit.prepare.source import find_sources

    inputs = [path for source in find_sources(config.data, gone=True) for path in source.files()]
    return StageFiles(inputs, [*(folder.split_file(name) for name in SPLITS), folder.rejected, folder.personal])


def _given(config: "Config") -> None:
    from toolkit.prepare.source import find_sources

    find_sources(config.data)


def _before(context: Context) -> None:
    from toolkit.prepare.source import locate

    locate(context.config.data, offline=context.offline)


def _run(context: Context) -> "Outcome":
    from toolkit.model import base
    from toolkit.prepare import prepare
    from toolkit.prepare.source import find_sources
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.tokenizer import load_tokenizer

    config = context.config
    found = base.resolve_training(config.model, weights=False)
    tokenizer = load_tokenizer(found.folder, prompt_format(config.prompt))
    return prepare(config, context.folder, find_sources(config.data), tokenizer)


def _summary(figures: dict[str, Any], folder: "RunFolder") -> str:
    from toolkit.core.of_chats import of_chats

    shares = ", ".join(f"{figures[name]:,} {name}" for name in ("train", "val", "test"))
    return "\n".join(
        [
            f"{figures['rows']:,} rows: {figures['kept']:,} kept ({shares})",
            f"{figures['duplicates']:,} dropped as exact duplicates, {figures['rejected']:,} rejected, "
            f"{figures['truncated']:,} truncated",
            f"{figures['questions']:,} questions, {figures['leaked_questions']:,} of them in more than one split, "
            f"{figures['near_duplicates']:,} held-out near-duplicates of training questions",
            *of_chats(figures),
        ]
    )


def _checks(there: Examination) -> Checks:
    import functools

    from toolkit.prepare import checks

    @functools.cache
    def tokenizer() -> "Tokenizer | None":
        return checks.tokenizer_here(there.config)

    return [
        ("data", lambda: checks.data(there.config, tokenizer, offline=there.offline)),
        ("prompt", lambda: checks.prompt(there.config, tokenizer)),
    ]


STAGE = Stage(
    name="prepare",
    settings=("data", "prompt", "model.base", "model.revision", "train.max_length"),
    files=_files,
    given=_given,
    before=_before,
    run=_run,
    summary=_summary,
    checks=_checks,
)
