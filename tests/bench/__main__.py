"""Run the benchmarks and print their figures as Markdown: `python -m tests.bench [NAME ...]`."""

import argparse
import platform
import tempfile
from pathlib import Path

from tests.bench import (
    adapter_ranks,
    adapter_stream,
    adapters,
    compression,
    constant_memory,
    downloads,
    fleet,
    half_precision,
    many_folds,
    merge_time,
    profile,
    rules,
    sizes,
    sketches,
    upload_time,
)
from tests.bench.settings import Settings

BENCHMARKS = {
    "merge_time": merge_time.run,
    "upload_time": upload_time.run,
    "downloads": downloads.run,
    "fleet": fleet.run,
    "constant_memory": constant_memory.run,
    "many_folds": many_folds.run,
    "sizes": sizes.run,
    "adapters": adapters.run,
    "adapter_stream": adapter_stream.run,
    "adapter_ranks": adapter_ranks.run,
    "compression": compression.run,
    "half_precision": half_precision.run,
    "rules": rules.run,
    "sketches": sketches.run,
    "profile": profile.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*", metavar="NAME", help="which ones; all where none is named")
    parser.add_argument("--folder", type=Path, help="where to work; needs about 30 GB")
    parser.add_argument("--fusionbench", type=Path, help="a Python that has fusion-bench, to compare with")
    parser.add_argument("--mergekit", type=Path, help="a Python that has mergekit, to compare with")
    parser.add_argument("--suite", type=Path, help="real fine-tuned models, base/ and tasks/<name>/")
    parser.add_argument(
        "--order", default="", help="of its tasks, with commas; that of their names where none is given"
    )
    parser.add_argument("--rule", action="append", default=[], help="of `rules`, only this one; may be repeated")
    parser.add_argument("--keep", type=Path, help="where merged models are left, to score them")
    arguments = parser.parse_args()
    order = tuple(arguments.order.split(",")) if arguments.order else ()
    settings = Settings(
        arguments.fusionbench, arguments.mergekit, arguments.suite, order, arguments.keep, tuple(arguments.rule)
    )
    print(f"Machine: {_processor()}, Python {platform.python_version()}\n")
    for name in arguments.name or BENCHMARKS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            BENCHMARKS[name](Path(folder), settings)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} processors"


if __name__ == "__main__":
    main()
