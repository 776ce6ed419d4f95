"""Files of data sets that are fetched from where they were published."""

import http.client
import urllib.error
import urllib.request

_SECONDS = 60
"""How long a server may say nothing."""


def content(url: str, otherwise: str) -> bytes:
    """What is at an address.

    Args:
      url: the address.
      otherwise: what can be done without a network, for the message.

    Raises:
      OSError: it cannot be read, whatever the reason.
    """
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise OSError(
            f"{url} cannot be read ({reason!s}); try again with a network, or {otherwise}"
        ) from error
