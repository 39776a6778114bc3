"""Options of a run of seconds on small slides."""

QUICK = {
    "model.name": "gated_attention",
    "model.model_args.embed_dim": 8,
    "model.opt": "adam",
    "model.lr": 0.02,
    "run.early_stopping": "null",
    "data.num_workers": 0,
    "trainer.max_epochs": 2,
    "trainer.accumulate_grad_batches": 1,
    "trainer.accelerator": "cpu",
}


def overrides(folder, **changes):
    """A run of seconds on a folder of `write_slides`; `a__b=1` stands for `--a.b=1`."""
    places = {"data.features": folder / "features", "data.labels": folder / "labels.csv"}
    keys = {**places, **QUICK, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [f"--{key}={value}" for key, value in keys.items()]
