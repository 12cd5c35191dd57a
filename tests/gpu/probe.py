"""Loss and gradient of one step by one backend, packed and record by record: `probe.py BACKEND WAY CONFIG BASE OUT`.

Run as a process of its own; writes tensors by name. The adapter's weights are the same for every backend. WAY is
`dequantized` or `4-bit`; of the first only the packed row is computed, with the adapter as training keeps it.
"""

import json
import sys
import zlib
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
    from toolkit.base import Base
    from toolkit.config import Config
    from toolkit.memory import Plan, Way
    from toolkit.train.choice import choose

    config = Config.model_validate(json.loads(config_path.read_text()))
    backend = choose(backend_name)  # Unsloth comes before torch's other libraries

    import torch
    from safetensors.torch import save_file

    from toolkit import tokens
    from toolkit.prompt import prompt_format
    from toolkit.run import folder_of
    from toolkit.train import attention, batches, examples
    from toolkit.train.examples import Example
    from toolkit.train.flat import Flat
    from toolkit.train.precision import Precision

    device = torch.device("cuda", 0)
    base = Base(str(base_path), base_path)
    precision = Precision(backend.precision("auto"), "cuda")
    plan = Plan(8192, 64, Way(False, dequantized=way == "dequantized"), "", None)
    model = backend.load(base, config, plan, device, precision.dtype)
    fill(model)
    model.train()
    form = prompt_format(config.prompt)
    records = examples.tokenize(folder_of(config).side("train"), tokens.load(base.folder, form), form, config.train)[:8]
    flat = (
        Flat.of([p for p in model.parameters() if p.requires_grad], precision.dtype) if way == "dequantized" else None
    )
    total = torch.tensor(float(sum(record.learned for record in records)), device=device)
    found: dict[str, Any] = {}

    def run(label: str, passes: list[list[Example]]) -> None:
        if flat is None:
            model.zero_grad(set_to_none=True)
        losses = []
        for chosen in passes:
            with precision.autocast():
                loss = backend.loss(model, batches.collate(chosen, device, multiple=batches.ALIGNED), total)
            precision.backward(loss)
            if flat is not None:
                flat.gather()
            losses.append(loss.detach().float().reshape(()))
        found[f"{label} losses"] = torch.stack(losses).cpu()
        named = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if flat is not None:
            named = [(name, part.gradient) for (name, _), part in zip(named, flat.parts, strict=True)]
        found.update({f"{label} {name}": gradient.detach().float().cpu() for name, gradient in named})

    run("packed", [records])
    if flat is not None:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)
        return
    run("single", [[record] for record in records])
    if backend.name == "peft":
        real = attention.varlen.supported
        attention.varlen.supported = lambda *_: False
        run("looped", [records])
        attention.varlen.supported = real
    alone = []
    for one in range(len(records)):  # the labels of one record in the row of all: its loss must be its own
        row = [record if place == one else batches.silent(record) for place, record in enumerate(records)]
        with torch.no_grad(), precision.autocast():
            loss = backend.loss(model, batches.collate(row, device, multiple=batches.ALIGNED), total)
        alone.append(loss.float().reshape(()))
    found["in the row"] = torch.stack(alone).cpu()
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:3], *(Path(argument) for argument in sys.argv[3:6]))
