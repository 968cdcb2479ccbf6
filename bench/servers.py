"""Starts and stops the endpoints: nginx where it is installed, else (and where answers have to wait) our own."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import ROOT, BenchError, environment
from bench.prompts import ANSWER

_START_SECONDS = 10.0

_NGINX_CONF = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
worker_rlimit_nofile {files};
events {{ worker_connections {files}; multi_accept on; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=8192;
        location / {{ return 200 '{answer}'; }}
    }}
}}
"""


def nginx() -> str | None:
    """Where nginx is, if it is installed; not everybody has its folder in PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")


@contextlib.contextmanager
def fixed(open_files: int, *, with_nginx: bool = True) -> Iterator[tuple[str, str]]:
    """An endpoint that answers at once; (its base URL, what it is)."""
    program = nginx() if with_nginx else None
    if program is None:
        with waiting(latency=0.0) as url:
            yield url, "bench/endpoint.py, one process (no nginx)"
        return
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-nginx-") as name:
        folder, port = Path(name), _free_port()
        conf = folder / "nginx.conf"
        text = _NGINX_CONF.format(folder=folder, port=port, files=min(open_files, 8192), answer=ANSWER.decode())
        conf.write_text(text, encoding="utf-8")
        process = subprocess.Popen(
            [program, "-p", name, "-c", conf], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, env=environment(), start_new_session=True,
        )  # fmt: skip
        try:
            _until_it_listens(process, port)
            yield f"http://127.0.0.1:{port}/v1", f"{Path(program).name}, one process, a fixed answer"
        finally:
            _stop(process)


@contextlib.contextmanager
def waiting(*, latency: float, rpm: int | None = None) -> Iterator[str]:
    """Our own endpoint; its base URL."""
    line = [sys.executable, "-m", "bench.endpoint", "--latency", str(latency)]
    if rpm is not None:
        line += ["--rpm", str(rpm)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment(), cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            port = process.stdout.readline().strip() if process.stdout else b""
            if not port:
                said.seek(0)
                raise BenchError(f"the endpoint did not start: {said.read().decode(errors='replace').strip()}")
            yield f"http://127.0.0.1:{port.decode()}/v1"
        finally:
            _stop(process)


def stats(base_url: str) -> dict[str, Any]:
    """What our own endpoint saw."""
    import json  # noqa: PLC0415 - not worth a place at the top

    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats", timeout=10) as answer:  # noqa: S310 - it is ours
        found: dict[str, Any] = json.load(answer)
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def _until_it_listens(process: "subprocess.Popen[bytes]", port: int) -> None:
    give_up = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    said = os.read(process.stderr.fileno(), 4096).decode(errors="replace") if process.stderr else ""
    raise BenchError(f"nginx did not start: {said.strip()}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
