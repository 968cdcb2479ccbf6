"""An inbox that somebody ended behind its server's back: what comes next goes into a new one."""

import time

import pytest
import sqlalchemy as sa

from promptmill.store import batches, control
from promptmill.tables import batches as batch_rows
from promptmill.tables import jobs
from tests.api.mill import chat_body, mill
from tests.worker.endpoint import chat, text_of


async def submitted(client, *texts: str) -> list[str]:
    answer = await client.post("/v1/jobs", json={"requests": [{"body": chat_body(text)} for text in texts]})
    assert answer.status_code == 202, answer.text
    return answer.json()["ids"]


def inbox_of(job_id: str) -> str:
    return f"batch_{job_id.removeprefix('job_').partition('-')[0]}"


@pytest.mark.parametrize("how", ["cancelled", "sealed"])
async def test_every_job_that_is_accepted_is_run(db, how):
    async with mill(db, lambda call: chat(text_of(call).upper())) as made:
        (first,) = await submitted(made.client, "one")
        inbox = await batches.find(db, inbox_of(first))
        if how == "cancelled":
            await control.cancel(db, batch_id=inbox.id, now=time.time())
            await control.finish_cancelling(db, batch_id=inbox.id, now=time.time())
        else:
            await batches.seal_batch(db, batch_id=inbox.id, now=time.time())
        ids = await submitted(made.client, "two", "three")
        (fresh,) = {inbox_of(each) for each in ids}
        assert fresh != inbox.public_id
        for job_id in ids:
            job = (await made.client.get(f"/v1/jobs/{job_id}", params={"wait": 20})).json()
            assert job["status"] == "succeeded"
        (more,) = await submitted(made.client, "four")
        assert inbox_of(more) == fresh
        await made.client.get(f"/v1/jobs/{more}", params={"wait": 20})
        async with db.read() as connection:
            assert (await connection.execute(sa.select(sa.func.count()).select_from(jobs))).scalar_one() == 0
            totals = sa.select(batch_rows.c.total).where(batch_rows.c.id >= inbox.id).order_by(batch_rows.c.id)
            assert list((await connection.execute(totals)).scalars())[-1] == 3
