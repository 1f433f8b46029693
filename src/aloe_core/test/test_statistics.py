import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe_core.statistics import success_text, wilson_interval


def test_wilson_interval_agrees_with_published_values():
    # Newcombe 1998, table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(n=st.integers(1, 500), data=st.data())
def test_interval_holds_the_rate_and_mirrors(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson_interval(n - k, n) == pytest.approx((1 - high, 1 - low))


def test_impossible_counts_are_refused():
    for k, n in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="no success rate"):
            wilson_interval(k, n)


def test_text():
    assert success_text(18, 20) == "18/20 = 90 % (95 % interval 70-97 %)"
