"""The command that keeps an inference host at the version that an alias names."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foldin.cli.options import Server, examples
from foldin.cli.session import complain, connected, emit, printable

if TYPE_CHECKING:
    from foldin.follower.events import Event, Hook
    from foldin.follower.webhook import Webhook
    from foldin.models import Progress

_SERVERS = "Inference servers"


def follow(
    to: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="The folder to keep: new, empty, or followed into before. DIR/current is the model.",
        ),
    ],
    alias: Annotated[str, typer.Option(metavar="NAME", help="The alias to follow.")] = "latest",
    form: Annotated[
        str, typer.Option("--as", metavar="model|adapter", help="A whole model, or a PEFT LoRA adapter of the base.")
    ] = "model",
    rank: Annotated[int | None, typer.Option(show_default=False, min=1, help="Highest rank of the adapter.")] = None,
    command: Annotated[
        str,
        typer.Option(
            "--exec",
            metavar="CMD",
            show_default=False,
            help="A shell command to run after each swap.",
        ),
    ] = "",
    vllm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", rich_help_panel=_SERVERS, help="A vLLM server that loads each version; may be repeated."
        ),
    ] = None,
    sglang: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", rich_help_panel=_SERVERS, help="An SGLang server that loads each version; may be repeated."
        ),
    ] = None,
    adapter_name: Annotated[
        str, typer.Option(metavar="NAME", rich_help_panel=_SERVERS, help="The name of the adapter on the servers.")
    ] = "foldin",
    hook_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="The longest time for the command, or for one server.")
    ] = 600.0,
    webhook: Annotated[
        str,
        typer.Option(
            metavar="URL",
            show_default=False,
            help="An address that gets a POST after each swap, signed with FOLDIN_WEBHOOK_SECRET.",
        ),
    ] = "",
    webhook_secret_file: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="A file that holds the secret instead.")
    ] = None,
    keep: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many of the newest versions to keep, besides those in use.")
    ] = 2,
    metrics_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, help="Metrics for node_exporter's textfile collector, such as x.prom."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Handle the current version and exit.")] = False,
    server: Server = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document per event and line.")] = False,
) -> None:
    """Keep a folder at the version that an alias names, and make the inference server load each new version.

    Each version is pulled and verified in DIR/versions. Then the link DIR/current is swapped at once, and the hooks
    run: the command first, then the servers. If a hook fails, DIR/current goes back to the version before, and the
    hooks run for that version. The failed version is left alone until the alias moves or this command starts anew.

    The command of --exec finds FOLDIN_SNAPSHOT, FOLDIN_CURRENT, FOLDIN_VERSION, FOLDIN_PREVIOUS_VERSION and
    FOLDIN_ALIAS in its environment.

    The command runs until it is interrupted, and survives restarts of the daemon. It sends FOLDIN_INFERENCE_API_KEY to
    the servers as a bearer token. With --once the exit status is 1 if a hook failed.
    """
    if form not in ("model", "adapter"):
        raise typer.BadParameter(f"{form!r} is neither model nor adapter.", param_hint="--as")
    if rank is not None and form != "adapter":
        raise typer.BadParameter("only an adapter has a rank: add --as adapter.", param_hint="--rank")
    failed = False
    with connected(server, as_json, after_interrupt="Run the same command again: it goes on.") as client:
        from foldin.cli.interrupts import Interrupts
        from foldin.follower.events import EventKind
        from foldin.follower.loop import follow

        hooks = _hooks(command, vllm or [], sglang or [], form, adapter_name, hook_timeout)
        notify = [_webhook(webhook, webhook_secret_file)] if webhook else []
        bars = _Bars()
        with Interrupts() as interrupts:
            events = follow(
                client,
                to=to,
                alias=alias,
                hooks=hooks,
                form=form,
                rank=rank,
                keep=keep,
                metrics_file=metrics_file,
                notify=notify,
                once=once,
                on_progress=bars.show,
                uninterrupted=interrupts.held,
            )
            try:
                for event in events:
                    bars.stop()
                    _print(event, as_json)
                    failed = failed or event.kind in (EventKind.FAILED, EventKind.ROLLED_BACK)
            except KeyboardInterrupt:
                if interrupts.last != signal.SIGTERM:
                    raise
                return
            finally:
                bars.stop()
                events.close()
    if failed:
        raise typer.Exit(1)


class _Bars:
    """The bars of a pull, which are gone while anything else is printed."""

    def __init__(self) -> None:
        from foldin.cli.display import Display

        self._make = Display
        self._display: Display | None = None

    def show(self, progress: "Progress") -> None:
        if self._display is None:
            self._display = self._make().__enter__()
        self._display.transfer(progress)

    def stop(self) -> None:
        if self._display:
            self._display.__exit__(None, None, None)
            self._display = None


def _hooks(
    command: str, vllm: list[str], sglang: list[str], form: str, adapter_name: str, seconds: float
) -> "list[Hook]":
    from foldin.follower.hooks import Command
    from foldin.follower.servers import SglangAdapter, SglangModel, VllmAdapter, VllmModel

    key = os.environ.get("FOLDIN_INFERENCE_API_KEY", "")
    hooks: list[Hook] = [Command(command, seconds)] if command else []
    if form == "adapter":
        hooks += [VllmAdapter(url, adapter_name, seconds, key) for url in vllm]
        hooks += [SglangAdapter(url, adapter_name, seconds, key) for url in sglang]
    else:
        hooks += [VllmModel(url, seconds, key) for url in vllm]
        hooks += [SglangModel(url, seconds, key) for url in sglang]
    return hooks


def _webhook(url: str, secret_file: Path | None) -> "Webhook":
    from foldin.follower.webhook import Webhook

    if secret_file:
        try:
            secret = secret_file.read_bytes().strip()
        except OSError as error:
            raise typer.BadParameter(f"cannot read it: {error.strerror}.", param_hint="--webhook-secret-file") from None
    else:
        secret = os.environ.get("FOLDIN_WEBHOOK_SECRET", "").encode()
    if not secret:
        raise typer.BadParameter(
            "what is sent is signed: set FOLDIN_WEBHOOK_SECRET, or name a file with --webhook-secret-file.",
            param_hint="--webhook",
        )
    return Webhook(url, secret)


def _print(event: "Event", as_json: bool) -> None:
    from foldin.follower.events import EventKind

    if as_json:
        emit(event.to_json(), one_line=True)
    if event.kind in (
        EventKind.FAILED,
        EventKind.ROLLED_BACK,
        EventKind.PULL_FAILED,
        EventKind.UNREACHABLE,
        EventKind.WARNING,
    ):
        complain(event.message)
    elif not as_json:
        typer.echo(printable(event.message))


COMMANDS = (
    (
        "follow",
        follow,
        examples(
            "foldin follow --alias stable --to /srv/model --exec 'systemctl restart my-server'",
            "foldin follow --alias stable --to /srv/model --vllm http://localhost:8000",
            "foldin follow --alias stable --to /srv/adapter --as adapter --rank 16 --sglang http://localhost:30000",
        ),
    ),
)
