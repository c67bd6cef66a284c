"""A journal that somebody edited, or from which rows are gone, is refused, not replayed."""

from __future__ import annotations

from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import Delete, Update

from instructzero.errors import JournalDamaged
from services.optimizer import store
from services.optimizer.jobs import Connections
from services.optimizer.state import JobState
from services.optimizer.tables import ArmRow, EvaluationRow, PointRow, StepRow
from tests.faults.world import open_world, spec_for
from tests.optimizer.worlds import PlainScorer

ONE_ANSWER = (EvaluationRow.arm == 0, EvaluationRow.example == 0)
TAMPERING: dict[str, Update | Delete] = {
    "a decision is edited": update(StepRow).where(StepRow.step == 0).values(decision={}),
    "a decision is deleted": delete(StepRow).where(StepRow.step == 0),
    "a point is edited": update(PointRow).where(PointRow.n == 0).values(z=[0.5] * 10),
    "a point is deleted": delete(PointRow).where(PointRow.n == 1),
    "an instruction is edited": update(ArmRow).where(ArmRow.n == 1).values(text="Do better."),
    "a score is edited": update(EvaluationRow).where(*ONE_ANSWER).values(score=0.5),
    "an answer is edited": update(EvaluationRow).where(*ONE_ANSWER).values(answer="right"),
    "an answer is deleted": delete(EvaluationRow).where(*ONE_ANSWER),
}


async def is_damaged(session: AsyncSession) -> bool:
    """Read a job back as the next runner would."""
    connections = Connections((await PlainScorer().targets())[0])
    try:
        journal = await store.load_journal(session, "job_1")
        JobState.open("job_1", spec_for(), connections).load(journal)
    except JournalDamaged:
        return True
    return False


async def test_a_hand_edited_journal_row_is_detected(postgres_url: str) -> None:
    async with open_world(postgres_url) as world:
        await world.add()
        await world.start("answered=kill@30").killed_itself()
        n_requests = world.target.n_requests
        async with world.database.reads() as session:
            assert not await is_damaged(session)
        for what, tampering in TAMPERING.items():
            async with world.database.writes() as session:
                await session.execute(tampering)
                assert await is_damaged(session), what
                await session.rollback()
        async with world.database.writes.begin() as session:
            await session.execute(TAMPERING["a score is edited"])
        await world.finish()
        row = await world.row()
        assert row.status == "failed"
        assert row.status_reason is not None
        assert row.status_reason["code"] == "journal_damaged"
        assert world.target.n_requests == n_requests, "money was spent on a damaged job"
