"""Stand-ins for inference servers, over real HTTP.

They answer as the published handlers of vLLM 0.33.0 and SGLang 0.5.23 do, load nothing, and fail when a test says so.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

Answer = tuple[int, Any]


@dataclass(frozen=True)
class Request:
    """What came in."""

    path: str
    body: bytes
    headers: Mapping[str, str]

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class StandIn:
    """A server on a free port that remembers what it was asked; a context manager."""

    requests: list[Request] = field(default_factory=list)
    faults: dict[str, list[Answer | None]] = field(default_factory=dict)
    """What to answer instead, by path: first come, first served; None: as usual."""
    released: Event = field(default_factory=Event)
    """Set: requests to `held` are answered."""
    held: str = ""
    leads_to: str = ""
    """Where everybody is sent instead; empty: nowhere."""

    def __post_init__(self) -> None:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = stand_in.take(Request(self.path, body, dict(self.headers)))
                content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(302 if stand_in.leads_to else status)
                if stand_in.leads_to:
                    self.send_header("Location", stand_in.leads_to)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def take(self, request: Request) -> Answer:
        self.requests.append(request)
        if request.path == self.held:
            self.released.wait(30)
        faults = self.faults.get(request.path)
        if faults and (fault := faults.pop(0)):
            return fault
        handler: Callable[[Request], Answer] | None = self.handlers().get(request.path)
        return handler(request) if handler else (404, {"detail": "Not Found"})

    def handlers(self) -> Mapping[str, Callable[[Request], Answer]]:
        return {}


@dataclass
class Vllm(StandIn):
    """VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve ... --enable-lora"""

    model: str = "the base"
    paused: bool = False
    adapters: dict[str, str] = field(default_factory=dict)

    def handlers(self) -> Mapping[str, Callable[[Request], Answer]]:
        return {
            "/pause?mode=wait": self._pause,
            "/resume": self._resume,
            "/collective_rpc": self._call,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
        }

    def _pause(self, request: Request) -> Answer:
        self.paused = True
        return 200, {"status": "paused"}

    def _resume(self, request: Request) -> Answer:
        self.paused = False
        return 200, {"status": "resumed"}

    def _call(self, request: Request) -> Answer:
        call = request.document
        if "method" not in call:
            return 400, {"detail": "Missing 'method' in request body"}
        path = Path(call["kwargs"]["weights_path"])
        assert call["method"] == "reload_weights"
        assert (path / "model.safetensors").is_file()
        self.model = str(path)
        return 200, {"results": [None]}

    def _load(self, request: Request) -> Answer:
        adapter = request.document
        if request.headers["Content-Type"] != "application/json":
            return 415, {"detail": "Unsupported Media Type"}
        name = adapter["lora_name"]
        if name in self.adapters and not adapter.get("load_inplace"):
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded.", "code": 400}}
        self.adapters[name] = adapter["lora_path"]
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, request: Request) -> Answer:
        name = request.document["lora_name"]
        if name not in self.adapters:
            return 404, {"error": {"message": f"The lora adapter '{name}' cannot be found.", "code": 404}}
        del self.adapters[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully."


@dataclass
class Sglang(StandIn):
    """python -m sglang.launch_server ... --enable-lora"""

    model: str = "the base"
    weight_version: str = "default"
    adapters: dict[str, str] = field(default_factory=dict)

    def handlers(self) -> Mapping[str, Callable[[Request], Answer]]:
        return {
            "/update_weights_from_disk": self._update,
            "/load_lora_adapter": self._load,
            "/unload_lora_adapter": self._unload,
        }

    def _update(self, request: Request) -> Answer:
        update = request.document
        if not (Path(update["model_path"]) / "model.safetensors").is_file():
            return 400, {"success": False, "message": "Failed to get weights iterator", "num_paused_requests": 0}
        self.model, self.weight_version = update["model_path"], update["weight_version"]
        return 200, {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}

    def _load(self, request: Request) -> Answer:
        name = request.document["lora_name"]
        if name in self.adapters:
            return 400, {"success": False, "error_message": f"Failed to load {name} because it is already loaded"}
        self.adapters[name] = request.document["lora_path"]
        return 200, {"success": True, "error_message": None, "loaded_adapters": self.adapters}

    def _unload(self, request: Request) -> Answer:
        name = request.document["lora_name"]
        if name not in self.adapters:
            return 400, {"success": False, "error_message": f"LoRA with name {name} does not exist."}
        del self.adapters[name]
        return 200, {"success": True, "error_message": None, "loaded_adapters": self.adapters}
