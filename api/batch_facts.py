"""All that is told of batches beside their rows, for one or for a page of them with a few statements."""

from collections.abc import Sequence

from api.dialects.batch_control import control_of
from api.dialects.batches import BatchFacts
from api.state import House
from promptmill import outlook
from promptmill.errors import UsageError
from promptmill.job import BatchState
from promptmill.request import Defaults
from promptmill.store import inputs, pauses, views
from promptmill.store.batches import BatchRow
from promptmill.store.inputs import OWN_PURPOSE


async def facts_of(house: House, rows: Sequence[BatchRow]) -> list[BatchFacts]:
    """In the same order."""
    if not rows:
        return []
    files = await inputs.by_id(house.db, {row.file_id for row in rows})
    # A batch whose lines were still being read when its row was may have lanes by now; it is told as it was.
    read_in = {row.id for row in rows if row.state is not BatchState.VALIDATING}
    models = await inputs.only_models(house.db, read_in)
    now = house.clock()
    made = await views.of_batches(house.db, rows, now=now)
    paused = {(pause.what, pause.id): pause for pause in await pauses.listed(house.db)}
    expected = await outlook.of_batches(house.db, house.settings, rows, now=now)
    told = []
    for row in rows:
        file = files.get(row.file_id)
        known = file is not None and file.purpose != OWN_PURPOSE
        told.append(
            BatchFacts(
                row=row,
                input_file_id=file.public_id if known and file else "",
                input_bytes=file.bytes if file else 0,
                output_file_id=made.get((row.id, "output")),
                error_file_id=made.get((row.id, "errors")),
                model=models.get(row.id),
                path=_default_path(row),
                control=control_of(row, paused, now, expected.get(row.id)),
            )
        )
    return told


def _default_path(row: BatchRow) -> str | None:
    try:
        return Defaults.from_json(row.defaults).endpoint
    except UsageError:  # written by another version
        return None
