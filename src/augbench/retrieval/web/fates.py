"""Fates and limits: the possible outcomes of a URL, and the limits that decide them.

The cache and the ledgers store fates as these strings.
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
    DEAD_DNS_FOR_NOW: "the name server gave no answer; also on machines without internet access",
    DEAD_CONNECTION: "refused, or closed before the answer was complete",
    DEAD_TLS: "no TLS, or no valid certificate",
    DEAD_NOT_HTTP: "the answer is not HTTP",
    DEAD_HTTP: "an answer other than 200; the fate names the status",
    TIMEOUT: "not complete within the deadline",
    TOO_LARGE: "more bytes than max_bytes",
    TOO_MANY_PIXELS: "more pixels than max_pixels, by its header",
    TOO_SMALL: "its shorter side is below min_side",
    NOT_AN_IMAGE: "in none of the accepted formats, whatever its name or Content-Type says",
    UNDECODABLE: "begins like an image, but is truncated or corrupt",
    REFUSED_ADDRESS: "an address that is not on the public internet, directly, by DNS or by redirect",
    REFUSED_SCHEME: "neither http nor https, directly or by redirect",
    REFUSED_CREDENTIALS: "the URL holds a user name or a password",
    BAD_URL: "not a URL",
    REDIRECT_LOOP: "redirected to an address that was already visited",
    TOO_MANY_REDIRECTS: "more redirects than max_redirects",
    OPT_OUT: "X-Robots-Tag forbids it",
}
"""Every fate, with its meaning; a URL has exactly one."""

LIMITED = {TOO_LARGE, TOO_MANY_PIXELS, TOO_SMALL, REFUSED_ADDRESS, TOO_MANY_REDIRECTS, OPT_OUT}
"""Fates that may differ under other limits."""

_TRANSIENT_STATUS = {429, *range(500, 600)}


def is_transient(fate: str) -> bool:
    """Whether a later attempt may succeed: timeout, lost connection, silent name server, HTTP 429 or 5xx."""
    return fate in (TIMEOUT, DEAD_CONNECTION, DEAD_DNS_FOR_NOW) or fate in {
        DEAD_HTTP.format(status=status) for status in _TRANSIENT_STATUS
    }


class Ended(Exception):
    """A URL ends with this fate; its server asks to wait ``retry_after`` seconds before another request."""

    def __init__(self, fate: str, retry_after: float = 0.0) -> None:
        super().__init__(fate)
        self.fate, self.retry_after = fate, retry_after


@dataclass(frozen=True)
class Limits:
    """Limits on the cost of a download, and on the addresses it may use.

    Memory: up to ``concurrency`` files of ``max_bytes``, and about 16 bytes for each of ``max_pixels`` per
    decoding thread (at most 4 threads).

    Attributes
    ----------
    concurrency, per_host : int
        Images in flight, in total and per host (name and port).
    timeout_s : float
        Seconds for one image, including redirects, retries and slow transfer, but not the wait for its
        host's turn.
    max_bytes, max_pixels : int
        Largest file (after decompression of the transfer) and largest image. Pillow itself refuses images
        above 178 million pixels.
    min_side : int
        Smallest side of an image that is kept, in pixels.
    max_redirects, retries : int
        Redirects followed; further attempts after connection errors, 429 and 5xx.
    backoff_s : float
        Seconds before the first further attempt, doubled for each later one. A longer Retry-After is
        respected, within the deadline.
    allow_private : tuple of str
        Networks ("127.0.0.1/32") that may be connected to although they are not public.
    respect_opt_out : bool
        Refuse an image with ``X-Robots-Tag: noai, noimageai, noml, noindex, noimageindex`` or ``none``. A
        tag for a named crawler ("googlebot: noindex") counts as well.
    user_agent : str
        User-Agent header of the requests.
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
        """The limits that decide fates, as JSON; a URL refused under other limits is fetched again."""
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
        """Parse ``allow_private``.

        Raises
        ------
        UserError
            An entry is not a network.
        """
        try:
            return [ipaddress.ip_network(network) for network in self.allow_private]
        except ValueError as error:
            raise UserError(
                "allow_private", str(error), "give networks such as 127.0.0.0/8 or ::1/128"
            ) from None
