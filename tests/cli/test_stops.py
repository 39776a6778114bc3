"""A signal ends a command in any phase with its own exit code and one line."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from tests.cli.quick_run import overrides

MODULE = [sys.executable, "-m", "softmaxfree"]
SCRIPT = [sys.executable, "-c", "import sys; from softmaxfree_cli import main; sys.exit(main())"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "softmaxfree"]

BATCHES = 20  # of an epoch
SIGNALS = [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")]


@pytest.fixture(autouse=True)
def interrupts_arrive():
    """A shell starts what runs in its background with interrupts ignored, which the commands would inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop(command, number, line, stream="stdout", group=False):
    """Starts a command, waits for a line, sends the signal; returns exit code, output and errors."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    others = []
    other = process.stderr if stream == "stdout" else process.stdout
    reader = threading.Thread(target=lambda: others.extend(other))
    reader.start()
    lines = getattr(process, stream)
    before = []
    for text in lines:
        before.append(text)
        if line in text:
            break
    else:
        pytest.fail("".join([*before, *others]))
    (os.killpg if group else os.kill)(process.pid, number)
    after = lines.read()
    code = process.wait(60)
    reader.join()
    process.stdout.close()
    process.stderr.close()
    shown = "".join(others)
    return (code, "".join(before) + after, shown) if stream == "stdout" else (code, shown, after)


def train(out, start=MODULE, **changes):
    long = {"trainer__max_epochs": 50, "trainer__limit_train_batches": BATCHES, **changes}
    return [*start, "train", "digits", "--out", str(out), *overrides(**long)]


@pytest.mark.parametrize(("number", "word"), SIGNALS)
def test_while_it_imports(number, word, tmp_path):
    start = [sys.executable, "-X", "importtime", "-m", "softmaxfree"]
    code, out, err = stop(train(tmp_path, start), number, "torch.nn", "stderr")
    assert (code, out) == (128 + number, "")
    assert err.splitlines()[-1] == f"softmaxfree: {word}"
    assert "Traceback" not in err


@pytest.mark.parametrize(("number", "word"), SIGNALS)
@pytest.mark.parametrize(
    ("workers", "group", "start"),
    [
        (0, False, SCRIPT),
        pytest.param(2, False, MODULE, marks=pytest.mark.slow),
        pytest.param(2, True, MODULE, marks=pytest.mark.slow),
    ],
)
def test_while_it_trains(number, word, workers, group, start, tmp_path):
    arguments = train(tmp_path, start, data__num_workers=workers, model__ema_decay=0.9)
    code, _, err = stop(arguments, number, "epoch 2/50", group=group)
    last = tmp_path / "0" / "last.ckpt"
    assert err == f"softmaxfree train: {word}; --resume {last} goes on from there\n"
    assert code == 128 + number
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["global_step"] == BATCHES * (checkpoint["epoch"] + 1)  # of whole epochs
    assert not [path for path in last.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_before_the_first_checkpoint(tmp_path):
    code, _, err = stop(train(tmp_path, data__num_workers=2), signal.SIGTERM, "run       ")
    assert code == 143
    assert err.startswith("softmaxfree train: terminated; there is no checkpoint to resume from")


@pytest.mark.slow
def test_two_processes(tmp_path):
    arguments = train(tmp_path, TORCHRUN, data__num_workers=1, trainer__strategy="ddp", trainer__devices=2)
    code, _, err = stop(arguments, signal.SIGTERM, "epoch 2/50")
    last = tmp_path / "0" / "last.ckpt"
    assert code != 0
    assert err.count("softmaxfree train: ") == 1
    assert f"softmaxfree train: terminated; --resume {last} goes on from there\n" in err
    assert torch.load(last, weights_only=True)["epoch"] >= 0


# What a run may meet: a finalizer and a library that keep the exception for themselves, and a call that never ends.
SWALLOWED = """
import sys, time, types, softmaxfree_cli as cli
class Holder:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(1)
def run():
    {body}
    time.sleep(60)
sys.modules["softmaxfree.cli.models"] = types.SimpleNamespace(run=run)
sys.exit(cli.main(["models"]))
"""


@pytest.mark.parametrize(
    "body",
    [
        "Holder()",
        "import contextlib\n    with contextlib.suppress(BaseException): print('ready', flush=True); time.sleep(60)",
        "print('ready', flush=True); time.sleep(60)",
    ],
)
def test_a_swallowed_exception_is_raised_again(body):
    code, _, err = stop([sys.executable, "-c", SWALLOWED.format(body=body)], signal.SIGTERM, "ready")
    assert (code, err) == (143, "softmaxfree models: terminated\n")


# torch raises an error when a worker was killed, at any time, even while Python leaves
KILLED_WORKER = """
import os, signal, sys, time, types, weakref, softmaxfree_cli as cli
def complain(number, frame):
    raise RuntimeError("a worker was killed")
def run():
    signal.signal(signal.SIGCHLD, complain)
    weakref.finalize(complain, os.kill, os.getpid(), signal.SIGCHLD)  # Python calls it while it leaves
    print("ready", flush=True)
    time.sleep(60)
sys.modules["softmaxfree.cli.models"] = types.SimpleNamespace(run=run)
sys.exit(cli.main(["models"]))
"""


@pytest.mark.parametrize(("number", "word"), SIGNALS)
def test_a_worker_that_ends_too_is_no_error(number, word):
    code, _, err = stop([sys.executable, "-c", KILLED_WORKER], number, "ready")
    assert (code, err) == (128 + number, f"softmaxfree models: {word}\n")
