"""The chunk buffer: rows by time, blending, and every reason to refuse a chunk."""

import numpy as np
import pytest

from aloe_core.chunk import ActionChunk
from aloe_robot.control.buffer import ChunkBuffer, Refusal

DT = 20_000_000
A = 3


def chunk(start=0, chunk_id=1, horizon=10, value=None, dt_ns=DT, episode="e", width=A) -> ActionChunk:
    """Row k of the chunk is `start + k` in every column, or `value`: it names the tick it is for."""
    rows = np.arange(horizon) + start if value is None else np.full(horizon, value)
    positions = np.repeat(rows[:, None], width, axis=1).astype(np.float32)
    return ActionChunk(start * DT, positions, dt_ns, chunk_id, policy_version="v", episode_id=episode)


def buffer(mode="latest", **options) -> ChunkBuffer:
    made = ChunkBuffer(A, mode, **options)
    made.start("e")
    return made


def value(of: ChunkBuffer, tick: float) -> float | None:
    time_ns = round(tick * DT)
    of.advance(time_ns)
    row = of.row(time_ns)
    return None if row is None else float(row.positions[0])


def test_the_row_of_a_tick_is_the_row_for_its_time():
    b = buffer()
    assert b.add(chunk(start=0), 4 * DT) is None  # four ticks late: rows 0..3 have passed and are never executed
    assert [value(b, t) for t in range(4, 10)] == [4, 5, 6, 7, 8, 9]
    assert value(b, 10) is None


def test_the_same_row_is_given_however_late_the_chunk_comes():
    for late in range(10):
        b = buffer()
        b.add(chunk(), late * DT)
        b.advance(late * DT)
        row = b.row(late * DT)
        assert (row.chunk_step, row.positions[0], b.remaining(late * DT)) == (late, late, 9 - late)


def test_between_rows_it_interpolates():
    b = buffer()
    b.add(chunk(), 0)
    assert value(b, 2.25) == pytest.approx(2.25)
    assert value(b, 9.5) == 9  # the last row holds for its period
    b = buffer()
    b.add(chunk(dt_ns=2 * DT), 0)  # 25 Hz chunk in a 50 Hz loop
    assert [value(b, t) for t in range(5)] == [0, 0.5, 1, 1.5, 2]


def test_the_newest_chunk_wins():
    b = buffer()
    b.add(chunk(start=0), 0)
    assert value(b, 4) == 4
    b.add(chunk(start=3, chunk_id=2, value=100), 5 * DT)
    assert value(b, 5) == 100
    assert b.row(5 * DT).chunk_id == 2
    assert b.row(5 * DT).chunk_step == 2


def test_a_chunk_is_not_used_before_it_is_available():
    b = buffer()
    b.add(chunk(start=0), 0)
    b.add(chunk(start=1, chunk_id=2, value=100), DT, available_ns=4 * DT)
    assert [value(b, t) for t in (1, 2, 3, 4)] == [1, 2, 3, 100]


def test_temporal_ensemble_weighs_the_oldest_most():
    decay = 0.5
    b = buffer("temporal_ensemble", decay=decay)
    for k, v in enumerate((10.0, 20.0, 40.0)):
        b.add(chunk(start=k, chunk_id=k + 1, value=v), k * DT)
    w = np.exp(-decay * np.arange(3))
    assert value(b, 2) == pytest.approx((w @ [10, 20, 40]) / w.sum())
    w = np.exp(-decay * np.arange(2))
    assert value(b, 10) == pytest.approx((w @ [20, 40]) / w.sum()), "the first chunk is used up"


def test_cross_fade_is_linear_and_ends():
    b = buffer("cross_fade", fade_ns=3 * DT)
    b.add(chunk(start=0, value=0.0), 0)
    assert value(b, 0) == 0
    b.add(chunk(start=1, chunk_id=2, value=8.0, horizon=20), DT)
    assert [value(b, t) for t in range(1, 6)] == [2, 4, 6, 8, 8]
    # A third chunk in the middle of a fade fades on from the blend.
    b = buffer("cross_fade", fade_ns=3 * DT)
    for k, v in ((0, 0.0), (1, 8.0), (2, 16.0)):
        b.add(chunk(start=k, chunk_id=k + 1, value=v, horizon=20), k * DT)
        last = value(b, k)
    assert last == 4 + (16 - 4) / 4


def test_chunks_before_a_release_are_passed_over():
    b = buffer()
    b.add(chunk(start=0), 0)
    b.advance(5 * DT)
    assert b.row(5 * DT, not_before_ns=1) is None
    b.add(chunk(start=5, chunk_id=2), 5 * DT)
    b.advance(6 * DT)
    assert b.row(6 * DT, not_before_ns=5 * DT).chunk_id == 2


def test_remainder_is_what_is_left_to_execute():
    b = buffer("rtc")
    assert b.remainder(0).shape == (0, A)
    b.add(chunk(), 0)
    b.advance(0)
    assert b.remainder(7 * DT)[:, 0].tolist() == [7, 8, 9]
    assert b.remainder(10 * DT).shape == (0, A)


@pytest.mark.parametrize(
    ("offer", "now", "reason"),
    [
        (chunk(episode="other"), 0, Refusal.WRONG_EPISODE),
        (chunk(width=A + 1), 0, Refusal.WRONG_SIZE),
        (chunk(value=np.nan), 0, Refusal.NON_FINITE),
        (chunk(value=np.inf), 0, Refusal.NON_FINITE),
        (chunk(start=2), DT, Refusal.FUTURE),
        (chunk(), 10 * DT, Refusal.EXPIRED),
        (chunk(start=3, chunk_id=5), 4 * DT, Refusal.DUPLICATE),
        (chunk(start=2, chunk_id=6), 4 * DT, Refusal.OLDER),
    ],
)
def test_refusals_are_named_counted_and_change_nothing(offer, now, reason):
    b = buffer()
    if reason in (Refusal.DUPLICATE, Refusal.OLDER):
        assert b.add(chunk(start=3, chunk_id=5), 3 * DT) is None
    before = value(b, now / DT)
    assert b.add(offer, now) is reason
    assert b.refused == {reason: 1}
    assert b.last_refusal == reason.value
    assert value(b, now / DT) == before


def test_without_an_episode_nothing_is_taken():
    b = ChunkBuffer(A)
    assert b.add(chunk(), 0) is Refusal.NO_EPISODE
    b.start("e")
    b.add(chunk(), 0)
    b.start("f")
    assert value(b, 1) is None
