"""The client of a Foldin daemon: hand in fine-tuned checkpoints, read the merged model.

import foldin

with foldin.Client("merge.example.org:7070") as client:
    submission = client.submit("runs/task-17", name="task-17", wait=True)
    client.pull(f"v{submission.version}", to="models/merged")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foldin.client import Client as Client
    from foldin.comparison import diff as diff
    from foldin.differences import Difference as Difference
    from foldin.differences import TensorDifference as TensorDifference
    from foldin.errors import AlreadyExists as AlreadyExists
    from foldin.errors import CheckpointError as CheckpointError
    from foldin.errors import DataLoss as DataLoss
    from foldin.errors import FailedPrecondition as FailedPrecondition
    from foldin.errors import FoldinError as FoldinError
    from foldin.errors import HookFailed as HookFailed
    from foldin.errors import InvalidArgument as InvalidArgument
    from foldin.errors import NotFound as NotFound
    from foldin.errors import PermissionDenied as PermissionDenied
    from foldin.errors import PullError as PullError
    from foldin.errors import Refused as Refused
    from foldin.errors import ResourceExhausted as ResourceExhausted
    from foldin.errors import ServerUnavailable as ServerUnavailable
    from foldin.follower.events import Event as Event
    from foldin.follower.events import EventKind as EventKind
    from foldin.follower.events import Swap as Swap
    from foldin.follower.hooks import Command as Command
    from foldin.follower.loop import follow as follow
    from foldin.follower.servers import SglangAdapter as SglangAdapter
    from foldin.follower.servers import SglangModel as SglangModel
    from foldin.follower.servers import VllmAdapter as VllmAdapter
    from foldin.follower.servers import VllmModel as VllmModel
    from foldin.follower.webhook import Webhook as Webhook
    from foldin.gate import Gate as Gate
    from foldin.lineage import Change as Change
    from foldin.lineage import Lineage as Lineage
    from foldin.lineage import Step as Step
    from foldin.lineage import lineage_of as lineage_of
    from foldin.manifest import TensorStatistics as TensorStatistics
    from foldin.manifest import tensor_statistics as tensor_statistics
    from foldin.models import File as File
    from foldin.models import Progress as Progress
    from foldin.models import PulledAdapter as PulledAdapter
    from foldin.models import Rollback as Rollback
    from foldin.models import Snapshot as Snapshot
    from foldin.models import Submission as Submission
    from foldin.models import SubmissionEvent as SubmissionEvent
    from foldin.models import SubmissionState as SubmissionState
    from foldin.vocabulary import CommonRows as CommonRows
    from foldin.vocabulary import VocabPolicy as VocabPolicy

    __version__: str

# Where each public name lives. Loaded on first use, so that `foldin --help` does not wait for gRPC.
_HOME = {
    "Client": "client",
    "diff": "comparison",
    "Difference": "differences",
    "TensorDifference": "differences",
    "AlreadyExists": "errors",
    "CheckpointError": "errors",
    "DataLoss": "errors",
    "FailedPrecondition": "errors",
    "FoldinError": "errors",
    "HookFailed": "errors",
    "InvalidArgument": "errors",
    "NotFound": "errors",
    "PermissionDenied": "errors",
    "PullError": "errors",
    "Refused": "errors",
    "ResourceExhausted": "errors",
    "ServerUnavailable": "errors",
    "Change": "lineage",
    "Lineage": "lineage",
    "Step": "lineage",
    "lineage_of": "lineage",
    "TensorStatistics": "manifest",
    "tensor_statistics": "manifest",
    "Event": "follower.events",
    "EventKind": "follower.events",
    "Swap": "follower.events",
    "Command": "follower.hooks",
    "follow": "follower.loop",
    "SglangAdapter": "follower.servers",
    "SglangModel": "follower.servers",
    "VllmAdapter": "follower.servers",
    "VllmModel": "follower.servers",
    "Webhook": "follower.webhook",
    "File": "models",
    "Gate": "gate",
    "Progress": "models",
    "PulledAdapter": "models",
    "Rollback": "models",
    "Snapshot": "models",
    "Submission": "models",
    "SubmissionEvent": "models",
    "SubmissionState": "models",
    "CommonRows": "vocabulary",
    "VocabPolicy": "vocabulary",
}

__all__ = [  # noqa: PLE0604 - the names above, and the version
    *_HOME,
    "__version__",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        try:
            return metadata.version("foldin")
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            return "0+unknown"
    if name not in _HOME:
        raise AttributeError(f"module 'foldin' has no attribute {name!r}")
    return getattr(import_module(f"foldin.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
