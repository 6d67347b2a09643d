"""Twins are made of what they are twins of, and a call that is awaited by mistake does nothing."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import prefect_dstack
from prefect_dstack.asynchronous import asynchronous, asynchronous_iterator, refuse_await
from prefect_dstack.errors import NotFoundError, UserError

TWINS = [name for name in prefect_dstack.__all__ if f"a{name}" in prefect_dstack.__all__]
# Neither asks anything, nor runs for long.
ALONE = {"connect", "load_configuration", "service"}

done: list[str] = []


def divide(number: int, by: int = 2) -> float:
    """Divide a number."""
    return number / by


def count(to: int) -> Iterator[int]:
    """Count."""
    yield from range(to)


def guarded() -> str:
    caller = inspect.currentframe()
    assert caller is not None
    refuse_await(caller.f_back, "guarded")
    done.append("guarded")
    return "done"


def test_every_function_has_a_twin() -> None:
    functions = {name for name in prefect_dstack.__all__ if name.islower() and not name.startswith("a")}

    assert functions - set(TWINS) == ALONE


@pytest.mark.parametrize("name", TWINS)
def test_twins_share_signature_and_docstring(name: str) -> None:
    one, twin = getattr(prefect_dstack, name), getattr(prefect_dstack, f"a{name}")
    function = getattr(one, "fn", one)

    assert inspect.iscoroutinefunction(twin) or inspect.isasyncgenfunction(twin)
    assert inspect.signature(twin) == inspect.signature(function)
    assert twin.__doc__ is function.__doc__
    assert twin.__name__ == f"a{name}"


def test_a_twin_runs_in_a_thread_and_passes_on_errors() -> None:
    async def main() -> None:
        assert await asynchronous(divide)(3, by=4) == 0.75
        assert await asynchronous(threading.get_ident)() != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await asynchronous(divide)(1, 0)

    asyncio.run(main())


def test_a_twin_of_an_iterator_yields_the_same_and_passes_on_errors() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise NotFoundError("gone")

    async def main() -> None:
        assert [number async for number in asynchronous_iterator(count)(3)] == [0, 1, 2]
        numbers = aiter(asynchronous_iterator(failing)())
        assert await anext(numbers) == 1
        with pytest.raises(NotFoundError, match="gone"):
            await anext(numbers)

    asyncio.run(main())


def test_an_awaited_call_is_refused_before_it_does_anything() -> None:
    async def mistaken() -> Any:
        return await guarded()  # type: ignore[misc]

    async def within_an_expression() -> Any:
        return [await guarded(), 1]  # type: ignore[misc]

    done.clear()
    for coroutine in (mistaken, within_an_expression):
        with pytest.raises(UserError, match="guarded is not asynchronous, nothing was done: await aguarded"):
            asyncio.run(coroutine())
    assert done == []


def test_a_call_in_a_coroutine_that_is_not_awaited_is_none_of_our_business() -> None:
    async def notebook() -> str:
        answer = guarded()
        await asyncio.sleep(0)
        return answer

    assert asyncio.run(notebook()) == "done"
    assert guarded() == "done"
