"""What is asked of upstreams beside jobs: which models they serve."""

import httpx

from api.errors import ApiError
from promptmill.settings import UpstreamConfig

_SECONDS = 15.0


class Upstreams:
    """A client for all of them, made when it is first needed: reading certificates takes a quarter of a second."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    async def models(self, upstream: UpstreamConfig) -> httpx.Response:
        """GET /v1/models. Raises ApiError where there is no answer."""
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=_SECONDS)
        base = upstream.url if upstream.url.endswith("/v1") else f"{upstream.url}/v1"
        headers = {"Authorization": f"Bearer {upstream.key}"} if upstream.key else {}
        try:
            return await self._client.get(f"{base}/models", headers=headers)
        except httpx.TimeoutException:
            raise ApiError(
                504, f"{upstream.name} did not list its models within {_SECONDS:g} s.", code="timeout"
            ) from None
        except httpx.HTTPError as error:
            raise ApiError(
                502, f"{upstream.name} cannot be asked for its models: {type(error).__name__}.",
                code="connection_failed",
            ) from None  # fmt: skip

    async def aclose(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await self._client.aclose()
