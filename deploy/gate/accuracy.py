"""A gate for `foldind serve --gate`: a new version passes if it is accurate enough, and no worse than what serves.

    foldind serve --state ./state --gate 'python deploy/gate/accuracy.py --at-least 0.7 --may-drop 0.01 -- SCORER'

SCORER is a program of yours that prints one JSON object of numbers about the model whose folder it is given as its last
argument, as lm-evaluation-harness, a notebook's export or `python -m tests.bench.vision score DIR` do. What it prints
are the version's scores. Standard library only.
"""

import argparse
import json
import os
import subprocess
import sys


def main() -> None:
    arguments = parsed()
    scored = subprocess.run([*arguments.scorer, os.environ["FOLDIN_SNAPSHOT"]], stdout=subprocess.PIPE, check=False)
    if scored.returncode:
        sys.exit(f"the scorer ended with status {scored.returncode}")
    scores = last_object(scored.stdout.decode())
    print(json.dumps({name: value for name, value in scores.items() if isinstance(value, int | float)}))
    if arguments.score not in scores:
        sys.exit(f"the scorer tells no {arguments.score}, but {', '.join(scores)}: name one with --score")
    found = scores[arguments.score]
    if arguments.at_least is not None and found < arguments.at_least:
        sys.exit(f"{arguments.score} is {found:.4g}, and {arguments.at_least:g} is the least")
    before = json.loads(os.environ.get("FOLDIN_PASSED_SCORES", "{}")).get(arguments.score)
    if arguments.may_drop is not None and before is not None and found < before - arguments.may_drop:
        version = os.environ["FOLDIN_PASSED_VERSION"]
        sys.exit(f"{arguments.score} is {found:.4g}; v{version} had {before:.4g}, {arguments.may_drop:g} may be lost")


def last_object(output: str) -> dict[str, object]:
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
