"""`softmaxfree push`: a trained classifier to the model hub."""

import tempfile
from pathlib import Path

from softmaxfree.errors import InputError
from softmaxfree.replacing import require_free

__all__ = ["run"]


def run(
    run: Path,
    repository: str,
    *,
    out: Path | None = None,
    license: str | None = None,
    data_license: str | None = None,
    private: bool = False,
) -> None:
    """Put a trained classifier on the model hub of Hugging Face.

    The repository gets `config.json` and `model.safetensors` as timm writes them, and a card made from the report of
    the run: data, licences, score, sizes and the command that repeats it. Log in once with `hf auth login`: the token
    stays with huggingface_hub, and is neither printed nor stored here.

    Args:
        run: Folder of the run.
        repository: Where to put it: `user/name`.
        out: Folder to write the files to; then nothing is sent. An earlier model there is replaced, and nothing else.
        license: Licence of the weights, by its name on the hub, such as `mit`. By default the card says that it is not
            stated.
        data_license: Licence of the data, in the same way.
        private: A new repository can be seen by you alone.

    Raises:
        FileNotFoundError: there is no such run, or it has no checkpoint.
        InputError: it is no classifier, or the hub cannot be reached or refuses.
        OSError: a file cannot be written.

    Examples:
        softmaxfree push runs/classification/0 anna/cracks --license mit
        softmaxfree push runs/classification/0 anna/cracks --out cracks/
    """
    from softmaxfree.share import check_repository, model_card, upload, write_folder  # torch: seconds

    check_repository(repository)

    from softmaxfree.cli.checkpoint import find_checkpoint, find_kind, load_classifier
    from softmaxfree.report.reading import read_run
    from softmaxfree.share.folder import FILES

    if out is not None:
        if (out / "config.yaml").is_file():
            raise InputError(f"--out: {out} is the folder of a run, whose checkpoints would be hidden; give another")
        require_free([out / name for name in FILES], [], _is_ours)
    summary = read_run(run)
    checkpoint = find_checkpoint(run)
    if (kind := find_kind(checkpoint)) != "classification":
        raise InputError(f"RUN: timm's layout of the hub holds classifiers, but {run} is of {kind}")
    if Path(checkpoint).stem != summary["kept"]:
        raise InputError(
            f"RUN: the scores of {run} are of {summary['kept']}.ckpt, but the weights there are {checkpoint}"
        )
    net, config, names, _ = load_classifier(checkpoint, None)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    card = model_card(summary, repository, config, names, parameters, license, data_license)
    if out is not None:
        written = write_folder(net, out, config, names, card)
        print(f"written  {', '.join(written)} into {out}; nothing was sent")
        return
    with tempfile.TemporaryDirectory() as folder:
        written = write_folder(net, folder, config, names, card)
        address = upload(folder, repository, private)
    print(f"sent     {', '.join(written)} to {address}")
    print(f'use      timm.create_model("hf-hub:{repository}", pretrained=True), or --init-from hf-hub:{repository}')


def _is_ours(path: Path) -> bool:
    """A card of ours, and what lies beside one."""
    from softmaxfree.share.card import MADE_WITH

    card = path.with_name("README.md")
    return card.is_file() and MADE_WITH in card.read_text(encoding="utf-8", errors="replace")
