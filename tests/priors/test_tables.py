"""Tables as numbers: what is a number, a category, missing, or refused."""

import datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from priors.tables import Columns, Features, is_missing, read_columns


def encode(X, chosen="auto"):
    table = read_columns(X)
    columns = Columns.fit(table, chosen)
    return columns.categorical.tolist(), columns.encode(table)


@pytest.mark.parametrize("frame", [True, False], ids=["frame", "rows"])
def test_decimals_and_fractions_are_numbers(frame):
    rows = [[Decimal("1.25"), Fraction(1, 4)], [None, 2], [Decimal("NaN"), 3.5]]
    categorical, values = encode(pd.DataFrame(rows, dtype=object) if frame else rows)
    assert categorical == [False, False]
    np.testing.assert_array_equal(values, [[1.25, 0.25], [np.nan, 2], [np.nan, 3.5]])


DATES = [
    datetime.date(2020, 1, 31),
    datetime.datetime(2020, 1, 31, 12),
    datetime.time(12),
    datetime.timedelta(days=1),
    pd.Timestamp("2020-01-31"),
    np.datetime64("2020-01-31"),
]


@pytest.mark.parametrize("date", DATES, ids=lambda date: type(date).__name__)
def test_dates_among_objects_are_refused(date):
    values = np.array([None, "text", date], dtype=object)
    with pytest.raises(TypeError, match="column 'when' got .*; convert dates to numbers"):
        read_columns(pd.DataFrame({"when": values}))
    with pytest.raises(TypeError, match="column 1 got .*; convert dates to numbers"):
        read_columns([[1.0, value] for value in values])


def test_columns_of_dates():
    days = pd.period_range("2020-01-01", periods=3)
    with pytest.raises(TypeError, match=r"column 'day' has dtype period\[D\]"):
        read_columns(pd.DataFrame({"day": days}))
    # as categories if that is what they are declared to be
    dates = [datetime.date(2021, 1, 1), datetime.date(2020, 1, 1), None]
    categorical, values = encode(pd.DataFrame({"when": pd.Categorical(dates)}))
    assert categorical == [True]
    np.testing.assert_array_equal(values, [[1], [0], [np.nan]])


def test_what_is_missing():
    for value in (None, np.nan, np.float32("nan"), pd.NA, pd.NaT, Decimal("NaN")):
        assert is_missing(value)
    for value in (0, "", "nan", False, np.inf, pd.Timestamp("2020-01-31")):
        assert not is_missing(value)


def test_numbers_as_text_warn():
    texts = [f"{value:.3f}" for value in np.linspace(0, 1, 30)]
    with pytest.warns(UserWarning, match="column 'a' holds 30 different numbers as text"):
        assert encode(pd.DataFrame({"a": texts}))[0] == [True]
    with pytest.warns(UserWarning, match="column 0 holds 29"):
        encode(np.array([["n/a"], *([text] for text in texts[1:])]))
    encode(pd.DataFrame({"a": texts}), chosen=["a"])  # as declared
    numbers = np.linspace(0, 1, 30).tolist()
    for stray, told in ((["?"], r"1 text \('\?'\)"), (["?", "-", "?"], r"2 texts \('-', '\?'\)")):
        with pytest.warns(UserWarning, match=f"column 'a' holds 30 different numbers and {told}, "):
            assert encode(pd.DataFrame({"a": numbers + stray}))[0] == [True]
    with pytest.warns(UserWarning, match="column 0 holds 30 different numbers and 1 text"):
        encode([[value] for value in [*texts[:15], *numbers[15:], "?"]])
    encode(pd.DataFrame({"a": [*numbers, "?"]}), chosen=["a"])
    encode(pd.DataFrame({"a": [0, 1, 2, "three"] * 10}))
    encode(pd.DataFrame({"a": ["0", "1", "2"] * 10}))
    encode(pd.DataFrame({"a": [f"name {text}" for text in texts]}))


def test_a_column_of_unknown_categories_warns():
    columns = Columns.fit(read_columns([["a"], ["b"], ["1"]]), "auto")
    assert np.isnan(columns.encode(read_columns([["c"]]))).all()  # one may well be new
    columns.encode(read_columns([["c"], ["d"], ["a"]]))
    with pytest.warns(UserWarning, match="column 0 holds none of the 3 categories"):
        columns.encode(read_columns([["c"], ["d"]]))
    whole = Columns.fit(read_columns(pd.DataFrame({"a": [0, 1, 2]})), ["a"])
    with pytest.warns(UserWarning, match="such as '1'; they are treated as missing"):
        whole.encode(read_columns(pd.DataFrame({"a": ["1"]})))


def test_features_are_finite_numbers():
    frame = pd.DataFrame(
        {
            "size": [1.0, np.nan, 3.0, 4.0],
            "colour": ["red", "blue", None, "green"],
            "sex": ["f", "m", "f", None],
            "whole": [1, 2, 3, 4],
        }
    )
    table = read_columns(frame)
    columns = Columns.fit(table, "auto")
    values = columns.encode(table)
    features = Features.fit(values, columns)
    # size; blue, green, red; sex; whole; size missing, sex missing
    expected = [
        [1, 0, 0, 1, 0, 1, 0, 0],
        [8 / 3, 1, 0, 0, 1, 2, 1, 0],
        [3, 0, 0, 0, 0, 3, 0, 0],
        [4, 0, 1, 0, 0, 4, 0, 1],
    ]
    np.testing.assert_allclose(features.transform(values), expected)
    # gaps that the training data lack are imputed only
    query = columns.encode(
        read_columns(pd.DataFrame([[2.0, "blue", "m", np.nan]], columns=frame.columns))
    )
    np.testing.assert_allclose(features.transform(query), [[2, 1, 0, 0, 1, 2.5, 0, 0]])


def test_many_categories_stay_numbers():
    table = read_columns(np.array([[f"c{i:02d}"] for i in range(11)], dtype=object))
    columns = Columns.fit(table, "auto")
    values = columns.encode(table)
    found = Features.fit(values, columns).transform(values)
    np.testing.assert_array_equal(found[:, 0], np.arange(11))
