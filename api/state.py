"""What every request finds in `request.state`, put there by the application's lifespan."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from api.admitter import Admitter
from api.auth import Caller, Doorkeeper
from api.bell import Bell
from api.held import HeldBook
from api.lanes import LaneBook
from api.rendered import Rendered
from api.upstreams import Upstreams
from api.waiting import Waiting
from promptmill.engine import Database
from promptmill.hints import Hints
from promptmill.intake.inbox import Inbox
from promptmill.settings import Settings

if TYPE_CHECKING:
    from api.metrics import Meter, Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The rooms that routes go to."""

    settings: Settings
    db: Database
    hints: Hints
    inbox: Inbox
    waiting: Waiting
    doorkeeper: Doorkeeper
    admitter: Admitter
    rendered: Rendered
    bell: Bell
    held: HeldBook
    lanes: LaneBook
    traffic: "Traffic"
    meter: "Meter"
    upstreams: Upstreams
    #: Dry runs that read their files: a few at a time, as admissions.
    dry_runs: asyncio.Semaphore
    #: Set when the server is to stop.
    closing: asyncio.Event
    #: This process among others that hold requests or read batches in.
    holder: str
    clock: Callable[[], float]

    async def ring(self) -> None:
        """There may be ready jobs."""
        await self.bell.ring()


async def _house(request: Request) -> House:  # async: FastAPI would run it in a thread otherwise
    house: House = request.state.house
    return house


async def at_once(request: Request) -> tuple[House, Caller]:
    """The same, and the caller, without what FastAPI takes to resolve parameters: for the routes that are asked
    thousands of times a second. Raises ApiError."""
    house: House = request.state.house
    return house, await house.doorkeeper.caller(request)


#: A route's parameter.
HouseIs = Annotated[House, Depends(_house)]
