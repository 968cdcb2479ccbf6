"""What every request finds in `request.state`, put there by the application's lifespan."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.auth import Doorkeeper
from api.waiting import Waiting
from promptmill.engine import Database
from promptmill.hints import Hints
from promptmill.intake.inbox import Inbox
from promptmill.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The rooms that routes go to."""

    settings: Settings
    db: Database
    hints: Hints
    inbox: Inbox
    waiting: Waiting
    doorkeeper: Doorkeeper
    #: This process among others that hold requests or read batches in.
    holder: str
    clock: Callable[[], float]


def _house(request: Request) -> House:
    house: House = request.state.house
    return house


#: A route's parameter.
HouseIs = Annotated[House, Depends(_house)]
