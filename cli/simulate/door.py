"""Who is let in, and to which models: the two refusals that no retry helps against."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from cli.simulate.reply import Refusal


class Door:
    def __init__(self, api_key: str | None, models: Sequence[str] | None) -> None:
        self._api_key = api_key
        self._globs = models
        self._served: dict[str, bool] = {}

    def check_key(self, key: str) -> None:
        if self._api_key is not None and key != self._api_key:
            message = "Invalid API key provided. Send the key that the simulator was started with as a Bearer token."
            raise Refusal(401, message, code="invalid_api_key")

    def check_model(self, model: str) -> None:
        if self._globs is None:
            return
        served = self._served.get(model)
        if served is None:
            served = self._served[model] = any(fnmatchcase(model, glob) for glob in self._globs)
        if not served:
            message = (
                f"Unable to access model {model}. "
                "Please visit https://api.together.ai/models to view the list of supported models."
            )
            raise Refusal(404, message, code="model_not_available")
