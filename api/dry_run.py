"""What would come of a batch, before it is made: its file is read and checked as an admission would, and nothing is
kept or sent."""

from typing import Final

import msgspec
from starlette.responses import JSONResponse, Response

from api import batch_terms
from api.auth import Caller
from api.batch_terms import BatchRequest
from api.errors import invalid
from api.openapi import schema
from api.priorities import priority
from api.state import House
from promptmill import estimate
from promptmill.intake import dry_run
from promptmill.intake.admit import ERRORS_TOLD
from promptmill.intake.dry_run import Looking
from promptmill.request import Defaults
from promptmill.store.files import FileRow
from promptmill.told import DryRunTold, dry_run_told

DRY_RUN_SCHEMA: Final = schema(DryRunTold)


async def answer(
    house: House, caller: Caller, wanted: BatchRequest, source: FileRow | None, *, one_endpoint: bool
) -> Response:
    """What is to be expected. `one_endpoint`: the batch's dialect has one for all lines. Raises ApiError for what
    cannot be asked of a batch either.

    It is answered when all lines were read, and a few are read at a time in each process: some 20 s for a million.
    """
    now = house.clock()
    handled = batch_terms.handling_asked(wanted)
    _, deadline = batch_terms.window_of(wanted, now, handled.not_before)
    path = batch_terms.path_of(wanted)
    batch_terms.metadata_of(wanted.metadata)
    batch_terms.output_seconds_of(wanted)
    if source is None:
        raise invalid("A dry run needs input_file_id: there is nothing else to read.", param="input_file_id")
    terms = estimate.Terms(
        tenant_id=caller.tenant_id, priority=priority(wanted.priority), deadline=deadline, handling=handled
    )
    checker = Looking(
        house.db, house.settings, Defaults(model=wanted.model_id, endpoint=path), tenant_id=caller.tenant_id,
        endpoint_check=path if one_endpoint and not house.settings.mixed_batches else None,
    )  # fmt: skip
    async with house.dry_runs:
        assay = await dry_run.of_file(house.db, checker, source.id)
    expected = await estimate.of_loads(house.db, house.settings, assay.loads, terms, now=house.clock())
    return JSONResponse(msgspec.to_builtins(dry_run_told(assay, expected, most_errors=ERRORS_TOLD)))
