"""Addresses of our own, as this caller reaches us."""

from starlette.requests import Request


def base_url(request: Request) -> str:
    """What comes before the path, without a slash at its end."""
    return str(request.base_url).rstrip("/")
