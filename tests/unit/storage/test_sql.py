"""One SQL text becomes the right text for each engine, and its arguments the right arguments."""

from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.storage.sql import Insert, Statement, only

PAIRS = Statement("SELECT id FROM {rows m(id text, n bigint)} WHERE n > ? AND id LIKE 'a%'")


def test_rows_are_one_json_argument_on_sqlite() -> None:
    assert PAIRS.sqlite == (
        "SELECT id FROM (SELECT CAST(value->>0 AS TEXT) AS id, CAST(value->>1 AS INTEGER) AS n FROM json_each(?)) AS m"
        " WHERE n > ? AND id LIKE 'a%'"
    )
    assert PAIRS.sqlite_arguments([[("a", 1), ("b", None)], 5]) == ['[["a",1],["b",null]]', 5]


def test_rows_are_one_array_a_column_on_postgresql() -> None:
    assert PAIRS.postgres == (
        "SELECT id FROM unnest(%s::text[], %s::bigint[]) AS m(id, n) WHERE n > %s AND id LIKE 'a%%'"
    )
    assert PAIRS.postgres_arguments([[("a", 1), ("b", None)], 5]) == [["a", "b"], [1, None], 5]


def test_no_rows_are_empty_arrays() -> None:
    assert PAIRS.postgres_arguments([[], 5]) == [[], [], 5]


def test_each_dialect_sees_only_its_own_words() -> None:
    statement = Statement("SELECT 1{sqlite: + ?}{postgres: FOR UPDATE}")

    assert statement.sqlite == "SELECT 1 + ?"
    assert only("a{sqlite:b}{postgres:c}", "postgres") == "ac"


def test_an_insert_is_written_for_both() -> None:
    insert = Insert("t", "id text, n bigint", "ON CONFLICT (id) DO NOTHING")

    assert insert.sqlite == "INSERT INTO t (id, n) VALUES (?, ?) ON CONFLICT (id) DO NOTHING"
    assert insert.postgres == (
        "INSERT INTO t (id, n) SELECT * FROM unnest(%s::text[], %s::bigint[]) ON CONFLICT (id) DO NOTHING"
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=3), st.integers(), st.none()), max_size=5))
def test_columns_of_arrays_are_the_columns_of_the_rows(rows: list[tuple[str, int, None]]) -> None:
    statement = Statement("SELECT 1 FROM {rows t(a text, b bigint, c text)}")

    arrays = statement.postgres_arguments([rows])

    assert list(zip(*arrays, strict=True)) == rows
