"""Settings: where each comes from, who wins, and that what cannot be is refused with its name."""

import pytest

from promptmill.errors import SettingsError
from promptmill.foresight import Price
from promptmill.settings import DEFAULT_UPSTREAM_URL, Settings, UpstreamConfig, load

TOML = """
max_attempts = 3

[[upstream]]
name = "together"
url = "https://api.together.xyz/v1/"
key_env = "MY_KEY"
models = ["MiniMaxAI/*", "big/*"]
requests_per_minute = 600
tokens_per_minute = 1_000_000
max_in_flight = 64
total_timeout_seconds = 7200

[[upstream]]
name = "local"
url = "http://localhost:8000"
"""


@pytest.fixture
def configured(tmp_path):
    """An environment that names a file with this text."""

    def make(text: str, **environ: str) -> dict[str, str]:
        path = tmp_path / "promptmill.toml"
        path.write_text(text)
        return {"PROMPTMILL_CONFIG": str(path), **environ}

    return make


def only(settings: Settings) -> UpstreamConfig:
    (upstream,) = settings.upstreams
    return upstream


def test_nothing_set_is_togethers_endpoint_without_a_key():
    settings = load({})
    upstream = only(settings)
    assert (upstream.url, upstream.key, upstream.max_in_flight) == (DEFAULT_UPSTREAM_URL, None, 256)
    assert (upstream.requests_per_minute, upstream.tokens_per_minute) == (None, None)
    assert upstream.key_source.startswith("none of PROMPTMILL_UPSTREAM_KEY, ")
    assert upstream.total_timeout_seconds >= 3600
    assert (settings.database_url, settings.redis_url, settings.max_attempts) == ("promptmill.sqlite3", None, 6)


@pytest.mark.parametrize(
    ("environ", "key", "source"),
    [
        ({"PROMPTMILL_UPSTREAM_KEY": "a", "TOGETHER_API_KEY": "b"}, "a", "PROMPTMILL_UPSTREAM_KEY"),
        ({"TOGETHER_API_KEY": "b", "OPENAI_API_KEY": "c"}, "b", "TOGETHER_API_KEY"),
        ({"OPENAI_API_KEY": " c\n"}, "c", "OPENAI_API_KEY"),
        ({"PROMPTMILL_UPSTREAM_KEY": "", "OPENAI_API_KEY": "c"}, "c", "OPENAI_API_KEY"),
        ({"PROMPTMILL_API_KEYS": "ours"}, None, None),  # a key of our own API is not an upstream's
    ],
)
def test_where_the_key_comes_from(environ, key, source):
    upstream = only(load(environ))
    assert upstream.key == key
    assert source is None or upstream.key_source == source


def test_a_named_variable_is_the_only_one_that_is_asked():
    environ = {"MINE": "m", "PROMPTMILL_UPSTREAM_KEY": "a"}
    assert only(load(environ, key_env="MINE")).key == "m"
    with pytest.raises(SettingsError, match="names OTHER, which is not set"):
        load(environ, key_env="OTHER")


def test_the_command_line_wins_over_the_environment():
    environ = {
        "PROMPTMILL_DATABASE_URL": "env.db", "PROMPTMILL_UPSTREAM_URL": "http://env/v1", "PROMPTMILL_RPM": "10",
        "PROMPTMILL_TPM": "20", "PROMPTMILL_MAX_IN_FLIGHT": "30", "PROMPTMILL_REDIS_URL": "redis://r",
    }  # fmt: skip
    settings = load(environ)
    assert (settings.database_url, settings.redis_url) == ("env.db", "redis://r")
    upstream = only(settings)
    assert (upstream.url, upstream.requests_per_minute, upstream.tokens_per_minute, upstream.max_in_flight) == (
        "http://env/v1", 10, 20, 30,
    )  # fmt: skip
    settings = load(
        environ, database_url="cli.db", base_url="http://cli/v1/", requests_per_minute=1.5, max_in_flight=3,
        max_attempts=2, grace_seconds=0.0, tokens_per_minute=None,
    )  # fmt: skip
    upstream = only(settings)
    assert (settings.database_url, settings.max_attempts, settings.grace_seconds) == ("cli.db", 2, 0.0)
    assert (upstream.url, upstream.requests_per_minute, upstream.tokens_per_minute, upstream.max_in_flight) == (
        "http://cli/v1", 1.5, 20, 3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"requests_per_minute": 0.0}, "requests_per_minute must be above 0, not 0.0"),
        ({"tokens_per_minute": -1.0}, "tokens_per_minute must be above 0"),
        ({"requests_per_minute": float("nan")}, "requests_per_minute must be above 0"),
        ({"max_in_flight": 0}, "max_in_flight must be above 0"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"grace_seconds": -1.0}, "grace_seconds must be 0 or more"),
        ({"grace_seconds": float("nan")}, "grace_seconds must be 0 or more"),
        ({"grace_seconds": float("inf")}, "grace_seconds must be 0 or more"),
        ({"base_url": "localhost:8000"}, "is not an http:// or https:// URL"),
        ({"base_url": "http://host\n/v1"}, "is not an http:// or https:// URL"),
    ],
)
def test_flags_that_cannot_be(overrides, words):
    with pytest.raises(SettingsError, match=words):
        load({}, **overrides)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PROMPTMILL_RPM", "fast", "PROMPTMILL_RPM must be a number, not 'fast'"),
        ("PROMPTMILL_RPM", "0", "PROMPTMILL_RPM must be above 0"),
        ("PROMPTMILL_MAX_IN_FLIGHT", "1.5", "PROMPTMILL_MAX_IN_FLIGHT must be a number"),
    ],
)
def test_variables_that_cannot_be(name, value, words):
    with pytest.raises(SettingsError, match=words):
        load({name: value})


def test_a_file_with_upstreams(configured):
    settings = load(configured(TOML, MY_KEY="k"))
    together, local = settings.upstreams
    assert settings.max_attempts == 3
    assert (together.url, together.key, together.key_source) == ("https://api.together.xyz/v1", "k", "MY_KEY")
    assert (together.requests_per_minute, together.max_in_flight, together.total_timeout_seconds) == (600, 64, 7200)
    assert not together.shared_limits
    assert (local.key, local.models) == (None, ("*",))
    assert settings.upstream_for("MiniMaxAI/MiniMax-M1-40k") is together
    assert settings.upstream_for("anything/else") is local


def test_the_default_upstream_comes_last_wherever_it_stands(configured):
    blocks = TOML.partition("[[upstream]]")[2].split("[[upstream]]")
    settings = load(configured("".join(f"[[upstream]]{block}" for block in reversed(blocks)), MY_KEY="k"))
    upstream = settings.upstream_for("big/one")
    assert upstream is not None
    assert upstream.name == "together"


def test_a_model_that_no_upstream_serves():
    settings = Settings(upstreams=(UpstreamConfig(name="a", url="http://a/v1", models=("a/*",)),))
    assert settings.upstream_for("b/one") is None


def test_a_base_url_replaces_the_files_upstreams_and_a_variable_joins_them(configured):
    environ = configured(TOML, PROMPTMILL_UPSTREAM_URL="http://env/v1")
    assert only(load(environ, base_url="http://cli/v1")).url == "http://cli/v1"
    assert [upstream.name for upstream in load(environ).upstreams] == ["together", "local", "http://env/v1"]


def test_limits_for_the_files_upstreams_belong_into_the_file(configured):
    with pytest.raises(SettingsError, match="are set in that file, or add --base-url"):
        load(configured(TOML), requests_per_minute=5.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed = 9", "unknown setting 'speed'"),
        ("max_attempts = 'six'", "max_attempts"),
        ("grace_seconds = true", "grace_seconds"),
        ("upstream = 3", r"upstreams are written as \[\[upstream\]\] blocks"),
        ('[[upstream]]\nurl = "http://a/v1"', "number 1: name is missing"),
        ('[[upstream]]\nname = "a"', "number 1: url is missing"),
        ('[[upstream]]\nname = "a"\nurl = "http://a"\nkey = "sk-secret"', "keys are not written into files"),
        ('[[upstream]]\nname = "a"\nurl = "http://a"\nrequests_per_minute = "fast"', "requests_per_minute"),
        ('[[upstream]]\nname = "a"\nurl = "http://a"\nmax_in_flight = 1.5', "max_in_flight"),
        ('[[upstream]]\nname = "a"\nurl = "http://a"\nshared_limits = "no"', "shared_limits"),
        ('[[upstream]]\nname = "a"\nurl = "http://a"\nmodels = "big/*"', "models"),
        ('[[upstream]]\nname = "a"\nurl = "http://a"\nkey_env = 5', "key_env"),
        ('[[upstream]]\nname = "a"\nurl = "http://a"\n[[upstream]]\nname = "a"\nurl = "http://b"', "the same name"),
        ("= nonsense", "promptmill.toml"),
    ],
)
def test_files_that_cannot_be(configured, text, words):
    with pytest.raises(SettingsError, match=words) as caught:
        load(configured(text))
    assert "sk-secret" not in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(SettingsError, match=r"cannot read /nowhere/x\.toml: No such file"):
        load({"PROMPTMILL_CONFIG": "/nowhere/x.toml"})


def test_the_key_is_not_in_what_is_printed():
    assert "sk-secret" not in repr(load({"PROMPTMILL_UPSTREAM_KEY": "sk-secret"}))


PRICES = """
currency = "EUR"

[[price]]
models = ["*"]
prompt = 1
completion = 3

[[price]]
models = ["MiniMaxAI/*", "big/*"]
prompt = 0.55
completion = 2.20
"""


def test_prices_of_models_the_default_last(configured):
    settings = load(configured(PRICES))
    assert settings.currency == "EUR"
    assert settings.price_for("MiniMaxAI/MiniMax-M1-40k") == Price(0.55, 2.20)
    assert settings.price_for("another/one") == Price(1.0, 3.0)
    without_default = load(configured(PRICES.replace('["*"]', '["small/*"]')))
    assert without_default.price_for("another/one") is None
    assert (load({}).price_for("any"), load({}).currency) == (None, "USD")
    # An upstream of the command line takes the place of the file's; prices are the model's and stay.
    assert load(configured(PRICES + TOML.partition("3")[2]), base_url="http://x/v1").price_for("big/1") is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[price]\nprompt = 1", r"prices are written as \[\[price\]\] blocks"),
        ('[[price]]\nmodels = ["a"]\nprompt = 1', r"\[\[price\]\] number 1: completion is missing"),
        ('[[price]]\nmodels = ["a"]\nprompt = 1\ncompletion = 1\nper = 1', "number 1: unknown setting 'per'; known: m"),
        ('[[price]]\nmodels = "a"\nprompt = 1\ncompletion = 1', "number 1: models has the wrong type"),
        ('[[price]]\nmodels = ["a"]\nprompt = "1"\ncompletion = 1', "number 1: prompt has the wrong type"),
        ('[[price]]\nmodels = ["a", "b"]\nprompt = 1\ncompletion = -1', "price of a, b: completion must be 0 or more"),
        ('[[price]]\nmodels = ["a"]\nprompt = inf\ncompletion = 1', "price of a: prompt must be 0 or more, not inf"),
        ("[[price]]\nmodels = []\nprompt = 1\ncompletion = 1", "a price names no model"),
        ('currency = ""', "currency must be a name like USD"),
    ],
)
def test_prices_that_cannot_be(configured, text, words):
    with pytest.raises(SettingsError, match=words):
        load(configured(text))
