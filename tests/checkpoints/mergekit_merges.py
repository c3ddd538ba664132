"""Run by the interpreter of mergekit's own environment: python mergekit_merges.py < {output folder: configuration}."""

import json
import sys


def main() -> None:
    """Merge on the CPU, each into its folder."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    for folder, configuration in json.load(sys.stdin).items():
        options = MergeOptions(
            cuda=False, copy_tokenizer=False, quiet=True, random_seed=configuration.pop("seed", None)
        )
        run_merge(MergeConfiguration.model_validate(configuration), folder, options)


main()
