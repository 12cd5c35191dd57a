"""Loss and gradient of one step by one backend, packed and record by record: `probe.py BACKEND WAY CONFIG BASE OUT`.

Run as a process of its own; writes tensors by name, and beside them a JSON file: `rows`, the rows that the collator
makes of the records, and `refused`, Unsloth's reason if it does not train this base; there are no tensors then. The
adapter's weights are the same for every backend. WAY is `4-bit`, `dequantized` or `fp8`; of the last two only the
packed row is computed. The trainer's own collator and loss are used.
"""

import json
import sys
import traceback
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any


def fill(model: Any) -> None:
    """Give each trainable weight values that depend on its name alone; both LoRA matrices get a gradient then."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def main(backend_name: str, way: str, config_path: Path, base_path: Path, out: Path) -> None:
    from toolkit.train.backend import UnslothFailed

    said: dict[str, Any] = {"rows": 0, "refused": ""}
    try:
        said["rows"] = compute(backend_name, way, config_path, base_path, out)
    except UnslothFailed as exc:
        traceback.print_exception(exc)
        said["refused"] = exc.reason
    out.with_suffix(".json").write_text(json.dumps(said))


def compute(backend_name: str, way: str, config_path: Path, base_path: Path, out: Path) -> int:
    """Compute losses and gradients of eight records, and write them; returns the rows of their micro-batch."""
    from toolkit.core.config import Config
    from toolkit.core.run_folder import folder_of
    from toolkit.model.base import Base
    from toolkit.model.memory_plan import Strategy
    from toolkit.train.backend_choice import choose_backend
    from toolkit.train.job import lay_out_job, process_state

    config = Config.model_validate(json.loads(config_path.read_text()))
    backend = choose_backend(backend_name)  # Unsloth comes before torch's other libraries

    import torch
    from safetensors.torch import save_file

    from toolkit.train import example_table, trainer

    base, precision = Base(str(base_path), base_path), backend.precision("auto")
    job = lay_out_job(config, folder_of(config), base, backend, precision, restart=False, at_most=0)
    job.plan = replace(job.plan, strategy=Strategy(False, dequantized=way != "4-bit", fp8=way == "fp8"))
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[precision]
    model = backend.load(base, config, job.plan, process_state(backend).device, dtype)
    rows = example_table.dataset(job.splits["train"])
    made = trainer.make(job, model, rows.select(job.order.reshape(-1)), None)
    model = made.accelerator.prepare(model)  # the trainer's autocast
    fill(model)
    model.train()
    records = [rows[place] for place in range(8)]
    total = torch.tensor(sum(sum(label != -100 for label in one["labels"][1:]) for one in records)).to(made.args.device)
    found: dict[str, Any] = {}

    def loss_of(chosen: list[dict[str, Any]]) -> Any:
        inputs = made._prepare_inputs(made.data_collator(chosen))
        return made.compute_loss(model, inputs, num_items_in_batch=total)

    def run(label: str, passes: list[list[dict[str, Any]]]) -> None:
        model.zero_grad(set_to_none=True)
        losses = []
        for chosen in passes:
            loss = loss_of(chosen)
            made.accelerator.backward(loss)
            losses.append(loss.detach().float().reshape(()))
        found[f"{label} losses"] = torch.stack(losses).cpu()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.dtype == torch.float32, f"{name} was rounded"
                found[f"{label} {name}"] = parameter.grad.detach().float().cpu()

    run("packed", [records])
    if way == "4-bit":
        run("single", [[record] for record in records])
        alone = []
        for one in range(len(records)):  # the labels of one record in the row of all: its loss must be its own
            row = [
                record if place == one else {**record, "labels": [-100] * len(record["labels"])}
                for place, record in enumerate(records)
            ]
            with torch.no_grad():
                alone.append(loss_of(row).float().reshape(()))
        found["in the row"] = torch.stack(alone).cpu()
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)
    return len(made.data_collator(records)["input_ids"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(Path(argument) for argument in sys.argv[3:6]))
