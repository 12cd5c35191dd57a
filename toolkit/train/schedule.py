"""The learning rate over a run, checked before the first step: transformers' own, step by step."""

from toolkit.core.train_settings import TrainSettings


def learning_rates(settings: TrainSettings, steps: int) -> list[float]:
    """Return the learning rate of each step of a run, as transformers' scheduler gives it."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=settings.learning_rate)
    course = get_scheduler(
        settings.lr_scheduler_type, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=steps
    ).lr_lambdas[0]
    return [settings.learning_rate * course(step) for step in range(steps)]


def doubts(settings: TrainSettings, steps: int) -> list[str]:
    """Say if the settings leave a run with too low a learning rate for its steps."""
    rates = learning_rates(settings, steps)
    most, idle = max(rates), sum(rate == 0 for rate in rates)
    length, warm_up = f"{steps:,} step{'s' * (steps > 1)}", settings.warmup_steps
    fewer = f"set train.warmup_steps to {max(0, steps // 10)} or train for longer (train.num_train_epochs)"
    if not most:
        return [f"nothing will be learned: the learning rate is 0 for the whole run of {length}; {fewer}"]
    if most < settings.learning_rate:
        share = f"reaches {most:.1e} at most, not {settings.learning_rate:.1e}"
        return [
            f"the warm-up of {warm_up:,} steps lasts for the whole run of {length}: the learning rate {share}; {fewer}"
        ]
    if idle > 1:  # a warm-up begins with one such step
        return [f"the learning rate is 0 in {idle:,} of {length}: nothing is learned in these"]
    return []
