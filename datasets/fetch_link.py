"""Links to addresses (`s3://`, `hf://`, `https://`): how to reach them, and which failures may pass by themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from fmri2img.errors import Fmri2imgError, InputError, StoppedError

T = TypeVar("T")

PROTOCOLS = ("s3", "hf", "https", "http")
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class AbsentError(InputError):
    """There is no file at an address."""


@dataclass(frozen=True)
class Link:
    """How a file is reached, and with how much patience.

    Attributes:
        options: by protocol (`s3`), for fsspec's file system of it, over fsspec's own configuration.
        block: bytes of one request.
        attempts: at one block, before the link counts as dead.
        wait: seconds before the second attempt, doubled each time (with jitter) up to `longest`.
        timeout: seconds without a byte after which a connection counts as lost.
        tries: at a whole file whose digest is wrong.
    """

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    block: int = 16 << 20
    attempts: int = 8
    wait: float = 1.0
    longest: float = 60.0
    timeout: float = 60.0
    tries: int = 3


def file_system(url: str, link: Link) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it.

    Raises:
        InputError: the address is of no kind that is read.
    """
    protocol = url.partition("://")[0]
    if protocol not in PROTOCOLS or "://" not in url:
        raise InputError(f"{url} is no address that can be read: use s3://, hf:// or https://.")
    import aiohttp
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol == "s3":  # one layer of retries is enough, and it is ours
        seconds = {"connect_timeout": link.timeout, "read_timeout": link.timeout}
        options["config_kwargs"] = seconds | {"retries": {"max_attempts": 0}}
    elif protocol != "hf":
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=link.timeout, sock_read=link.timeout)
        options["client_kwargs"] = {"timeout": timeout}
    system, path = url_to_fs(url, **options | dict(link.options.get(protocol, {})))
    if protocol == "s3":
        system.retries = 1
    return system, path


def patiently(url: str, link: Link, call: Callable[[], T], stop: threading.Event | None = None) -> T:
    """`call()`, again after a failure that may pass, and not once more when `stop` is set.

    Raises:
        AbsentError: there is no such file.
        InputError: there is no right to read it.
        StoppedError: the link was dead at every attempt.
    """
    from tenacity import (
        Retrying,
        retry_if_exception,
        sleep_using_event,
        stop_after_attempt,
        stop_when_event_set,
        wait_exponential,
        wait_random,
    )

    stop = stop or threading.Event()
    retrying = Retrying(
        stop=stop_after_attempt(link.attempts) | stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        wait=wait_exponential(multiplier=link.wait, max=link.longest) + wait_random(0, link.wait),
        retry=retry_if_exception(transient),
        reraise=True,
    )
    try:
        return retrying(call)
    except Fmri2imgError:
        raise
    except Exception as error:
        named = _named(url, link, error)
        if named is None:
            raise
        raise named from error


def transient(error: BaseException) -> bool:
    """Whether an error of a link may pass by itself."""
    status = status_of(error)
    if isinstance(error, Fmri2imgError) or status is not None or _offline(error):
        return status in _TRANSIENT_STATUS
    if isinstance(error, _PERMANENT):  # as fsspec also calls a file whose connection failed
        return error.__cause__ is not None and transient(error.__cause__)
    return isinstance(error, _link_errors())


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error stands for, whichever of the libraries raised it."""
    from aiohttp import ClientResponseError

    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)
        status: Any
        if isinstance(cause, ClientResponseError):
            status = cause.status
        elif isinstance(response, Mapping):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # httpx and what the Hugging Face hub makes of it
            status = getattr(response, "status_code", None)
        if isinstance(status, int) and status >= 400:
            return status
    return None


@lru_cache
def _link_errors() -> tuple[type[BaseException], ...]:
    import aiohttp
    from botocore import exceptions as botocore  # type: ignore[import-untyped, unused-ignore]
    from fsspec.exceptions import FSTimeoutError
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfHubHTTPError.__bases__[
        0
    ]  # HTTPError of the library that the hub's client uses: one, later another
    own = (OSError, TimeoutError, FSTimeoutError, hub)
    return (*own, aiohttp.ClientError, botocore.HTTPClientError, botocore.ConnectionError)


def _offline(error: BaseException) -> bool:
    return type(error).__name__ == "OfflineModeIsEnabled"  # a ConnectionError of huggingface_hub


def _named(url: str, link: Link, error: Exception) -> Fmri2imgError | None:
    """The sentence for a failure that stayed; None for one that is no failure of the link."""
    status, lacks_key = (
        status_of(error),
        type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"),
    )
    source = (error.__cause__ or error) if isinstance(error, _PERMANENT) else error
    said = f"status {status}" if status is not None else " ".join(str(source).split()) or type(error).__name__
    if transient(error):
        return StoppedError(
            f"{url}: the link failed {link.attempts} times in a row ({said}): what has arrived is kept, and the "
            "same command goes on from there once the link is back."
        )
    if _offline(error):
        return InputError(
            f"{url} cannot be read: HF_HUB_OFFLINE is set; unset it to reach the Hugging Face hub."
        )
    if isinstance(error, PermissionError) or status in (401, 403) or lacks_key:
        return InputError(
            f"{url} may not be read ({said}): sign in as its owner asks, or set FSSPEC_S3_ANON=true for a "
            "public bucket."
        )
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return AbsentError(f"{url} does not exist: check the address.")
    if status is not None or isinstance(error, (OSError, ValueError)):
        return InputError(f"{url} cannot be read ({said}): check the address.")
    return None
