"""What is said of the learning rate before the first step."""

from typing import Any, get_args

import pytest
import torch

from toolkit.core.train_settings import ENDLESS, TrainSettings
from toolkit.train import schedule

NAMES = get_args(TrainSettings.model_fields["lr_scheduler_type"].annotation)


@pytest.mark.parametrize("name", NAMES)
def test_the_course_is_the_one_that_an_optimizer_gets(name: str) -> None:
    from transformers import get_scheduler

    settings = TrainSettings.model_validate({"lr_scheduler_type": name, "warmup_steps": 3, "learning_rate": 1e-3})
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=12)
    expected = []
    for _ in range(12):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert schedule.learning_rates(settings, 12) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_a_course_is_endless_where_more_steps_change_nothing_of_it(name: str) -> None:
    settings = TrainSettings.model_validate({"lr_scheduler_type": name, "warmup_steps": 3})
    same = schedule.learning_rates(settings, 12) == pytest.approx(schedule.learning_rates(settings, 30)[:12], abs=1e-15)
    assert same == (name in ENDLESS)


@pytest.mark.parametrize(
    ("steps", "values", "said"),
    [
        (60, {}, ""),
        (6, {"warmup_steps": 5}, ""),
        (1, {"warmup_steps": 0}, ""),
        (1, {"warmup_steps": 5}, "nothing will be learned: the learning rate is 0 for the whole run of 1 step"),
        (5, {"warmup_steps": 5}, "the warm-up of 5 steps lasts for the whole run of 5 steps"),
        (40, {"warmup_steps": 100, "lr_scheduler_type": "cosine"}, "reaches 7.8e-05 at most, not 2.0e-04"),
        (4, {"warmup_steps": 4, "lr_scheduler_type": "constant_with_warmup"}, "the warm-up of 4 steps"),
        (4, {"warmup_steps": 100, "lr_scheduler_type": "constant"}, ""),
    ],
)
def test_a_run_without_a_learning_rate_is_said(steps: int, values: dict[str, Any], said: str) -> None:
    found = schedule.doubts(TrainSettings(**values), steps)
    assert said in found[0] if said else not found


def test_what_is_advised_ends_the_doubt() -> None:
    settings = TrainSettings(warmup_steps=50)
    assert "set train.warmup_steps to 4" in schedule.doubts(settings, 40)[0]
    assert not schedule.doubts(TrainSettings(warmup_steps=4), 40)
