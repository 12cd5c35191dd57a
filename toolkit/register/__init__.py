"""Register the exported GGUF files with an Ollama server, prove them there, and only then give them their names."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import httpx

from toolkit.core import console, output_settings
from toolkit.core.config import Config
from toolkit.core.errors import FAILED, USAGE, ToolkitError
from toolkit.core.files import writing
from toolkit.core.manifest import Outcome
from toolkit.core.run_folder import RunFolder
from toolkit.ollama import blobs, server, transaction
from toolkit.ollama.address import server_address
from toolkit.ollama.failures import ServerError, translate_errors
from toolkit.ollama.modelfile import Modelfile
from toolkit.ollama.transaction import LATEST, Transaction
from toolkit.prompt.format import prompt_format
from toolkit.prompt.tokenizer import load_tokenizer
from toolkit.register import model_spec as specs
from toolkit.register import prompt_parity, room, verify


def register(
    config: Config,
    folder: RunFolder,
    eos: str,
    files: dict[str, Path],
    digests: dict[str, str],
    held_out: Sequence[dict[str, Any]],
    *,
    replace: Collection[str] = (),
) -> Outcome:
    """Register each of the files as `name:quantization` and `export.default` as `name:latest` too, or change nothing.

    `eos` is the EOS token's text; `files` and `digests` (SHA-256, hex) are by quantization; `held_out` holds rows with
    instruction and input. What `latest` held is kept as `name:previous`, what another tag held as `name:previous-TAG`.
    `replace` names, as `name:tag`, models that are not ours and may be replaced; a copy of them is kept too. It may
    also name what another machine left unfinished. Raises ToolkitError: exit 3 without a usable server, 2 for settings,
    1 for a failure on the way. Then, as after Ctrl-C, every name holds what it held before.
    """
    form = prompt_format(config.prompt)
    tokenizer = load_tokenizer(folder.adapter, form)
    described = specs.describe_model(config, folder, eos)
    spec = described.spec
    name, default = specs.model_name(config), config.export.default
    order = sorted(_check_files(files, default), key=lambda quantization: quantization == default)
    tags = [*(quantization.lower() for quantization in order), LATEST]
    copies = transaction.copies_of(tags)
    named = specs.tags_to_replace(name, replace, [*tags, *copies.values()])
    _warn_of_a_short_context(config, spec)
    _warn_of_penalties(spec)
    room.warn_of_positions(spec, files[default])
    room.check_prompts_fit(spec, files[default], form, tokenizer, held_out)

    version = server.require(config.ollama)
    doing = translate_errors(config.ollama, f"registering `{name}`")
    with (
        server.http(config.ollama) as http,
        doing,
        transaction.begin(http, name, config.ollama.timeout, replace=named) as work,
    ):
        former = transaction.user_tags(work.held())
        touched = list(dict.fromkeys([*tags, *copies.values()]))
        theirs = blobs.foreign(http, name, [tag for tag in touched if tag in former])
        blobs.refuse_foreign(name, [tag for tag in theirs if tag not in named])
        copies = transaction.copies_of(tags, {tag: former[tag] for tag in theirs})

        def guard(held: dict[str, str]) -> None:  # somebody may have taken a name since
            new = [tag for tag in touched if tag in held and held[tag] != former.get(tag)]
            blobs.refuse_foreign(name, blobs.foreign(http, name, new))

        figures: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for quantization in order:
            model = work.temporary("new", quantization.lower())
            path, digest = files[quantization], digests[quantization]
            _put(config, work, model, path, digest, spec)
            with translate_errors(config.ollama, f"proving `{name}:{quantization.lower()}`"):
                proof: dict[str, Any] = {"gguf_sha256": digest, "stored_sha256": verify.check_shown(http, model, spec)}
                proof |= prompt_parity.prove_prompts(http, model, path, form, tokenizer, held_out)
                proof |= verify.smoke(http, model, config.validation, unload=quantization != default)
            _check_stored(version, path, proof)
            figures[quantization.lower()] = proof
            sources[quantization.lower()] = model
        figures[LATEST] = figures[default.lower()]
        sources[LATEST] = sources[default.lower()]
        with writing(folder.modelfile) as file:  # a full disk here is found before the server changes
            file.write(described.text.encode())
            file.flush()
            os.fsync(file.fileno())
            listed = transaction.commit(work, sources, copies=copies, guard=guard)
    _say_what_stays(name, former, [*tags, *listed])
    for tag, copy in copies.items():
        if copy in listed and former.get(tag) == listed[copy]:
            console.info(f"what `{name}:{tag}` held is kept as `{name}:{copy}`")
    if described.unwritable:
        console.warn(
            f"registered, but `{folder.modelfile}` cannot be used with `ollama create`: "
            + "; ".join(described.unwritable)
        )
    return Outcome(
        [folder.modelfile],
        {
            "server": server_address(config.ollama),
            "server_version": version,
            "name": name,
            "tags": {tag: {"digest": listed[tag], **figures[tag]} for tag in sources},
        },
    )


def _say_what_stays(name: str, former: Collection[str], written: Collection[str]) -> None:
    """Name the quantizations of earlier registrations that keep their tags: these settings say nothing of them."""
    stay = [tag for tag in former if tag.upper() in output_settings.QUANTIZATIONS and tag not in written]
    for tag in sorted(stay):
        console.info(
            f"`{name}:{tag}` stays as it was: `ollama.tags` does not name it (`ollama rm {name}:{tag}` removes it)"
        )


def modelfile_text(config: Config, folder: RunFolder, eos: str) -> str:
    """Return the Modelfile of the default quantization, for a file in the run folder.

    `ollama create NAME -f FILE` makes the same model from it. Raises ToolkitError as `register` does for settings, and
    (exit 2) if a value cannot be written in a Modelfile.
    """
    described = specs.describe_model(config, folder, eos)
    if described.unwritable:
        raise ToolkitError(
            "; ".join(described.unwritable),
            hint="`toolkit register` makes the model through the server's API, which accepts any text",
            exit_code=USAGE,
        )
    room.warn_of_positions(described.spec, folder.gguf(config.export.default))
    return described.text


def _check_files(files: dict[str, Path], default: str) -> list[str]:
    missing = [str(path) for path in files.values() if not path.is_file()]
    if default not in files or missing:
        what = ", ".join(f"`{path}`" for path in missing) or f"the {default} file"
        raise ToolkitError(f"there is no GGUF file to register: {what} is missing", hint="run `toolkit export` first")
    return list(files)


def _warn_of_a_short_context(config: Config, spec: Modelfile) -> None:
    needed = config.train.max_length + config.ollama.num_predict
    if spec.parameters["num_ctx"] < needed:
        console.warn(
            f"num_ctx {spec.parameters['num_ctx']:,} is less than train.max_length + num_predict = {needed:,}: "
            "the server silently cuts longer prompts"
        )


def _warn_of_penalties(spec: Modelfile) -> None:
    """Warn that a penalty, from the settings or the user's template, changes the distribution that was trained."""
    neutral = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    given = [f"{name} {spec.parameters[name]:g}" for name, value in neutral.items() if name in spec.parameters
             and spec.parameters[name] != value]  # fmt: skip
    if given:
        console.warn(
            f"{', '.join(given)}: answers come from a different distribution than the one that was trained and that "
            "`toolkit validate` measures; its report shows the effect of `ollama.repeat_penalty`"
        )


def _put(config: Config, work: Transaction, model: str, path: Path, digest: str, spec: Modelfile) -> None:
    """Upload a file unless the server has it, and make a model from it under a temporary name."""
    for last in (False, True):
        with translate_errors(config.ollama, f"uploading `{path.name}`"):
            if not blobs.upload(work.http, path, digest):
                console.info(f"{path.name}: the server has it already")
        try:
            with translate_errors(config.ollama, f"creating a model from `{path.name}`"):
                blobs.create(work.http, model, path.name, digest, spec)
            return
        except ToolkitError as exc:
            # Another call that gives up deletes its models, and with them blobs that no name holds yet.
            lost = isinstance(exc.__cause__, ServerError) and not _still_there(work.http, digest)
            if last or not lost:
                raise


def _still_there(http: httpx.Client, digest: str) -> bool:
    try:
        return blobs.has_blob(http, digest)
    except (httpx.HTTPError, ServerError):
        return True  # then that is not the reason


def _check_stored(version: str, path: Path, proof: dict[str, Any]) -> None:
    """Compare the digest of the file that the server runs with ours; some servers rewrite what they receive."""
    if proof["stored_sha256"] == proof["gguf_sha256"]:
        return
    if server.rewrites(version) is False:
        raise ToolkitError(
            f"the Ollama server stored a different file than `{path.name}`: its SHA-256 is {proof['stored_sha256']}",
            hint="run the same command again; if it still fails, report it with the server's version",
            exit_code=FAILED,
        )
    console.info(f"{path.name}: this server rewrites the files that it stores; both digests are recorded")
