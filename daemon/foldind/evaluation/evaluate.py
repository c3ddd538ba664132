"""The whole evaluation: what is left to be measured is measured, and reported."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from foldind.checkpoints.checkpoint import open_checkpoint
from foldind.checkpoints.plan import SUMMED_PATTERNS, Plan, Treatment, make_plan
from foldind.errors import InvalidRequest, StateError
from foldind.evaluation.display import Display
from foldind.evaluation.figures import mean_accuracy
from foldind.evaluation.orders import Order
from foldind.evaluation.plots import HOW_TO_GET_PLOTS, write_plots
from foldind.evaluation.report import write_report
from foldind.evaluation.results import Results, Step, Subject
from foldind.evaluation.rules import NamedRule, parse_rule
from foldind.evaluation.scores import Scored, ScoringCommand
from foldind.evaluation.stream import MEMORY_BUDGET, Stream
from foldind.evaluation.tasks import Task, open_task
from foldind.merging.catalog import CATALOG, Statistics
from foldind.state.creation import digest_base
from foldind.state.durable import remove
from foldind.worker.choice import choose_backend
from foldind.worker.supervisor import Supervisor

RESULTS, SCRATCH = "results.jsonl", "scratch"


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    base: Path
    tasks: Mapping[str, Path]
    """Name -> where the checkpoint is."""
    rules: Sequence[str]
    orders: Sequence[Order]
    command: str
    timeout: float = 0
    """Seconds that the command may take; 0: any time."""
    experts: bool = True
    """Whether each task's own fine-tuned model is scored."""
    scored: Scored = Scored.ALL
    """On what the model after each fold is scored."""
    ignore: Sequence[str] = ()
    """Patterns of tensors beyond the base that are left out."""
    summed: Sequence[str] = SUMMED_PATTERNS
    """Patterns of 2-D tensors that are never projected."""
    backend: str = ""
    """Linear algebra; empty: that of earlier results, else the faster one."""


async def evaluate(wanted: Wanted, out: Path, display: Display) -> str:
    """Measure what is missing in a folder of results, write the reports there, and return what there is to say.

    Args:
      wanted: what is to be measured.
      out: the folder; made if it is missing.
      display: shows the progress.

    Raises:
      InvalidRequest, CheckpointRefused: what is wanted makes no sense.
      StateError: the folder holds results of something else.
      ScoringFailed, WorkFailed, WorkerDied: a part of the work failed; what is done is kept.
      OSError: a disk is full or failing.
    """
    command = ScoringCommand(wanted.command, wanted.timeout)
    named = _parse_rules(wanted, wanted.backend or None).values()
    weighed = {kind for rule in named if (kind := _weighs_by(rule))}
    base = open_checkpoint(wanted.base)
    out.mkdir(parents=True, exist_ok=True)
    with Results(out / RESULTS) as results, _scratch(out / SCRATCH) as scratch:
        display.doing("reading the base")
        plan = make_plan(base, wanted.summed)
        if not plan.folded:
            raise StateError(f"{wanted.base} has no tensor that could be merged", "check that it is the base model")
        (scratch / "plan.json").write_text(plan.to_json())
        tasks = {}
        for name, path in wanted.tasks.items():
            display.doing(f"reading {name}")
            place = scratch / "tasks" / name
            tasks[name] = open_task(name, path, wanted.base, place, plan, wanted.ignore, weighed)
        backend = wanted.backend or (results.subject.backend if results.subject else "")
        if not backend:
            display.doing("measuring linear algebra")
            backend = choose_backend(threads=1).name
        rules = _parse_rules(wanted, backend)
        results.claim(
            Subject(
                base=digest_base(wanted.base),
                tasks={name: task.digest for name, task in sorted(tasks.items())},
                command=wanted.command,
                parameters=_parameters(plan),
                backend=backend,
            )
        )
        for name, rule in rules.items():
            statistics = {"statistics": {task.name: task.statistics for task in tasks.values()}}
            results.add_rule(name, rule.to_json() | (statistics if _weighs_by(rule) else {}))
        await _Work(wanted, command, results, tasks, rules, scratch, display).run(out)
        try:
            return f"{', '.join(write_plots(out, results, wanted.rules, wanted.orders))} and the tables are in {out}"
        except ImportError:
            return f"the tables are in {out}; {HOW_TO_GET_PLOTS}"


class _Work:
    def __init__(
        self,
        wanted: Wanted,
        command: ScoringCommand,
        results: Results,
        tasks: Mapping[str, Task],
        rules: Mapping[str, NamedRule],
        scratch: Path,
        display: Display,
    ):
        self._wanted = wanted
        self._command = command
        self._results = results
        self._tasks = tasks
        self._rules = rules
        self._scratch = scratch
        self._display = display
        self._alone = parse_rule("opcm", backend=results.subject.backend if results.subject else None)
        self._supervisors: dict[int, Supervisor] = {}

    async def run(self, out: Path) -> None:
        pairs = list(itertools.product(self._wanted.orders, self._rules))
        total = self._cost_of_models(self._tasks, with_base=True)
        total += sum(self._cost(order, self._wanted_steps(order)) for order, _ in pairs)
        left = self._cost_of_models(self._missing_experts(), with_base=not self._results.base)
        left += sum(self._cost(order, self._missing_steps(rule, order)) for order, rule in pairs)
        self._display.begin(total, max(0, total - left))
        try:
            await self._score_base()
            await self._score_experts()
            for order, rule in pairs:
                await self._merge(rule, order)
                write_report(out, self._results, self._wanted.rules, self._wanted.orders)
        finally:
            for supervisor in self._supervisors.values():
                await supervisor.stop()

    async def _score_base(self) -> None:
        if not self._results.base:
            accuracy = await self._score("base", self._wanted.base, list(self._tasks))
            self._results.add_base(accuracy)
            self._display.done(self._cost_of_score(len(accuracy)), f"base: {_percent(accuracy)}")

    async def _score_experts(self) -> None:
        for name in self._missing_experts():
            task = self._tasks[name]
            model = task.checkpoint if task.is_model else await self._model_of(task)
            accuracy = await self._score(f"expert of {name}", model, [name])
            self._results.add_expert(name, accuracy[name])
            self._display.done(self._cost_of_score(1), f"expert of {name}: {_percent(accuracy)}")

    async def _model_of(self, task: Task) -> Path:
        """Return the folder of the fine-tuned model that a checkpoint of another form means: a merge of it alone."""
        stream = self._stream(self._alone)
        self._display.doing(f"making the model of {task.name}")
        return (await stream.fold(task, publish=True, report=lambda _: None)).model

    async def _merge(self, rule: str, order: Order) -> None:
        missing = self._missing_steps(rule, order)
        if not missing:
            return
        stream = self._stream(self._rules[rule])
        which = f"order {self._wanted.orders.index(order) + 1} of {len(self._wanted.orders)}"
        for number in range(1, max(missing) + 1):
            at = f"{rule}, {which}, step {number} of {len(order)}"
            task = self._tasks[order[number - 1]]
            self._display.doing(f"{at}: folding {task.name}")
            merged = await stream.fold(task, number in missing, report=lambda _: None)
            if number not in missing:
                self._display.done(1, f"{at}: folded {task.name} in {merged.seconds:.1f} s")
                continue
            tasks = self._tasks_at(order, number)
            accuracy = await self._score(at, merged.model, tasks)
            self._results.add_step(rule, order, number, Step(accuracy, merged.seconds, merged.state_bytes))
            told = f"{at}: folded {task.name} in {merged.seconds:.1f} s, {_percent(accuracy)}"
            self._display.done(1 + self._cost_of_score(len(tasks)), told)

    async def _score(self, what: str, model: Path, tasks: Sequence[str]) -> dict[str, float]:
        self._display.doing(f"{what}: scoring {len(tasks)} task{'s' if len(tasks) > 1 else ''}")
        return await self._command.score(model, tasks)

    def _stream(self, rule: NamedRule) -> Stream:
        threads = rule.settings.threads
        supervisor = self._supervisors.setdefault(threads, Supervisor(threads, MEMORY_BUDGET))
        return Stream(self._wanted.base, self._scratch / "plan.json", rule, supervisor, self._scratch / "merge")

    def _tasks_at(self, order: Order, number: int) -> Order:
        """Return the tasks on which the model after a number of folds is scored."""
        if self._wanted.scored is Scored.ALL or number == len(order):
            return order[:number]
        return order[number - 1 : number] if self._wanted.scored is Scored.NEWEST else ()

    def _wanted_steps(self, order: Order) -> set[int]:
        return {number for number in range(1, len(order) + 1) if self._tasks_at(order, number)}

    def _missing_steps(self, rule: str, order: Order) -> set[int]:
        done = self._results.steps.get((rule, order), {})
        return {
            number
            for number in self._wanted_steps(order)
            if number not in done or not done[number].accuracy.keys() >= set(self._tasks_at(order, number))
        }

    def _missing_experts(self) -> list[str]:
        return [name for name in self._tasks if name not in self._results.experts] if self._wanted.experts else []

    def _cost(self, order: Order, steps: set[int]) -> int:
        """Return how much work it is to score an order's steps, and to fold so far; in folds, roughly."""
        return max(steps, default=0) + sum(self._cost_of_score(len(self._tasks_at(order, step))) for step in steps)

    def _cost_of_models(self, experts: Sequence[str] | Mapping[str, Task], *, with_base: bool) -> int:
        experts = experts if self._wanted.experts else ()
        return self._cost_of_score(1) * len(experts) + with_base * self._cost_of_score(len(self._tasks))

    def _cost_of_score(self, tasks: int) -> int:
        return tasks if self._command.chooses else 1


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    remove(folder)
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


def _parse_rules(wanted: Wanted, backend: str | None) -> dict[str, NamedRule]:
    rules: dict[str, NamedRule] = {}
    for text in wanted.rules:
        rule = parse_rule(text, backend=backend, summed=tuple(wanted.summed))
        if same := next((name for name, other in rules.items() if other == rule), ""):
            raise InvalidRequest(f"the rules {same!r} and {text!r} are the same", "name one of them")
        rules[text] = rule
    return rules


def _weighs_by(rule: NamedRule) -> Statistics:
    return CATALOG[rule.settings.rule].statistics


def _parameters(plan: Plan) -> int:
    return sum(math.prod(tensor.shape) for tensor in plan.tensors if tensor.treatment is not Treatment.TIED)


def _percent(accuracy: Mapping[str, float]) -> str:
    return f"accuracy {100 * mean_accuracy(accuracy):.1f} %"
