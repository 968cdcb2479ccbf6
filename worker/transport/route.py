"""Where an upstream is and how it is reached: its origin, whom to trust, and through which proxy.

Everything here is decided once, when the worker starts; a call only looks it up.
"""

import base64
import os
import re
import ssl
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import certifi
import httpx

from promptmill.errors import SettingsError

_PORTS = {"http": 80, "https": 443}
_VERSION = re.compile(r"/v[0-9]+[a-z0-9]*(/|$)")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `authorization` is the value of Proxy-Authorization, if the proxy's URL names a user."""

    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)

    @property
    def peer(self) -> str:
        """For people."""
        return f"{self.host}:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        """What to look up and connect to."""
        return self.host, self.port


@dataclass(frozen=True, slots=True)
class Route:
    """An origin, and the way there."""

    scheme: str
    host: str
    port: int
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    proxy: Proxy | None = None

    @property
    def peer(self) -> str:
        """For people, and for CONNECT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        """What to look up and connect to, unless there is a proxy."""
        return self.host, self.port

    @property
    def authority(self) -> str:
        """For the Host header, where the scheme's own port is left out."""
        return self.peer.removesuffix(f":{_PORTS[self.scheme]}")

    def leads_to(self, url: httpx.URL) -> bool:
        """Is this URL of our origin? The key goes nowhere else."""
        host = url.raw_host.decode("ascii")
        return (url.scheme, host, url.port or _PORTS.get(url.scheme)) == (self.scheme, self.host, self.port)


def route_to(url: httpx.URL, *, ca_file: str | None, proxy: str | None) -> Route:
    """The way to an upstream; raises SettingsError for one that cannot be gone."""
    if url.scheme not in _PORTS or not url.host:
        raise SettingsError(f"the upstream's URL must look like https://host/v1, not {_without_secrets(url)}")
    if url.userinfo:
        raise SettingsError(f"the upstream's URL must not have a user or password in it: {_without_secrets(url)}")
    return Route(
        scheme=url.scheme,
        host=url.raw_host.decode("ascii"),
        port=url.port or _PORTS[url.scheme],
        tls=_tls_context(ca_file) if url.scheme == "https" else None,
        proxy=_proxy_for(url, proxy),
    )


def join(base: httpx.URL, path: str) -> httpx.URL:
    """The URL of an API path such as "/v1/chat/completions", which says /v1 exactly once.

    A base that names a version anywhere (/v1, /openai/v1, /v1beta/openai) is where the API begins; any other is where
    the server is, and gets /v1.

    >>> str(join(httpx.URL("https://api.together.xyz/v1"), "/v1/embeddings"))
    'https://api.together.xyz/v1/embeddings'
    >>> str(join(httpx.URL("http://localhost:8000"), "/v1/embeddings"))
    'http://localhost:8000/v1/embeddings'
    """
    root = base.path.rstrip("/")
    rest = path.removeprefix("/v1/").lstrip("/")
    prefix = root if _VERSION.search(root) else f"{root}/v1"
    return base.copy_with(path=f"{prefix}/{rest}", fragment=None)


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Trust `ca_file` alone where one is named, else what the system and SSL_CERT_FILE / SSL_CERT_DIR name."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SettingsError(f"the CA file {ca_file} cannot be used: {error}") from error
    if ca_file is None and not context.cert_store_stats()["x509_ca"] and not _has_certificate_directory():
        context.load_verify_locations(certifi.where())  # a container without any: trust what httpx would
    context.set_alpn_protocols(["http/1.1"])
    return context


def _has_certificate_directory() -> bool:
    """OpenSSL reads this directory as it needs, so its certificates are not counted beforehand."""
    directory = ssl.get_default_verify_paths().capath
    return "SSL_CERT_FILE" in os.environ or (directory is not None and any(Path(directory).glob("*.0")))


def _proxy_for(url: httpx.URL, setting: str | None) -> Proxy | None:
    """The proxy of the setting, else of HTTP_PROXY / HTTPS_PROXY / ALL_PROXY unless NO_PROXY exempts the host."""
    if setting is None:
        named = urllib.request.getproxies()
        if urllib.request.proxy_bypass(f"{url.host}:{url.port}" if url.port else url.host):
            return None
        setting = named.get(url.scheme) or named.get("all")
    if not setting:
        return None
    parts = urllib.parse.urlsplit(setting if "://" in setting else f"http://{setting}")
    if parts.scheme != "http" or not parts.hostname:
        raise SettingsError(f"only http:// proxies can be used, not {parts.scheme}://{parts.hostname or ''}")
    authorization = b""
    if parts.username:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        authorization = b"Basic " + base64.b64encode(pair.encode())
    return Proxy(parts.hostname, parts.port or _PORTS["http"], authorization)


def _without_secrets(url: httpx.URL) -> str:
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))
