"""Fine-tune a small transformer for several tasks, and let a Foldin daemon fold each expert into one merged model.

Run it with `make demo`. Everything is real but small: the images, the training, the daemon, the client. What it makes
lies in `.demo/` in the repository, and is made anew by every run.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import checkpoint
import torch
from commands import ROOT, program, run, succeeds
from daemon_process import Daemon
from dropping import drop
from metrics import metrics_table
from model import Encoder
from report import Merge, accuracy_table, gain_kept, save_plot
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tasks import Task, load_images, make_tasks
from training import PRETRAINING_STEPS, Head, OnStep, accuracy, fine_tune, fine_tuning_steps, pretrain, probe

SEED = 0
PLACE = ".demo"
STATE = f"{PLACE}/state"
INBOX = f"{PLACE}/inbox"

console = Console(highlight=False)
Trained = TypeVar("Trained")


def main() -> None:
    """Run the demo."""
    arguments = argparse.ArgumentParser(prog="demo.py", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--keep", action="store_true", help="leave the daemon running at the end")
    keep = arguments.parse_args().keep
    # So that the daemon is stopped too when the terminal is closed or the demo is told to end.
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, frame: sys.exit(128 + number))
    try:
        demonstrate(keep)
    except KeyboardInterrupt:
        console.print("\nInterrupted; no daemon is left running.")
        sys.exit(130)
    except (RuntimeError, FileNotFoundError, subprocess.CalledProcessError) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        sys.exit(1)


def demonstrate(keep: bool) -> None:
    """Train the base, start the daemon, and for each task in turn: fine-tune, submit, pull, measure."""
    started = time.monotonic()
    clear_place()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the matrices are small: more threads mostly wait for each other
    generator = torch.Generator().manual_seed(SEED)
    train, test = load_images(generator)
    tasks = make_tasks(train, test, generator)

    console.rule("The base: a small vision transformer, pre-trained on handwritten digits")
    base = show_training("base", PRETRAINING_STEPS, lambda on_step: pretrain(train, generator, on_step))
    heads = {task.name: probe(base, task.train) for task in tasks}
    checkpoint.save(base, ROOT / PLACE / "base")
    run(console, "foldind", "init", "--base", f"{PLACE}/base", "--state", STATE)

    with Daemon(STATE, INBOX, ROOT / PLACE / "daemon.log") as daemon:
        (ROOT / PLACE / "daemon.txt").write_text(f"{daemon.address} {daemon.pid}\n")
        console.print(f"The daemon listens on {daemon.address}; its log is {PLACE}/daemon.log")
        base_accuracies = measure(base, tasks, heads)
        expert_accuracies: dict[str, float] = {}
        merges: list[Merge] = []
        average = checkpoint.Average()
        for version, task in enumerate(tasks, start=1):
            console.rule(f"Task {version} of {len(tasks)}: {task.name}")
            expert = show_training(
                task.name,
                fine_tuning_steps(task),
                lambda step, of=task: fine_tune(base, of, heads[of.name], generator, step),
            )
            expert_accuracies[task.name] = accuracy(expert, heads[task.name], task.test)
            merged = merge(expert, task.name, version, daemon.address)
            merges.append(Merge(version, measure(merged, tasks, heads), measure(average.add(expert), tasks, heads)))
            console.print(accuracy_table(base_accuracies, merges[-1], expert_accuracies))

        console.rule("The end")
        kept = [
            gain_kept(model, base_accuracies, expert_accuracies) for model in (merges[-1].merged, merges[-1].average)
        ]
        console.print(
            f"One model now does all {len(tasks)} tasks and keeps {kept[0]:.0%} of what the experts had gained over "
            f"the base; averaging them keeps {kept[1]:.0%}."
        )
        save_plot(ROOT / PLACE / "accuracy.png", base_accuracies, merges, expert_accuracies)
        console.print(f"Plot: {PLACE}/accuracy.png")
        run(console, "foldin", "snapshots", "--server", daemon.address)
        console.print(metrics_table(daemon.http))
        daemon.keep = keep
    tell_what_next(daemon, len(tasks), keep)
    console.print(f"Took {time.monotonic() - started:.0f} s.")


def clear_place() -> None:
    """Make an empty `.demo/`.

    Raises:
      RuntimeError: a daemon that an earlier run left running still uses it.
    """
    place = ROOT / PLACE
    note = place / "daemon.txt"
    if note.exists():
        address, pid = note.read_text().split()
        if succeeds("foldin", "snapshots", "--server", address):
            raise RuntimeError(f"the daemon of an earlier run still serves {STATE}: stop it first, with: kill {pid}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()


def show_training(name: str, steps: int, train: Callable[[OnStep], Trained]) -> Trained:
    """Return what train returns, with a progress bar while it runs."""
    columns = (TextColumn("training {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(name, total=steps)
        return train(lambda: progress.advance(bar))


def measure(encoder: Encoder, tasks: list[Task], heads: dict[str, Head]) -> dict[str, float]:
    """Return the test accuracy of one encoder on every task, under the task's own head."""
    return {task.name: accuracy(encoder, heads[task.name], task.test) for task in tasks}


def merge(expert: Encoder, name: str, version: int, server: str) -> Encoder:
    """Hand an expert to the daemon, through one door or the other, and return the merged model, as downloaded."""
    submitted, pulled = f"{PLACE}/checkpoints/{name}", f"{PLACE}/pulled/v{version}"
    checkpoint.save(expert, ROOT / submitted)
    if version % 2:
        run(console, "foldin", "submit", submitted, "--name", name, "--wait", "--server", server)
    else:  # the other door
        receipt = drop(console, submitted, INBOX)
        console.print(
            f"Its receipt says: submission {receipt['submission']} is {receipt['state']}, v{receipt['version']}"
        )
    run(console, "foldin", "pull", f"v{version}", "--to", pulled, "--server", server)
    return checkpoint.load(ROOT / pulled)


def tell_what_next(daemon: Daemon, versions: int, keep: bool) -> None:
    """Say where everything lies, what to try, and how to start or stop the daemon."""
    foldin, foldind = program("foldin"), program("foldind")
    server = f"--server {daemon.address}"
    lines = [
        f"Snapshots: {STATE}/snapshots/v1 to v{versions}, each a model folder; the alias `latest` is v{versions}.",
        f"The daemon is running, with process id {daemon.pid}. Stop it with: kill {daemon.pid}"
        if keep
        else "The daemon is stopped; nothing is lost. Start it again with:\n"
        f"  {foldind} serve --state {STATE} --inbox {INBOX} --grpc {daemon.address}",
        "Then try:" if not keep else "Try:",
        f"  {foldin} list {server}",
        *([f"  curl http://{daemon.http}/metrics"] if keep else []),
        f"  {foldin} show latest {server}",
        f"  {foldin} alias stable v{versions - 1} {server}",
        f"  {foldin} pull stable --to {PLACE}/stable {server}",
        f"  {foldin} rollback {server}",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
