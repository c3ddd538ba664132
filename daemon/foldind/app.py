"""The daemon, put together: what it is made of, the order in which it starts, and the order in which it stops."""

import asyncio
import logging
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from foldin.v1 import snapshots_pb2, submissions_pb2
from foldin.v1.snapshots_pb2_grpc import add_SnapshotServiceServicer_to_server
from foldin.v1.submissions_pb2_grpc import add_SubmissionServiceServicer_to_server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from foldind.changes import Changes
from foldind.checkpoints.plan import Plan
from foldind.config import Configuration, ServeSettings, read_configuration
from foldind.errors import StateError
from foldind.intake.admission import Admission
from foldind.intake.copies import Copies
from foldind.intake.inbox import Inbox
from foldind.intake.local import LocalPaths
from foldind.intake.uploads import Uploads
from foldind.memory import return_large_blocks_at_once
from foldind.service import MergeService
from foldind.serving.snapshots import SnapshotServicer
from foldind.serving.submissions import SubmissionServicer
from foldind.state.database import Database
from foldind.state.folder import StateFolder
from foldind.state.ledger import Ledger
from foldind.state.recovery import recover
from foldind.state.versions import Versions
from foldind.worker.supervisor import Supervisor

log = logging.getLogger(__name__)

_SERVICES = (
    submissions_pb2.DESCRIPTOR.services_by_name["SubmissionService"].full_name,
    snapshots_pb2.DESCRIPTOR.services_by_name["SnapshotService"].full_name,
)
_CALLS_END_SECONDS = 2


def serve(root: Path, **flags: Any) -> None:
    """Serve a state folder until SIGTERM or SIGINT.

    Args:
      root: the state folder.
      flags: settings that go before the environment and foldin.toml; None: not given.

    Raises:
      StateError: the state folder or a setting is not in order.
    """
    return_large_blocks_at_once()
    folder = StateFolder(root)
    configuration = read_configuration(folder.configuration)
    settings = configuration.serve_settings(**flags)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s")
    with ExitStack() as stack:
        stack.enter_context(folder)
        database = stack.enter_context(Database(folder.ledger))
        ledger, versions = Ledger(database), Versions(database)
        recover(folder, ledger, versions)
        plan = Plan.from_json(folder.plan.read_bytes())
        asyncio.run(_run(folder, configuration, settings, ledger, versions, plan))


async def _run(
    folder: StateFolder,
    configuration: Configuration,
    settings: ServeSettings,
    ledger: Ledger,
    versions: Versions,
    plan: Plan,
) -> None:
    changes, supervisor = Changes(), Supervisor()
    service = MergeService(folder, configuration, settings, ledger, versions, supervisor, changes)
    admission = Admission(folder, ledger, plan, settings)
    uploads = Uploads(folder, ledger, admission)
    copies = Copies(folder, admission)
    submissions = SubmissionServicer(ledger, uploads, LocalPaths(folder, ledger, copies, settings), service, changes)
    inbox = Inbox(folder, ledger, copies, admission.limits, settings, changes) if settings.inbox else None
    if inbox:
        await asyncio.to_thread(inbox.prepare)
    healthiness = health.aio.HealthServicer()

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_SubmissionServiceServicer_to_server(submissions, server)
    add_SnapshotServiceServicer_to_server(SnapshotServicer(folder, versions, service, changes), server)
    health_pb2_grpc.add_HealthServicer_to_server(healthiness, server)
    reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = server.add_insecure_port(settings.grpc)
    except RuntimeError as error:
        raise StateError(
            f"cannot listen on {settings.grpc}", "another process may use the port; choose one with --grpc HOST:PORT"
        ) from error

    await server.start()
    merging = asyncio.create_task(service.run())
    watching = asyncio.create_task(inbox.run()) if inbox else None
    stop = _on_signal(merging)
    for name in ("", *_SERVICES):
        await healthiness.set(name, health_pb2.HealthCheckResponse.SERVING)
    host = settings.grpc.rpartition(":")[0]
    log.info("serving %s on %s:%d", folder.root, host, port)
    await stop.wait()

    # Ordered shutdown. Turn away new work, and tell who probes; calls under way may end meanwhile.
    log.info("stopping")
    submissions.draining = True
    if inbox and watching:
        inbox.stop()
        await watching
    await healthiness.enter_graceful_shutdown()
    # A running merge gets its grace, while watchers still see it finish.
    await service.stop(merging)
    # Streams never end by themselves: now they are cut. The ledger closes last, after everyone who writes to it.
    await server.stop(_CALLS_END_SECONDS)
    log.info("stopped")
    merging.result()  # raises what ended the loop, if it did not end in order


def _on_signal(merging: "asyncio.Task[None]") -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    merging.add_done_callback(lambda _: stop.set())  # the loop ends early only when something is wrong
    return stop
