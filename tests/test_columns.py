"""Columns say of many numbers at once what a loop says of them one by one."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cowdb.columns import any_above, any_below, bytes_rise, column, first_lanes, numbers, ones, rises, swapped

SMALL = st.lists(st.integers(0, 200_000), min_size=1, max_size=80)
HEADS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1)), min_size=1, max_size=80)


def made(values):
    return column(b"".join(value.to_bytes(8, "little") for value in values))


@given(SMALL, st.integers(0, 40_000))
def test_a_limit_is_kept_by_all_numbers_or_not(values, limit):
    one = ones(len(values))
    assert any_above(made(values), limit, one) == any(value > limit for value in values)
    assert any_below(made(values), limit, one) == any(value < limit for value in values)


@given(SMALL)
def test_numbers_come_out_as_they_went_in(values):
    assert numbers(made(values), len(values)) == tuple(values)
    assert numbers(made(values) + ones(len(values)) * 7, len(values)) == tuple(value + 7 for value in values)


@given(HEADS, st.booleans())
def test_numbers_rise_or_do_not(values, in_order):
    values = sorted(set(values)) if in_order else values
    assert rises(made(values), ones(len(values))) == all(one < two for one, two in pairwise(values))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_bytes_are_swapped_and_first_lanes_found(values):
    raw = b"".join(value.to_bytes(8, "big") for value in values)
    assert numbers(swapped(raw), len(values)) == tuple(values)
    wide = b"".join(value.to_bytes(8, "little") + b"0123456789abcdef" for value in values)
    assert numbers(first_lanes(wide, 24), len(values)) == tuple(values)


@given(st.data(), st.integers(1, 6), st.integers(1, 8), st.booleans())
def test_fields_rise_or_do_not(data, start, length, in_order):
    width = 16
    middles = data.draw(
        st.lists(st.binary(min_size=length, max_size=length) | st.just(b"\0" * length), min_size=1, max_size=30)
    )
    middles = sorted(set(middles)) if in_order else middles
    around = st.binary(min_size=width, max_size=width)
    fields = []
    for middle in middles:
        noise = data.draw(around)
        fields.append(noise[:start] + middle + noise[start + length :])
    wanted = all(one < two for one, two in pairwise(middles))
    assert bytes_rise(b"".join(fields), width, start, start + length) == wanted
