"""A small evaluation command: how far the signs of a model's update agree with those of each task's own update.

usage: python agreement.py TRUTH MODEL TASKS LOG
TRUTH has a file of every task's update, and the base. Each run adds a line to LOG. If there is LOG.stop, the run for
which LOG has as many lines as it says makes LOG.reached, and never ends.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def main() -> None:
    truth, model, log = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[4])
    stop = log.with_suffix(".stop")
    if stop.exists() and len(log.read_text().splitlines()) == int(stop.read_text()):
        log.with_suffix(".reached").touch()
        time.sleep(1000)
    assert (model / "config.json").exists(), "it is a model folder"
    base, merged = load_file(truth / "base.safetensors"), load_file(model / "model.safetensors")
    update = {name: merged[name].astype(np.float64) - base[name] for name in base}
    accuracy = {}
    for task in sys.argv[3].split(","):
        wanted = load_file(truth / f"{task}.safetensors")
        agree = [np.sign(wanted[name]) == np.sign(update[name]) for name in wanted]
        accuracy[task] = float(np.mean(np.concatenate([part.ravel() for part in agree])))
    with log.open("a") as file:
        file.write(f"{sys.argv[3]}\n")
    print("a library greets")
    print(json.dumps({"accuracy": accuracy, "ACC": 7}))


if __name__ == "__main__":
    main()
