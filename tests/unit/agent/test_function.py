"""Functions as tasks: their names, what is refused, and how arguments and results are checked on the way."""

import asyncio
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.agent import function
from retinue.agent.function import app_modules, call_of, current, find, task
from retinue.errors import Invalid


@dataclass
class Point:
    x: int
    y: int = 0


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task(name="unit.longest")
def longest(first: str, *rest: str) -> str:
    return max((first, *rest), key=len)


@task
def mirrored(at: Point, weights: dict[int, float]) -> Point:
    return Point(at.y, at.x)


@task
def anything(value: Any) -> Any:
    return value


@task
async def later(seconds: float) -> str:
    return str(seconds)


@task
def forward(at: "Point") -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
    return at


def untold(a: int) -> int:
    return a


def registration_of(source: Callable[[], object]) -> str:
    with pytest.raises(Invalid) as raised:
        source()
    return raised.value.message


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """This process as if it ran a script."""
    module = ModuleType("__main__")
    module.__file__ = str(tmp_path / "errands.py")
    Path(module.__file__).touch()
    monkeypatch.setitem(sys.modules, "__main__", module)
    before = dict(function._functions)
    yield module
    function._functions.clear()
    function._functions.update(before)


def defined_in(module: str, source: str = "def fetch(url: str) -> str: return url") -> Callable[..., Any]:
    names: dict[str, Any] = {"__name__": module}
    exec(compile(source, f"{module}.py", "exec"), names)
    made: Callable[..., Any] = names["fetch"]
    return made


class TestNames:
    def test_a_function_is_named_by_its_module_and_stays_what_it_was(self) -> None:
        known = find(f"{__name__}.add")

        assert known is not None
        assert known.function is add
        assert add(2, b=3) == 5

    def test_a_name_of_its_own_replaces_the_module(self) -> None:
        assert call_of(longest, ["a"])[0] == "unit.longest"

    def test_async_functions_are_told_from_others(self) -> None:
        kinds = [known.is_async for known in map(find, (f"{__name__}.later", f"{__name__}.add")) if known]

        assert kinds == [True, False]
        assert asyncio.run(later(1.0)) == "1.0"

    def test_a_function_of_a_script_is_named_by_the_scripts_stem(self, script: ModuleType) -> None:
        registered = task(defined_in("__main__"))

        assert call_of(registered, ["x"])[0] == "errands.fetch"
        assert str(script.__file__) in app_modules()

    def test_a_second_import_of_a_script_gives_the_same_names(
        self, script: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(function, "_scripts", {})
        function.alias("__retinue_main__", str(script.__file__))

        registered = task(defined_in("__retinue_main__"))

        assert call_of(registered, ["x"])[0] == "errands.fetch"

    def test_a_module_run_as_the_program_keeps_its_name(self, script: ModuleType) -> None:
        script.__spec__ = type(sys.__spec__)("package.errands", None)

        registered = task(defined_in("__main__"))

        assert call_of(registered, ["x"])[0] == "package.errands.fetch"
        assert "package.errands" in app_modules()

    def test_a_function_typed_into_a_prompt_is_refused(self, script: ModuleType) -> None:
        del script.__file__

        said = registration_of(lambda: task(defined_in("__main__")))

        assert said == "function: fetch is in no file that a host process could import; save it as one"

    def test_a_script_that_starts_itself_while_it_is_imported_is_refused(self) -> None:
        function.loading(True)
        try:
            said = registration_of(app_modules)
        finally:
            function.loading(False)

        assert 'put its work under `if __name__ == "__main__":`' in said

    @pytest.mark.parametrize("name", ["with space", "with:colon", "x" * 201])
    def test_a_name_that_cannot_stand_in_a_capability_is_refused(self, name: str) -> None:
        assert "use @task(name=...)" in registration_of(lambda: task(name=name)(defined_in("elsewhere")))

    def test_two_functions_of_one_name_are_refused(self) -> None:
        said = registration_of(lambda: task(name="unit.longest")(defined_in("elsewhere")))

        assert said == f"name: unit.longest is taken by one in {__file__}; use @task(name=...)"

    def test_a_module_imported_again_may_register_again(self, script: ModuleType) -> None:
        task(defined_in("again"))

        again = task(defined_in("again"))

        assert [known.function for known in function.registered() if known.name == "again.fetch"] == [again]


class TestRefusals:
    def test_a_lambda_is_refused(self) -> None:
        assert "write a def at a module's top" in registration_of(lambda: task(lambda: 1))

    def test_a_nested_function_is_refused(self) -> None:
        def inner() -> None: ...

        assert "cannot be found by another process" in registration_of(lambda: task(inner))

    def test_a_method_is_refused(self) -> None:
        class Tool:
            def use(self) -> None: ...

        assert "cannot be found by another process" in registration_of(lambda: task(Tool.use))

    def test_what_is_no_function_is_refused(self) -> None:
        assert registration_of(lambda: task(len)) == "function: len is not a plain function; write a def"

    def test_a_generator_is_refused(self) -> None:
        made = defined_in("elsewhere", "def fetch(): yield 1")

        assert registration_of(lambda: task(made)) == "function: fetch is a generator; return a list"

    def test_a_parameter_that_cannot_be_given_is_refused(self) -> None:
        made = defined_in("elsewhere", "def fetch(*, url): return url")

        assert "url cannot be given" in registration_of(lambda: task(made))

    def test_a_function_that_is_not_registered_cannot_be_called(self) -> None:
        said = registration_of(lambda: call_of(untold, [1]))

        assert said == "function: untold is not registered; put @retinue.task above its def"

    def test_an_annotation_that_names_nothing_is_told_when_it_is_checked(self) -> None:
        known = find(f"{__name__}.forward")
        assert known is not None

        said = registration_of(known.check)

        assert said.endswith("its annotations cannot be resolved: name 'Nowhere' is not defined")


class TestArguments:
    def test_arguments_travel_as_a_json_list(self) -> None:
        _, arguments = call_of(mirrored, [Point(1, 2), {3: 0.5}])

        assert arguments == [{"x": 1, "y": 2}, {"3": 0.5}]

    def test_they_arrive_as_what_the_function_wants(self) -> None:
        known = find(f"{__name__}.mirrored")
        assert known is not None

        assert known.decode(b'[{"x":1,"y":2},{"3":0.5}]') == (Point(1, 2), {3: 0.5})

    def test_a_default_may_be_left_out(self) -> None:
        assert call_of(add, [1])[1] == [1]

    def test_keywords_are_put_in_order(self) -> None:
        assert call_of(add, [], {"b": 2, "a": 1})[1] == [1, 2]

    def test_any_number_may_follow_where_the_function_takes_them(self) -> None:
        assert call_of(longest, ["a", "bb", "ccc"])[1] == ["a", "bb", "ccc"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "missing a required argument: 'a'"),
            ([1, 2, 3], "too many positional arguments"),
            (["1"], "a: Expected `int`, got `str`"),
            ([1, 2.5], "b: Expected `int`, got `float`"),
        ],
    )
    def test_arguments_that_do_not_fit_are_told_by_name(self, arguments: list[Any], said: str) -> None:
        assert registration_of(lambda: call_of(add, arguments)) == f"arguments: {__name__}.add: {said}"

    def test_the_place_inside_an_argument_is_told(self) -> None:
        said = registration_of(lambda: call_of(mirrored, [{"x": 1, "y": "2"}, {}]))

        assert said.endswith("at.y: Expected `int`, got `str`")

    def test_a_host_refuses_the_wrong_number(self) -> None:
        known = find(f"{__name__}.add")
        assert known is not None

        assert registration_of(lambda: known.decode(b"[]")).endswith("takes 1 to 2 arguments, not 0")

    def test_a_host_refuses_what_is_no_list(self) -> None:
        known = find(f"{__name__}.add")
        assert known is not None

        assert "arguments" in registration_of(lambda: known.decode(b'{"a": 1}'))

    def test_a_keyword_that_is_no_parameter_is_refused(self) -> None:
        assert registration_of(lambda: call_of(add, [1], {"c": 2})).endswith("c cannot be given by name")

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (object(), "cannot be written as JSON"),
            ("\ud800", "cannot be written as JSON"),
            (2**64, "an integer in it has more than 64 bits"),
            ("x" * 1024 * 1024, "are more than 1,048,576"),
        ],
    )
    def test_what_cannot_travel_is_refused(self, value: Any, said: str) -> None:
        assert said in registration_of(lambda: call_of(anything, [value]))

    def test_a_number_that_json_does_not_have_is_refused(self) -> None:
        assert "Expected `float`, got `null`" in registration_of(lambda: call_of(later, [math.nan]))

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**64 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
            ),
        )
    )
    def test_whatever_json_has_arrives_as_it_was(self, value: Any) -> None:
        known = find(f"{__name__}.anything")
        assert known is not None

        assert known.decode_result(known.encode_result(value)) == value


class TestResults:
    def test_a_result_is_typed_at_the_caller_again(self) -> None:
        known = find(f"{__name__}.mirrored")
        assert known is not None

        travelling = known.encode_result(Point(1, 2))

        assert travelling == {"x": 1, "y": 2}
        assert known.decode_result(travelling) == Point(1, 2)

    def test_a_result_of_another_type_is_refused(self) -> None:
        known = find(f"{__name__}.add")
        assert known is not None

        assert registration_of(lambda: known.encode_result("3")).endswith("add: Expected `int`, got `str`")


class TestContext:
    def test_there_is_none_outside_of_a_task(self) -> None:
        assert registration_of(current) == "current: this code does not run as a task, so there is no current one"

    def test_progress_is_told(self) -> None:
        told: list[Any] = []
        context = function.Context("tsk_1", "att_1", 3, tell=told.append)

        context.progress(50, stage="half", counts={"files": 2})

        assert [(one.percent, one.stage, one.counts) for one in told] == [(50.0, "half", {"files": 2})]
        assert context.idempotency_key == "tsk_1"

    @pytest.mark.parametrize("percent", [-1, 101, math.nan, "half"])
    def test_a_percent_that_is_none_is_refused(self, percent: Any) -> None:
        context = function.Context("tsk_1", "att_1", 3)

        assert registration_of(lambda: context.progress(percent)).startswith("progress: ")
