"""The daemon, put together: what it is made of, the order in which it starts, and the order in which it stops."""

import asyncio
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from aiohttp.web import Application
from foldin.v1 import snapshots_pb2, submissions_pb2
from foldin.v1.snapshots_pb2_grpc import add_SnapshotServiceServicer_to_server
from foldin.v1.submissions_pb2_grpc import add_SubmissionServiceServicer_to_server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from foldind.changes import Changes
from foldind.checkpoints.plan import Plan
from foldind.config import Configuration, ServeSettings, check_forms, read_configuration
from foldind.errors import StateError
from foldind.gate.keeper import GateKeeper
from foldind.intake.admission import Admission
from foldind.intake.copies import Copies
from foldind.intake.inbox import Inbox
from foldind.intake.local import LocalPaths
from foldind.intake.uploads import Uploads
from foldind.logs import configure
from foldind.memory import return_large_blocks_at_once
from foldind.metrics import Metrics
from foldind.preparation import Preparation
from foldind.republication import Republication
from foldind.service import MergeService
from foldind.serving.collector import StateCollector
from foldind.serving.downloads import Downloads
from foldind.serving.http import HttpServer, application
from foldind.serving.hub import Hub
from foldind.serving.manifests import Manifests
from foldind.serving.pages.content import Content
from foldind.serving.pages.likeness import Likenesses
from foldind.serving.pages.rendering import Templates
from foldind.serving.pages.routes import Pages
from foldind.serving.references import movable_alias
from foldind.serving.snapshots import SnapshotServicer
from foldind.serving.submissions import SubmissionServicer
from foldind.state.census import Census
from foldind.state.database import Database
from foldind.state.folder import StateFolder
from foldind.state.layout import check_recorded
from foldind.state.ledger import Ledger
from foldind.state.recovery import read_plan, recover
from foldind.state.sketches import Sketches
from foldind.state.versions import Versions
from foldind.systemd import READY, STOPPING, Systemd
from foldind.worker.supervisor import Supervisor

log = logging.getLogger(__name__)

_SERVICES = (
    submissions_pb2.DESCRIPTOR.services_by_name["SubmissionService"].full_name,
    snapshots_pb2.DESCRIPTOR.services_by_name["SnapshotService"].full_name,
)
_CALLS_END_SECONDS = 2
_THREADS = 32
_STATUS_SECONDS = 1  # between two of them at the least: a merge reports many times a second


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
    configure(settings.log_level, settings.log_format)
    publication = configuration.merge.publication(settings.publication)
    check_forms(publication, configuration.merge, settings.publish)
    movable_alias(settings.gate_alias)
    with ExitStack() as stack:
        stack.enter_context(folder)
        database = stack.enter_context(Database(folder.ledger))
        ledger, versions = Ledger(database), Versions(database)
        census, sketches = Census(database), Sketches(database)
        recover(folder, ledger, versions)
        if head := versions.head():
            check_recorded(publication, configuration.merge.rule, head.state_files)
        plan = read_plan(folder)
        merge = configuration.merge
        log.info("merge rule %s, published as %s", merge.rule, publication)
        log.info("merging by the linear algebra of %s, threads a product: %d", merge.backend, merge.threads)
        asyncio.run(_run(folder, configuration, settings, ledger, versions, census, sketches, plan))


async def _run(
    folder: StateFolder,
    configuration: Configuration,
    settings: ServeSettings,
    ledger: Ledger,
    versions: Versions,
    census: Census,
    sketches: Sketches,
    plan: Plan,
) -> None:
    # Long copies and digests may not keep the loop, the metrics and short questions waiting for a thread.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "foldind"))
    supervisor = Supervisor(configuration.merge.threads, settings.memory_budget)
    changes, metrics, systemd, manifests = Changes(), Metrics(), Systemd(), Manifests(folder, plan)
    preparation = Preparation(folder, configuration, settings, plan, versions, supervisor)
    republication = Republication(folder, configuration, settings, versions, supervisor, changes)
    service = MergeService(
        folder,
        configuration,
        settings,
        ledger,
        versions,
        supervisor,
        preparation,
        republication,
        changes,
        metrics,
    )
    admission = Admission(folder, ledger, plan, configuration.merge, settings)
    uploads = Uploads(folder, ledger, admission, metrics.received["grpc"])
    paths = LocalPaths(folder, ledger, Copies(folder, admission, metrics.received["path"]), settings)
    submissions = SubmissionServicer(ledger, uploads, paths, service, changes)
    inbox = await asyncio.to_thread(_inbox, folder, ledger, admission, settings, metrics, changes)
    metrics.add(
        StateCollector(
            folder,
            configuration.merge,
            census,
            versions,
            sketches,
            service,
            supervisor,
            preparation,
            manifests,
            inbox,
            settings.gate_alias,
        )
    )
    healthiness = health.aio.HealthServicer()

    snapshots = SnapshotServicer(folder, versions, service, republication, changes, metrics)
    server, port = _grpc_server(settings.grpc, submissions, snapshots, healthiness)
    http = HttpServer(settings.http) if settings.http else None

    if http:
        downloads = Downloads()
        content = _content(ledger, versions, census, sketches, manifests, service, downloads)
        pages = Pages(content, _templates(configuration, settings), changes, port)
        hub = Hub(folder, versions, settings.model_id, metrics, downloads)
        await http.start(_application(metrics, service, pages, hub, settings))
        log.info("%s for clients of the Hugging Face Hub, metrics and health on http://%s", hub.model_id, http.address)
    await server.start()
    merging = asyncio.create_task(service.run())
    watching = asyncio.create_task(inbox.run()) if inbox else None
    gating = asyncio.create_task(GateKeeper(folder, versions, settings, changes, metrics).run())
    stop = _on_signal_or_end(*(task for task in (merging, watching, gating) if task))
    for name in ("", *_SERVICES):
        await healthiness.set(name, health_pb2.HealthCheckResponse.SERVING)
    host = settings.grpc.rpartition(":")[0]
    log.info("serving %s on %s:%d", folder.root, host, port)
    systemd.tell(READY)
    informing = [
        asyncio.create_task(task)
        for task in (systemd.feed_watchdog(lambda: service.gets_on), _tell_status(systemd, service, changes))
    ]
    await stop.wait()

    # Ordered shutdown. Turn away new work, and tell who probes; calls under way may end meanwhile.
    log.info("stopping")
    systemd.tell(STOPPING)
    for task in (*informing, gating):
        task.cancel()
    submissions.draining = True
    if inbox:
        inbox.stop()
    await healthiness.enter_graceful_shutdown()
    # A running merge gets its grace, while watchers still see it finish, and probes over HTTP see why nothing is taken.
    await service.stop(merging)
    await asyncio.wait([task for task in (watching, gating) if task])
    # Streams never end by themselves: now they are cut. The ledger closes last, after everyone who uses it.
    await server.stop(_CALLS_END_SECONDS)
    if http:
        await http.stop()
    log.info("stopped")
    _take_no_more_signals()
    for ended in (merging, watching, gating):
        if ended and not ended.cancelled():
            ended.result()  # raises what ended it, if it did not end in order


def _inbox(
    folder: StateFolder,
    ledger: Ledger,
    admission: Admission,
    settings: ServeSettings,
    metrics: Metrics,
    changes: Changes,
) -> Inbox | None:
    if not settings.inbox:
        return None
    copies = Copies(folder, admission, metrics.received["inbox"])
    inbox = Inbox(folder, ledger, copies, admission.limits, settings, changes, metrics.filed)
    inbox.prepare()
    return inbox


def _application(
    metrics: Metrics, service: MergeService, pages: Pages, hub: Hub, settings: ServeSettings
) -> Application:
    app = application(
        metrics.registry,
        lambda: service.gets_on,
        lambda: service.unready_reason,
        [*pages.routes(), *hub.routes()],
        settings.http_token.get_secret_value(),
    )

    async def stop_streams(_: Application) -> None:
        pages.stop()

    app.on_shutdown.append(stop_streams)
    return app


def _content(
    ledger: Ledger,
    versions: Versions,
    census: Census,
    sketches: Sketches,
    manifests: Manifests,
    service: MergeService,
    downloads: Downloads,
) -> Content:
    return Content(ledger, versions, census, Likenesses(sketches, ledger), manifests, service, downloads)


def _templates(configuration: Configuration, settings: ServeSettings) -> Templates:
    merge = configuration.merge
    publication = str(merge.publication(settings.publication))
    return Templates({"model_id": settings.model_id, "rule": str(merge.rule), "publication": publication})


async def _tell_status(systemd: Systemd, service: MergeService, changes: Changes) -> None:
    while True:
        seen = changes.count
        systemd.tell_status(service.status)
        await changes.wait(seen)
        await asyncio.sleep(_STATUS_SECONDS)


def _grpc_server(
    address: str, submissions: SubmissionServicer, snapshots: SnapshotServicer, healthiness: health.aio.HealthServicer
) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_SubmissionServiceServicer_to_server(submissions, server)
    add_SnapshotServiceServicer_to_server(snapshots, server)
    health_pb2_grpc.add_HealthServicer_to_server(healthiness, server)
    reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        return server, server.add_insecure_port(address)
    except RuntimeError as error:
        raise StateError(
            f"cannot listen on {address}", "another process may use the port; choose one with --grpc HOST:PORT"
        ) from error


def _take_no_more_signals() -> None:
    """Let who asks twice for the end not have an end by the signal: the loop is about to give the handlers back."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def _on_signal_or_end(*tasks: "asyncio.Task[None]") -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    for task in tasks:
        task.add_done_callback(lambda _: stop.set())  # they end early only when something is wrong
    return stop
