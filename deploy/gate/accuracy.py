"""A gate for `foldind serve --gate`: a new version passes if it is accurate enough, and no worse than what serves.

    foldind serve --state ./state --gate 'python deploy/gate/accuracy.py --at-least 0.7 --may-drop 0.01 -- SCORER'

SCORER is a program of yours that prints one JSON object of numbers about the model whose folder it is given as its last
argument, as lm-evaluation-harness, a notebook's export or `python -m tests.bench.vision score DIR` do. What it prints
are the version's scores. What serves is scored, too, if no gate measured it when it was merged. Standard library only.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from typing import Any


def main() -> None:
    arguments = parsed()
    scores = scores_of(os.environ["FOLDIN_SNAPSHOT"], arguments.scorer)
    print(json.dumps(scores))
    if arguments.score not in scores:
        sys.exit(f"the scorer tells no number {arguments.score}, but {', '.join(scores) or 'none at all'}: see --score")
    found = scores[arguments.score]
    if arguments.at_least is not None and found < arguments.at_least:
        sys.exit(f"{arguments.score} is {found:.4g}, and {arguments.at_least:g} is the least")
    if arguments.may_drop is not None and "FOLDIN_PASSED_VERSION" in os.environ:
        version = os.environ["FOLDIN_PASSED_VERSION"]
        told = json.loads(os.environ.get("FOLDIN_PASSED_SCORES", "{}"))
        if arguments.score not in told:  # a person pointed the alias at it, and no gate measured it
            told = scores_of(os.environ["FOLDIN_PASSED_SNAPSHOT"], arguments.scorer)
        if arguments.score not in told:
            sys.exit(f"the scorer tells no number {arguments.score} of v{version}")
        before = told[arguments.score]
        if found < before - arguments.may_drop:
            lost = f"{arguments.may_drop:g} may be lost"
            sys.exit(f"{arguments.score} is {found:.4g}; v{version} had {before:.4g}, {lost}")


def scores_of(model: str, scorer: list[str]) -> dict[str, float]:
    """The numbers among what the scorer tells of a model folder; NaN is none."""
    try:
        scored = subprocess.run([*scorer, model], stdout=subprocess.PIPE, check=False)
    except OSError as error:
        sys.exit(f"the scorer {scorer[0]} cannot be run: {error.strerror}")
    if scored.returncode:
        sys.exit(f"the scorer ended with status {scored.returncode}")
    told = last_object(scored.stdout.decode(errors="replace"))
    return {name: value for name, value in told.items() if type(value) in (int, float) and math.isfinite(value)}


def last_object(output: str) -> dict[str, Any]:
    """What the scorer printed last, whatever came before it, on one line or on several."""
    decoder, at = json.JSONDecoder(), -1
    while (at := output.find("{", at + 1)) >= 0:
        try:
            found, end = decoder.raw_decode(output, at)
        except ValueError:
            continue
        if not output[end:].strip():
            return found
    sys.exit("the scorer printed no JSON object")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--score", default="ACC", help="which of the scorer's numbers decides [ACC]")
    parser.add_argument("--at-least", type=float, help="what it has to be [anything]")
    parser.add_argument("--may-drop", type=float, help="by how much it may be below the serving version's [any]")
    parser.add_argument("scorer", nargs="+", help="a program and its arguments, after `--`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
