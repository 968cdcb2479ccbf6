"""Settings: one frozen object, made once from the environment, a TOML file and the command line, then handed down.

Nothing here reads the environment at import, and nothing else reads it at all. Precedence: command line, then
environment, then PROMPTMILL_CONFIG, then the defaults below.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar

import httpx
import msgspec

from promptmill.errors import SettingsError
from promptmill.foresight import Price

T = TypeVar("T")

DEFAULT_UPSTREAM_URL: Final = "https://api.together.xyz/v1"
DEFAULT_DATABASE: Final = "promptmill.sqlite3"
#: Where a key is looked for, in this order. Keys of our own API have another name, so the two cannot be confused.
KEY_VARIABLES: Final = ("PROMPTMILL_UPSTREAM_KEY", "TOGETHER_API_KEY", "OPENAI_API_KEY")
_ANY: Final = ("*",)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """One endpoint: where it is, what goes there, and how much of it at once."""

    name: str
    url: str
    key: str | None = field(default=None, repr=False)
    #: Where the key came from (or should have), for messages; never the key.
    key_source: str = "no key set"
    #: Globs; the first upstream with a match takes the model.
    models: tuple[str, ...] = ("*",)
    #: None: not limited from our side; the upstream's 429s then set the pace.
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    #: Calls at once. Each costs a connection and its bodies in memory.
    max_in_flight: int = 256
    #: The limits hold for the upstream as a whole (what `--rpm` means), or for each model (as Together counts).
    shared_limits: bool = False
    connect_timeout_seconds: float = 10.0
    write_timeout_seconds: float = 60.0
    #: Silence in the middle of an answer. Before its first byte a model may think for as long as the total allows.
    between_bytes_timeout_seconds: float = 300.0
    total_timeout_seconds: float = 2 * 3600.0
    #: PEM file with the authorities to trust instead of the system's.
    ca_file: str | None = None

    def __post_init__(self) -> None:
        parts = httpx.URL(self.url) if self.url.isprintable() else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.host:
            raise SettingsError(f"upstream {self.name}: {self.url!r} is not an http:// or https:// URL")
        for name in ("requests_per_minute", "tokens_per_minute", "max_in_flight", "connect_timeout_seconds",
                     "write_timeout_seconds", "between_bytes_timeout_seconds", "total_timeout_seconds"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"upstream {self.name}: {name} must be above 0, not {value}")

    def serves(self, model: str) -> bool:
        """Does this model go here?"""
        return any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """What the tokens of some models cost, by the million, in the currency of `Settings`."""

    #: Globs; the first price with a match holds.
    models: tuple[str, ...]
    prompt: float
    completion: float

    def __post_init__(self) -> None:
        if not self.models:
            raise SettingsError('a price names no model; a price of all models has models = ["*"]')
        for name in ("prompt", "completion"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(
                    f"price of {', '.join(self.models)}: {name} must be 0 or more, not {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set, with its default and the reason for it."""

    database_url: str = DEFAULT_DATABASE
    redis_url: str | None = None
    upstreams: tuple[UpstreamConfig, ...]
    #: Counted attempts of a job; waits for limits and shutdowns are not counted.
    max_attempts: int = 6
    #: Request bodies in memory at once, for all lanes of a worker: 2,000 prompts of 4 MB would be 8 GB.
    max_bytes_in_flight: int = 256 * 1024 * 1024
    #: One line of input; a prompt of 1M tokens is about 4 MB.
    max_line_bytes: int = 64 * 1024 * 1024
    #: How long a stop waits for calls under way before it gives their jobs back.
    grace_seconds: float = 10.0
    #: Over HTTP: one file, one request body of another kind, and one line of an uploaded file. Uploads are streamed, so
    #: the first costs no memory.
    max_file_bytes: int = 16 * 1024**3
    max_request_bytes: int = 64 * 1024 * 1024
    max_upload_line_bytes: int = 8 * 1024 * 1024
    #: Requests at once in one API process. Held ones cost a few kilobytes each.
    max_open_requests: int = 8_192
    #: OpenAI's batches have one endpoint for all lines; True takes lines for any.
    mixed_batches: bool = False
    #: After so long without an answer the gateway begins one: status 200 and blanks, which keeps clients with short
    #: time-outs waiting and spends the status. None: it stays silent until it knows the status.
    hold_open_after_seconds: float | None = None
    #: What tokens cost: for estimates and for budgets in money.
    prices: tuple[PriceConfig, ...] = ()
    #: Of all prices. It is only shown.
    currency: str = "USD"

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise SettingsError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if not 0 <= self.grace_seconds < math.inf:
            raise SettingsError(f"grace_seconds must be 0 or more, not {self.grace_seconds}")
        for name in ("max_file_bytes", "max_request_bytes", "max_upload_line_bytes", "max_open_requests"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.currency.strip() or not self.currency.isprintable():
            raise SettingsError(f"currency must be a name like USD, not {self.currency!r}")
        names = [upstream.name for upstream in self.upstreams]
        if len(set(names)) < len(names):
            raise SettingsError(f"two upstreams have the same name: {sorted(names)}")

    def upstream_for(self, model: str) -> UpstreamConfig | None:
        """The upstream that serves this model: the first one with a pattern that fits; a bare "*" comes last."""
        named = [u for u in self.upstreams if u.models != _ANY]
        default = [u for u in self.upstreams if u.models == _ANY]
        return next((u for u in (*named, *default) if u.serves(model)), None)

    def price_for(self, model: str) -> Price | None:
        """What a million of this model's tokens cost: the first price with a pattern that fits; a bare "*" comes last.
        None: nobody said."""
        in_order = sorted(self.prices, key=lambda price: price.models == _ANY)
        for price in in_order:
            if any(fnmatchcase(model, pattern) for pattern in price.models):
                return Price(price.prompt, price.completion)
        return None


def load(environ: Mapping[str, str], **overrides: Any) -> Settings:
    """Settings from the environment and PROMPTMILL_CONFIG; `overrides` (the command line) win where not None.

    Overrides are fields of `Settings`, and of the upstream that the environment names: base_url, key_env,
    requests_per_minute, tokens_per_minute, max_in_flight.

    Raises SettingsError, naming the variable or the place in the file.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    upstreams, top = _from_file(environ)
    single = _single_upstream(environ, given, alone=not upstreams)
    if single is not None:
        upstreams = (*upstreams, single) if upstreams and "base_url" not in given else (single,)
    values: dict[str, Any] = {**top}
    if url := environ.get("PROMPTMILL_DATABASE_URL"):
        values["database_url"] = url
    if url := environ.get("PROMPTMILL_REDIS_URL"):
        values["redis_url"] = url
    known = {f.name for f in fields(Settings)}
    values.update({name: value for name, value in given.items() if name in known})
    return Settings(upstreams=upstreams, **values)


def _single_upstream(environ: Mapping[str, str], given: dict[str, Any], *, alone: bool) -> UpstreamConfig | None:
    """The one upstream that the command line or the environment names; None when only the file names some."""
    url = given.pop("base_url", None)
    explicit = url is not None
    url = url or environ.get("PROMPTMILL_UPSTREAM_URL") or None
    key_env = given.pop("key_env", None)
    limits = {
        "requests_per_minute": _number(environ, "PROMPTMILL_RPM"),
        "tokens_per_minute": _number(environ, "PROMPTMILL_TPM"),
        "max_in_flight": _number(environ, "PROMPTMILL_MAX_IN_FLIGHT", whole=True),
    }
    limits.update({name: given.pop(name) for name in limits if name in given})
    if explicit:
        given["base_url"] = url
    if url is None and not alone:
        if any(value is not None for value in limits.values()):
            raise SettingsError("limits for upstreams of PROMPTMILL_CONFIG are set in that file, or add --base-url")
        return None
    variables = (key_env,) if key_env else KEY_VARIABLES
    source = next((name for name in variables if environ.get(name)), None)
    if key_env and source is None:
        raise SettingsError(f"--api-key-env names {key_env}, which is not set")
    address = (url or DEFAULT_UPSTREAM_URL).rstrip("/")
    return UpstreamConfig(
        name=address,
        url=address,
        key=environ[source].strip() if source else None,
        key_source=source or f"none of {', '.join(KEY_VARIABLES)} is set",
        shared_limits=True,
        ca_file=environ.get("PROMPTMILL_CA_FILE") or None,
        **{name: value for name, value in limits.items() if value is not None},
    )


def _number(environ: Mapping[str, str], name: str, *, whole: bool = False) -> Any:
    text = environ.get(name)
    if not text:
        return None
    try:
        value: float = int(text) if whole else float(text)
    except ValueError:
        raise SettingsError(f"{name} must be a number, not {text!r}") from None
    if not value > 0:
        raise SettingsError(f"{name} must be above 0, not {text!r}")
    return value


class _FileTop(TypedDict, total=False):
    """What a file may set beside its upstreams and prices."""

    max_attempts: int
    max_bytes_in_flight: int
    max_line_bytes: int
    grace_seconds: float
    max_file_bytes: int
    max_request_bytes: int
    max_upload_line_bytes: int
    max_open_requests: int
    mixed_batches: bool
    hold_open_after_seconds: float
    currency: str


_FILE_TOP: Final = frozenset(_FileTop.__annotations__)


def _from_file(environ: Mapping[str, str]) -> tuple[tuple[UpstreamConfig, ...], dict[str, Any]]:
    path = environ.get("PROMPTMILL_CONFIG")
    if not path:
        return (), {}
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"PROMPTMILL_CONFIG: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"PROMPTMILL_CONFIG: {path}: {error}") from error
    upstreams = tuple(_upstream(where, block, environ) for where, block in _blocks(path, table, "upstream"))
    prices = tuple(_price(where, block) for where, block in _blocks(path, table, "price"))
    if unknown := sorted(table.keys() - _FILE_TOP):
        known = ", ".join(("upstream", "price", *sorted(_FILE_TOP)))
        raise SettingsError(f"{path}: unknown setting {unknown[0]!r}; known: {known}")
    return upstreams, {**_typed(path, table, _FileTop), "prices": prices}


def _blocks(path: str, table: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """(where it stands, the block) for each [[name]] of the file, taken out of the table."""
    blocks = table.pop(name, [])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise SettingsError(f"{path}: {name}s are written as [[{name}]] blocks")
    return [(f"{path}: [[{name}]] number {number}", block) for number, block in enumerate(blocks, start=1)]


def _price(where: str, block: dict[str, Any]) -> PriceConfig:
    wanted = [each.name for each in fields(PriceConfig)]
    if unknown := sorted(block.keys() - set(wanted)):
        raise SettingsError(f"{where}: unknown setting {unknown[0]!r}; known: {', '.join(wanted)}")
    if missing := [name for name in wanted if name not in block]:
        raise SettingsError(f"{where}: {missing[0]} is missing")
    return _typed(where, block, PriceConfig)


def _upstream(where: str, block: dict[str, Any], environ: Mapping[str, str]) -> UpstreamConfig:
    values = dict(block)
    key_env = values.pop("key_env", None)
    allowed = {f.name for f in fields(UpstreamConfig)} - {"key", "key_source"}
    if unknown := sorted(values.keys() - allowed):
        hint = "; keys are not written into files: name a variable with key_env" if unknown[0] == "key" else ""
        raise SettingsError(f"{where}: unknown setting {unknown[0]!r}{hint}")
    if missing := [name for name in ("name", "url") if not isinstance(values.get(name), str)]:
        raise SettingsError(f"{where}: {missing[0]} is missing")
    values["url"] = values["url"].rstrip("/")
    upstream = _typed(where, values, UpstreamConfig)
    if key_env is None:
        return upstream
    if not isinstance(key_env, str):
        raise SettingsError(f"{where}: key_env must be the name of a variable")
    key = environ.get(key_env)
    return replace(upstream, key=key.strip() if key else None, key_source=key_env if key else f"{key_env} is not set")


def _typed(where: str, values: dict[str, Any], wanted: type[T]) -> T:
    try:
        return msgspec.convert(values, wanted)
    except msgspec.ValidationError as error:
        words, _, place = str(error).partition(" - at ")
        raise SettingsError(f"{where}: {place.strip('`').removeprefix('$.')} has the wrong type: {words}") from error
