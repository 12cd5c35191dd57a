"""The held-out loss: the mean over tokens, in training's precision and with its memory plan."""

from toolkit import console
from toolkit.train import batches
from toolkit.train.examples import Example
from toolkit.train.job import Job


def held_out_loss(job: Job, some: list[Example], label: str) -> float:
    """Return the mean cross entropy (nats) per learned token over all held-out records.

    Every token weighs the same, whatever batch it is in (an average of batches would favour short answers).
    """
    import torch

    plan, workers = job.plan, job.workers
    lengths = [len(example.input_ids) for example in some]
    passes = batches.lay_out(lengths, plan.tokens, max(plan.records, 1), workers.count)
    mine = passes[workers.rank :: workers.count]
    one = torch.ones((), device=job.device)
    training = job.model.training
    job.model.eval()
    losses = []
    with console.progress(label, len(mine), "batches") as progress, torch.no_grad(), job.precision.autocast():
        for members in mine:
            chosen = [some[place] for place in members] or [batches.silent(some[0])]
            losses.append(job.backend.loss(job.model, job.collate(chosen), one).float())
            progress.advance()
    job.model.train(training)
    count = sum(example.learned for example in some)
    loss = workers.sums([sum(torch.stack(losses).tolist())])[0] / max(1, count)
    if workers.first:
        console.say(f"{label}: {loss:.4f} nats per token over {len(some):,} records")
    return loss
