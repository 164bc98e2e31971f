"""Questions to the Hugging Face hub: asked again where that may help; what went wrong as one line with its remedy."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

TRIES = 4
WAIT = 2.0
"""Seconds before the second try; each further wait is twice as long, or as long as the hub asks, at most `LONGEST`."""

LONGEST = 60.0

BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which the same question may be answered a little later."""


def asked(question: Callable[[], Answer], *, what: str, remedy: str) -> Answer:
    """Ask the hub, again where it is busy or the line is down; ValueError saying why it gave nothing, and what to do.

    Offline (HF_HUB_OFFLINE=1) it is asked once: nothing is sent.
    """
    for number in range(TRIES):
        try:
            return question()
        except Exception as error:  # of huggingface_hub, of its transport, of the socket
            last = number + 1 == TRIES or _offline() or not _may_pass(error)
            if last:
                raise ValueError(f"{what} {_reason(error)}: {_remedy(error, remedy)}") from error
            time.sleep(_wait(error, number))
    raise AssertionError("the last try answers or raises")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _status(error: BaseException) -> int | None:
    """Give the status of the answer that an error is about; None where nothing answered."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _named(error: BaseException) -> set[str]:
    """Give the names of an error's classes: the hub's own differ in module from version to version."""
    return {each.__name__ for each in type(error).__mro__}


def _may_pass(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in BUSY
    return bool(_named(error) & {"ConnectionError", "Timeout", "TimeoutException", "TransportError", "TimeoutError"})


def _wait(error: BaseException, number: int) -> float:
    """Give the seconds to wait before the next try: what the hub asks for, else twice as long each time."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    told = str(headers.get("Retry-After", ""))
    return min(LONGEST, float(told) if told.isdecimal() else WAIT * 2**number)


def _reason(error: BaseException) -> str:
    """Say in a few words why the hub gave nothing."""
    names, status = _named(error), _status(error)
    if "OfflineModeIsEnabled" in names:
        return "is not in the local cache, and HF_HUB_OFFLINE forbids to ask the hub"
    if "GatedRepoError" in names:
        return "is gated: its owner lets in whom they know"
    if "RevisionNotFoundError" in names:
        return "has no such revision on the hub (404)"
    if "RepositoryNotFoundError" in names or status in (401, 404):
        return f"is not on the hub, or is private ({status or 404})"
    if status == 429:
        return "cannot be had now: the hub answers that it was asked too often (429)"
    if status is not None:
        return f"cannot be had now: the hub answers {status}"
    text = " ".join(str(error).split())[:160]
    return f"cannot be reached ({text or type(error).__name__})"


def _remedy(error: BaseException, remedy: str) -> str:
    """Say what to do: what helps against this reason, and the local folder that always does."""
    names, status = _named(error), _status(error)
    if "OfflineModeIsEnabled" in names:
        return f"unset HF_HUB_OFFLINE, or use a local one, {remedy}"
    if "GatedRepoError" in names:
        return f"ask for access on its page and give HF_TOKEN, or use a local one, {remedy}"
    if "RepositoryNotFoundError" in names or status in (401, 404):
        return f"check the name, give HF_TOKEN where it is private, or use a local one, {remedy}"
    if status == 429:
        return f"wait, give HF_TOKEN, or use a local one, {remedy}"
    return f"use a local one, {remedy}"
