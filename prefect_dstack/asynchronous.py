"""Asynchronous twins of functions and flows, which run in a thread that a cancellation reaches."""

from __future__ import annotations

import asyncio
import ctypes
import dis
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextvars import copy_context
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from prefect_dstack.errors import UserError

__all__ = ["Abandoned", "asynchronous", "asynchronous_iterator", "in_thread", "refuse_await"]

# Seconds between two looks at a flow that was interrupted.
POLL = 0.05

P = ParamSpec("P")
R = TypeVar("R")


class Abandoned(BaseException):
    """Raised in a flow whose asynchronous caller was cancelled, or timed out."""


def asynchronous(function: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return the asynchronous twin of a function or flow: the same arguments, result, errors and docstring.

    Args:
        function: What runs in a thread each time that the twin is awaited.
    """

    @wraps(getattr(function, "fn", function))
    async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
        return await in_thread(function, *args, **kwargs)

    return _named(twin)


def asynchronous_iterator(function: Callable[P, Iterator[R]]) -> Callable[P, AsyncIterator[R]]:
    """Return the asynchronous twin of a function that yields.

    Args:
        function: What runs in a thread until it yields, each time that the twin is asked for more.
    """

    @wraps(function)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        items = await in_thread(function, *args, **kwargs)
        end = object()
        while (item := await in_thread(next, items, end)) is not end:
            yield item  # type: ignore[misc]

    return _named(twin)


def _named(twin: R) -> R:
    for attribute in ("__name__", "__qualname__"):
        setattr(twin, attribute, f"a{getattr(twin, attribute)}")
    return twin


def refuse_await(caller: FrameType | None, name: str) -> None:
    """Refuse a call whose result is awaited although the function is not asynchronous.

    It would do its work, and only then fail. Calls without `await` are left alone, in coroutines too: a
    notebook runs all of its code in an event loop.

    Args:
        caller: The frame of the caller, which is at the call.
        name: The function.

    Raises:
        UserError: If the call is awaited.
    """
    if caller is None or not caller.f_code.co_flags & inspect.CO_COROUTINE:
        return
    after = (step for step in dis.get_instructions(caller.f_code) if step.offset > caller.f_lasti)
    if (following := next(after, None)) is not None and following.opname == "GET_AWAITABLE":
        raise UserError(f"{name} is not asynchronous, nothing was done: await a{name} instead")


async def in_thread(flow: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a flow in a thread of its own.

    Where the caller is cancelled meanwhile, the flow is interrupted, and has undone what it began when the
    cancellation goes on.

    Args:
        flow: The flow.
        *args: Its arguments.
        **kwargs: Its arguments by name.

    Returns:
        What the flow returns.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[R] = loop.create_future()
    context = copy_context()

    def settle(result: R | None, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(result)  # type: ignore[arg-type]

    def call() -> None:
        try:
            result = context.run(flow, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, result, None)

    thread = threading.Thread(target=call, name="prefect-dstack flow", daemon=True)
    thread.start()
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        _interrupt(thread)
        await _ended(thread, ended)
        raise


async def _ended(thread: threading.Thread, ended: asyncio.Future[R]) -> None:
    """Wait until an interrupted flow has undone what it began, however often the caller is cancelled."""
    while thread.is_alive():
        try:
            await asyncio.wait([ended], timeout=POLL)
        except asyncio.CancelledError:
            thread.join(POLL)
    if ended.done():
        ended.exception()


def _interrupt(thread: threading.Thread) -> None:
    """Raise `Abandoned` in a thread, as soon as it runs Python code."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Abandoned))
