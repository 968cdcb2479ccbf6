"""What is asked with GET: the models on offer, a picture that was answered as a URL, or what does not exist."""

from cli.simulate.answers import models, png
from cli.simulate.answers.images import FILES_PATH
from cli.simulate.call import Headers
from cli.simulate.config import SimulateConfig
from cli.simulate.door import Door
from cli.simulate.kinds import KINDS
from cli.simulate.reply import Refusal, Reply

_MODELS_PATH = "/v1/models"
#: How the statistics count what has no path of its own.
UNKNOWN = "(unknown)"


def counted_as(path: str) -> str:
    """One name for all paths of a sort, so that a stranger's scan does not fill the statistics."""
    plain = _plain(path)
    if plain in KINDS:
        return plain
    return next((name for name in (_MODELS_PATH, FILES_PATH) if plain.startswith(name)), UNKNOWN)


def look_up(method: str, path: str, headers: Headers, door: Door, config: SimulateConfig) -> Reply:
    plain = _plain(path)
    if counted_as(path) != UNKNOWN and (method != "GET" or plain in KINDS):
        raise Refusal(405, f"Not allowed to {method} on {path}.")
    if plain.startswith(FILES_PATH) and (picture := png.from_name(plain.removeprefix(FILES_PATH))) is not None:
        return Reply(200, b"image/png", picture)
    if plain == _MODELS_PATH:
        door.check_key(headers.key)
        return models.listing(headers.dialect, config.models)
    if plain.startswith(f"{_MODELS_PATH}/"):
        door.check_key(headers.key)
        name = plain.removeprefix(f"{_MODELS_PATH}/")
        door.check_model(name)
        return models.one(name)
    raise Refusal(404, f"Invalid URL ({method} {path})")


def _plain(path: str) -> str:
    return path.removeprefix("/v1") if path.startswith("/v1/v1/") else path
