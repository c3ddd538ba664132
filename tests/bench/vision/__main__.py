"""A suite of real vision tasks that is built, not downloaded: `python -m tests.bench.vision COMMAND`."""

import argparse
import json
import sys
from pathlib import Path

from tests.bench.vision.build import Recipe, build
from tests.bench.vision.compare import print_table
from tests.bench.vision.score import load_weights, score
from tests.bench.vision.statistics import RECIPES, write_statistics


def main(words: list[str] | None = None) -> None:
    """Run a command."""
    arguments = _parser().parse_args(words)
    names = arguments.tasks.split(",") if arguments.tasks else []
    try:
        match arguments.command:
            case "build":
                recipe = Recipe(arguments.seed, arguments.pretraining_steps, arguments.epochs)
                build(arguments.suite, recipe, names)
            case "score":
                print(json.dumps(score(arguments.suite, load_weights(arguments.model), names), indent=2))
            case "compare":
                print_table(arguments.suite, arguments.scales)
            case "statistics":
                write_statistics(arguments.suite, arguments.rule, arguments.target, arguments.seed)
    except (FileExistsError, ValueError) as error:
        sys.exit(f"{error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.vision", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build_it = commands.add_parser("build", help="train a base and an expert for each task")
    score_it = commands.add_parser("score", help="print the accuracies of a model as JSON")
    compare_them = commands.add_parser("compare", help="merge all experts in several ways, and print a table")
    weigh_them = commands.add_parser(
        "statistics", help="copy a suite, with the statistics that fisher or regmean needs"
    )
    for command in (build_it, score_it, compare_them, weigh_them):
        command.add_argument("suite", metavar="DIR", type=Path, help="with base/ and tasks/<name>/")
        command.set_defaults(tasks="")
    score_it.add_argument("model", metavar="MODEL", type=Path, help="a model folder, or a safetensors file")
    for command in (build_it, score_it):
        command.add_argument("--tasks", metavar="NAME,...", default="", help="only these; all where none is named")
    compare_them.add_argument(
        "--scales", type=float, nargs="+", default=[0.3], metavar="SCALE", help="of the sum of all task vectors; 0.3"
    )
    usual = Recipe()
    weigh_them.add_argument("rule", choices=RECIPES)
    weigh_them.add_argument("target", metavar="OUT", type=Path, help="to make")
    for command in (build_it, weigh_them):
        command.add_argument("--seed", type=int, default=usual.seed, help="of the suite")
    build_it.add_argument("--pretraining-steps", type=int, default=usual.pretraining_steps)
    build_it.add_argument("--epochs", type=int, default=usual.epochs, help="of fine-tuning")
    return parser


if __name__ == "__main__":
    main()
