"""Asynchronous twins of flows: the flow runs in a thread, and its caller's cancellation reaches it."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import ParamSpec, TypeVar

__all__ = ["Abandoned", "in_thread"]

# Seconds between two looks at a flow that was interrupted.
POLL = 0.05

P = ParamSpec("P")
R = TypeVar("R")


class Abandoned(BaseException):
    """Raised in a flow whose asynchronous caller was cancelled, or timed out."""


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
