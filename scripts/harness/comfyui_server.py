"""A real ComfyUI server in a process of its own, driven through its HTTP API as any client drives it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.environment import Environment

Prompt = dict[str, Any]
"""A graph in API format: node number → {class_type, inputs}."""


class WorkflowError(Exception):
    """The server refused a prompt, or a node of it failed; the message is what the person at the graph reads."""


@dataclass(frozen=True)
class Result:
    """What one prompt made: node number → its outputs, as the server's history has them."""

    outputs: dict[str, dict[str, Any]]
    seconds: float

    @property
    def images(self) -> list[dict[str, str]]:
        """Pictures of all nodes, as `ComfyUIServer.download` takes them."""
        return [image for output in self.outputs.values() for image in output.get("images", [])]


class ComfyUIServer:
    """A server on a free port, while the context lasts.

    `packs`: name → folder, linked into its custom_nodes. `base`: where its models, input and output lie; without one
    they lie in a temporary folder. `arguments`: for ComfyUI's main.py.
    """

    def __init__(
        self,
        environment: Environment,
        packs: Mapping[str, Path],
        base: Path | None = None,
        arguments: Sequence[str] = ("--cpu",),
    ) -> None:
        self._temporary = None if base else tempfile.TemporaryDirectory(prefix="comfyui-")
        self.base = base or Path(self._temporary.name if self._temporary else "")
        for folder in ("custom_nodes", "input", "output", "models/checkpoints", "models/dreamcache", "models/loras"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, pack in packs.items():
            link = self.base / "custom_nodes" / name
            link.unlink(missing_ok=True)
            link.symlink_to(pack)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = self.base / "server.log"
        front_end = ["--front-end-root", str(environment.front_end)] if environment.front_end else []
        self._command = [
            *(str(environment.python), str(environment.comfyui / "main.py")),
            *("--port", str(port), "--base-directory", str(self.base)),
            *("--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-auto-launch"),
            *(*front_end, *arguments),
        ]

    def __enter__(self) -> ComfyUIServer:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                self.get("/system_stats")
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-4000:]
                self.__exit__()
                raise RuntimeError(f"ComfyUI did not start:\n{tail}")
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._temporary:
            self._temporary.cleanup()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def object_info(self) -> dict[str, Any]:
        """Every node's definition, as the front end gets it."""
        return self.get("/object_info")

    def upload_image(self, path: Path) -> str:
        """Put a picture where Load Image finds it. Returns its name there."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{boundary}\r\n'
            f'Content-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        return self._post("/upload/image", body, f"multipart/form-data; boundary={boundary}")["name"]

    def run(
        self, prompt: Prompt, on_progress: Callable[[str], None] = lambda text: None, timeout: float = 600
    ) -> Result:
        """Queue a prompt and wait until it is done; `on_progress` hears of each of ComfyUI's progress bars.

        Raises WorkflowError if the server refuses it, a node fails, or it takes longer than `timeout` seconds.
        """
        started = time.monotonic()
        try:
            queued = self._post("/prompt", json.dumps({"prompt": prompt}).encode(), "application/json")
        except urllib.error.HTTPError as error:
            raise WorkflowError(_refusal(json.load(error))) from None
        said = ""
        while time.monotonic() - started < timeout:
            progress = self._progress()
            if progress != said:
                on_progress(progress)
                said = progress
            history = self.get(f"/history/{queued['prompt_id']}").get(queued["prompt_id"])
            if history and history["status"]["completed"]:
                return Result(history["outputs"], time.monotonic() - started)
            if history:
                raise WorkflowError(_failure(history))
            if self._process.poll() is not None:
                raise WorkflowError(f"The server died:\n{self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        self.interrupt()
        raise WorkflowError(f"Not done after {timeout:.0f} seconds.")

    def interrupt(self) -> None:
        """Cancel the prompt that is running, whose `run` raises WorkflowError then, and those that wait."""
        self._post("/queue", b'{"clear": true}', "application/json")
        self._post("/interrupt", b"", "application/json")

    def wait_until_idle(self, timeout: float = 120) -> None:
        """Until nothing runs and nothing waits. Raises TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while any(self.get("/queue").values()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"The server is still busy after {timeout:.0f} seconds.")
            time.sleep(0.2)

    def clear_history(self) -> None:
        self._post("/history", b'{"clear": true}', "application/json")

    def download(self, image: Mapping[str, str], path: Path) -> Path:
        """Save one of a result's pictures."""
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(image)}", timeout=60) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(response.read())
        return path

    def free_memory(self) -> None:
        """Forget all models and what nodes have made."""
        self._post("/free", json.dumps({"unload_models": True, "free_memory": True}).encode(), "application/json")

    def memory(self, figure: Literal["VmHWM", "VmRSS"]) -> int:
        """Bytes of memory that the server holds (VmRSS), or has at most held (VmHWM); on Linux."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(rf"{figure}:\s+(\d+) kB", status)[0]) * 1024

    def cpu_seconds(self) -> float:
        """Time that cores have spent on the server, which others that are busy don't change; on Linux."""
        user, system = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def reads(self) -> int:
        """Times that the server has asked the system for a part of a file; on Linux."""
        counts = Path(f"/proc/{self._process.pid}/io").read_text()
        return int(re.findall(r"syscr: (\d+)", counts)[0])

    def reset_peak_memory(self) -> None:
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def _post(self, path: str, body: bytes, content_type: str) -> Any:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
        return json.loads(text) if text else None

    def _progress(self) -> str:
        """The last progress bar that ComfyUI drew in its log."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 2000))
            bars = re.findall(rb"\d+%\|[^\r\n]*", log.read())
        return bars[-1].decode(errors="replace") if bars else ""


def _refusal(answer: Mapping[str, Any]) -> str:
    """Why the server would not queue a prompt."""
    reasons = [
        f"{node['class_type']}: {error['message']}: {error['details']}"
        for node in answer["node_errors"].values()
        for error in node["errors"]
    ]
    return "\n".join(reasons) or answer["error"]["message"]


def _failure(history: Mapping[str, Any]) -> str:
    """The message of the failing node."""
    for event, details in history["status"]["messages"]:
        if event == "execution_error":
            return f"{details['node_type']}: {details['exception_message'].strip()}"
    return "interrupted"
