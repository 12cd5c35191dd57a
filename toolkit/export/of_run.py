"""The export stage of a run: all that it needs besides base and adapter comes from the run's own records."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.manifest import Manifest, Outcome, record_file
from toolkit.core.records import each_record
from toolkit.core.run_folder import SPLITS, RunFolder
from toolkit.model import base
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render_record
from toolkit.prompt.templates import chat_template
from toolkit.prompt.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from toolkit.export.imatrix_file import Imatrix


def export_run(config: Config, folder: RunFolder, manifest: Manifest, force: bool) -> Outcome:
    """Write a run's GGUF files, and its importance matrix if required; warn of records that are read differently.

    An importance matrix of the same model, adapter and records is reused unless `force`.
    """
    from toolkit.export import export, streaming
    from toolkit.export.vocab import pretokenizer_parity

    wanted = config.export
    targets = {quantization: folder.gguf(quantization) for quantization in wanted.quantizations}
    start, shards = streaming.base_of(config.model, wanted, folder.adapter, targets)
    form, name = prompt_format(config.prompt), config.run.name
    tokenizer = load_tokenizer(start.folder, form)
    template = chat_template(form, bos=bool(tokenizer.bos_text))
    pretokenizer_parity.warn_if_split_differs(start.folder, _texts(config, folder, tokenizer.eos_text))
    matrix, reused = _imatrix(config, folder, manifest, start, force) if wanted.imatrix else (None, False)
    outcome = export(
        start.folder,
        folder.adapter,
        targets,
        template,
        name,
        overrides=wanted.overrides,
        imatrix=matrix.importance() if matrix else None,
        prompt_format=form,
        shards=shards,
    )
    if matrix is None:
        return outcome
    figures = {
        "imatrix_tokens": matrix.chunks * matrix.chunk_size,
        "imatrix_matrices": len(matrix.sums),
        "imatrix_reused": reused,
    }
    return Outcome([*outcome.outputs, folder.imatrix], {**outcome.figures, **figures})


def kept_imatrix(folder: RunFolder) -> "Imatrix | None":
    """Return the importance matrix in a run folder if a run measured it, complete and with its inputs."""
    from toolkit.export import imatrix_file

    try:
        found = imatrix_file.read_imatrix(folder.imatrix)
    except ToolkitError:
        return None
    return found if found.inputs else None


def _imatrix(
    config: Config, folder: RunFolder, manifest: Manifest, start: base.Base, force: bool
) -> tuple["Imatrix", bool]:
    """Measure the trained model on its training split and keep the result next to the GGUF files, or reuse it."""
    from toolkit.export import imatrix, imatrix_file, plan

    wanted, form = config.export, prompt_format(config.prompt)
    # What these quantizations refuse is found before the model is measured.
    planned = plan(start.folder, folder.adapter, wanted.quantizations, overrides=wanted.overrides, weighed=True)
    chunks = imatrix.chunks_of_run(folder, planned, form, load_tokenizer(planned.vocabulary, form))
    known = manifest.files()
    paths = folder.adapter_files
    paths += base.source_files(start.label)
    inputs = imatrix.digest(chunks, [start.commit, *(record_file(path, folder, known).sha256 for path in paths)])
    kept = None if force else kept_imatrix(folder)
    if kept and kept.inputs == inputs:
        console.info(f"importance matrix: {folder.imatrix.name} is reused, measured on this model and these records")
        return kept, True
    matrix = imatrix.measure(start.folder, planned, chunks, inputs)
    imatrix_file.write_imatrix(folder.imatrix, matrix)
    return matrix, False


def _texts(config: Config, folder: RunFolder, eos: str) -> Iterator[str] | None:
    """Return the complete records of a run as the model reads them; None for an adapter without its records."""
    form = prompt_format(config.prompt)
    splits = [folder.split_file(side) for side in SPLITS if folder.split_file(side).is_file()]
    records = (record for side in splits for record in each_record(side))
    return (render_record(form, record, eos).text + record["output"] for record in records) if splits else None
