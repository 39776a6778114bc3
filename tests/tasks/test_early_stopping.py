import pytest

from softmaxfree.errors import InputError
from softmaxfree.tasks.early_stopping import LateEarlyStopping
from tests.tasks.test_classification import Squares, fit, task


def scored(scores, patience=1, **arguments):
    """Runs epochs of given scores; returns the Trainer."""
    module, scores = task(warmup_epochs=0), iter(scores)

    def log():
        module.log("val/score", next(scores))

    module.on_validation_epoch_end = log
    stop = LateEarlyStopping("val/score", patience)
    return fit(module, Squares(num_images=8), stop, limit_train_batches=1, **arguments)


def test_it_stops_in_the_second_half_and_says_why(capsys):
    scores = [0.9, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.3, 0.25, 0.1, 0.1, 0.1]  # the best of all is a lucky early one
    assert scored(scores, 2, max_epochs=12).current_epoch == 9
    line = "in their second half none was better than epoch 7, with val/score 0.3000, for 2 epochs"
    assert f"stopped after epoch 9 of 12: {line}" in (capsys.readouterr().out)


def test_an_equal_score_with_a_lower_loss_is_better():
    module = task(warmup_epochs=0)
    losses = iter([9.0, 9.0, 9.0, 9.0, 8.0, 7.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0])

    def log():
        module.log_dict({"val/score": 1.0, "val/loss": next(losses)})

    module.validation_step = lambda *given, **options: None
    module.on_validation_epoch_end = log
    stop = LateEarlyStopping("val/score", 2)
    trainer = fit(module, Squares(num_images=8), stop, limit_train_batches=1, max_epochs=12)
    assert trainer.current_epoch == 9  # two after the seventh, whose loss is the least


def test_patience_is_in_epochs_whatever_is_between_validations():
    falling = [0.5 - i / 100 for i in range(24)]
    assert scored(falling, 10, max_epochs=24).current_epoch == 24 - 12 + 11
    trainer = scored([0.5] * 12, 10, max_epochs=24, check_val_every_n_epoch=2)
    assert trainer.early_stopping_callback.patience == 5


def test_it_needs_a_validation():
    with pytest.raises(InputError, match=r"run.early_stopping needs a validation.*; .* null turns it off"):
        scored([], max_epochs=4, limit_val_batches=0)


def test_an_unknown_optimizer():
    with pytest.raises(InputError, match=r"model.opt: there is no 'adamww'; did you mean adamw"):
        task(opt="adamww")
    task(opt="lookahead_adamw")
