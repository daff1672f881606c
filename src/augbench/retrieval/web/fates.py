"""Fates and limits: what may become of a URL, and what decides it.

Flows in: what a study allows a download. Flows out: :class:`Limits`, and the words for what became of a URL, which the cache and the ledgers keep.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass

from augbench.errors import UserError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FETCHED = "fetched"
DEAD_DNS = "dead: DNS"
DEAD_DNS_FOR_NOW = "dead: DNS, for now"
DEAD_CONNECTION = "dead: connection"
DEAD_TLS = "dead: TLS"
DEAD_NOT_HTTP = "dead: not HTTP"
DEAD_HTTP = "dead: HTTP {status}"
TIMEOUT = "timeout"
TOO_LARGE = "too large"
TOO_MANY_PIXELS = "too many pixels"
TOO_SMALL = "too small"
NOT_AN_IMAGE = "not an image"
UNDECODABLE = "undecodable"
REFUSED_ADDRESS = "refused address"
REFUSED_SCHEME = "refused scheme"
REFUSED_CREDENTIALS = "refused credentials"
BAD_URL = "bad URL"
REDIRECT_LOOP = "redirect loop"
TOO_MANY_REDIRECTS = "too many redirects"
OPT_OUT = "opt-out"

FATES = {
    FETCHED: "the image is in the cache",
    DEAD_DNS: "no such host",
    DEAD_DNS_FOR_NOW: "the name server gave no answer; also on machines without a way to the web",
    DEAD_CONNECTION: "refused, or broken off before the answer was whole",
    DEAD_TLS: "no TLS, or no valid certificate",
    DEAD_NOT_HTTP: "the answer is not HTTP",
    DEAD_HTTP: "an answer other than 200; the status stands in the fate",
    TIMEOUT: "not there within the deadline",
    TOO_LARGE: "more bytes than max_bytes",
    TOO_MANY_PIXELS: "more pixels than max_pixels, by its header",
    TOO_SMALL: "its shorter side is below min_side",
    NOT_AN_IMAGE: "in none of the accepted formats, whatever its name or Content-Type say",
    UNDECODABLE: "begins as an image, but is truncated or corrupt",
    REFUSED_ADDRESS: "an address that is not on the public internet, directly, by DNS or by redirect",
    REFUSED_SCHEME: "neither http nor https, directly or by redirect",
    REFUSED_CREDENTIALS: "the URL holds a user name or a password",
    BAD_URL: "not a URL",
    REDIRECT_LOOP: "redirected to where it has been",
    TOO_MANY_REDIRECTS: "more redirects than max_redirects",
    OPT_OUT: "X-Robots-Tag forbids it",
}
"""Every fate, with its meaning; a URL has exactly one."""

LIMITED = {TOO_LARGE, TOO_MANY_PIXELS, TOO_SMALL, REFUSED_ADDRESS, TOO_MANY_REDIRECTS, OPT_OUT}
"""The fates that other limits may change."""

_TRANSIENT_STATUS = {429, *range(500, 600)}


def is_transient(fate: str) -> bool:
    """Whether another day may bring another fate: timeouts, broken connections, silent name servers, HTTP 429 and 5xx."""
    return fate in (TIMEOUT, DEAD_CONNECTION, DEAD_DNS_FOR_NOW) or fate in {
        DEAD_HTTP.format(status=status) for status in _TRANSIENT_STATUS
    }


class Ended(Exception):
    """A URL's way ends here, with this fate; ``retry_after`` is how many seconds its server asks to be left alone."""

    def __init__(self, fate: str, retry_after: float = 0.0) -> None:
        super().__init__(fate)
        self.fate, self.retry_after = fate, retry_after


@dataclass(frozen=True)
class Limits:
    """What a download may cost and where it may go.

    Memory: up to ``concurrency`` files of ``max_bytes``, and per decoding thread (at most 4) some 16 bytes for each of ``max_pixels``.

    Attributes
    ----------
    concurrency, per_host : int
        Images in flight, in all and per host (name and port).
    timeout_s : float
        Seconds for one image: redirects, retries and slow bytes included, waiting for its host's turn excluded.
    max_bytes, max_pixels : int
        Largest file, after decompression of the transfer, and largest image. Above 178 million pixels Pillow refuses as well.
    min_side : int
        Shortest side that is kept, in pixels.
    max_redirects, retries : int
        Redirects followed; further attempts after connection errors, 429 and 5xx.
    backoff_s : float
        Seconds before the first further attempt, doubled for each one after it; a longer Retry-After is respected, within the deadline.
    allow_private : tuple of str
        Networks ("127.0.0.1/32") that may be connected to although they are not public.
    respect_opt_out : bool
        Refuse what carries ``X-Robots-Tag: noai, noimageai, noindex, noimageindex`` or ``none``; a tag for a named crawler ("googlebot: noindex")
        is read as meant for us as well.
    user_agent : str
        How requests introduce themselves.
    """

    concurrency: int = 64
    per_host: int = 4
    timeout_s: float = 20.0
    max_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    min_side: int = 32
    max_redirects: int = 5
    retries: int = 2
    backoff_s: float = 0.5
    allow_private: tuple[str, ...] = ()
    respect_opt_out: bool = True
    user_agent: str = "augbench"

    @property
    def signature(self) -> str:
        """The limits that decide fates, as JSON: a refusal under other limits is looked at again."""
        deciding = (
            "max_bytes",
            "max_pixels",
            "min_side",
            "max_redirects",
            "allow_private",
            "respect_opt_out",
        )
        return json.dumps({name: getattr(self, name) for name in deciding})

    def networks(self) -> list[Network]:
        """``allow_private``, parsed.

        Raises
        ------
        UserError
            One of them is no network.
        """
        try:
            return [ipaddress.ip_network(network) for network in self.allow_private]
        except ValueError as error:
            raise UserError(
                "allow_private", str(error), "give networks such as 127.0.0.0/8 or ::1/128"
            ) from None
