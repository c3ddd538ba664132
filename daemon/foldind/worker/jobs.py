"""What the settings of a state folder mean to the worker."""

from foldind.config import MergeSettings, ServeSettings
from foldind.state.folder import StateFolder
from foldind.worker.messages import Job


def job_of(folder: StateFolder, merge: MergeSettings, settings: ServeSettings, publication: str) -> Job:
    """Return what every request of a daemon says.

    Args:
      folder: where the base and the plan lie.
      merge: the settings that decide the bytes of a merge.
      settings: the other settings of the daemon.
      publication: how the state is published.
    """
    return Job(
        base=str(folder.base),
        plan=str(folder.plan),
        rule=merge.rule,
        hyper_parameters=merge.hyper_parameters,
        publication=publication,
        backend=merge.backend,
        threads=merge.threads,
        memory_budget=settings.memory_budget,
        publish=settings.publish,
        adapter_rank=settings.adapter_rank,
    )
