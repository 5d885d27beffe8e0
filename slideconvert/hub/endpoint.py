"""Where the Hub is."""

from __future__ import annotations

import os
from ipaddress import ip_address
from urllib.parse import urlsplit

from ..errors import InputError


def endpoint() -> str:
    """The URL of the Hub: HF_ENDPOINT or the public Hub, read at every call (huggingface_hub reads it once).

    InputError if a token would be sent to it unencrypted, but to this machine.
    """
    from huggingface_hub import constants, get_token

    url = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme == "http" and not _is_this_machine(parts.hostname or "") and get_token():
        raise InputError(
            f"HF_ENDPOINT={url} is not encrypted: everyone on the way could read your token",
            hint="use https, or log out of the Hub (unset HF_TOKEN, hf auth logout): public models need no token",
        )
    return url


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def host() -> str:
    """The host name of the Hub, without credentials."""
    return urlsplit(endpoint()).hostname or "HF_ENDPOINT"
