"""Where the cluster is and who we are: its URL and our token.

Owns the lookup: `SPCLUSTER_URL` and `SPCLUSTER_TOKEN` first, then `cluster.json` and `token` in the home
directory (`$SPCLUSTER_HOME`, else `~/.spcluster`), which `spcluster up` writes. Talks to nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from superpipe_cluster.errors import BadInput, NotRunning, Unauthorized

_OTHERS = "to use somebody else's cluster, set SPCLUSTER_URL and SPCLUSTER_TOKEN"


@dataclass(frozen=True, slots=True)
class Connection:
    """An address and a token; the token stays out of reprs, and so out of logs."""

    url: str
    token: str = field(repr=False)


def home_directory(environ: Mapping[str, str]) -> Path:
    """The folder that holds the cluster's files: `$SPCLUSTER_HOME`, else `~/.spcluster`."""
    named = environ.get("SPCLUSTER_HOME")
    return Path(named).expanduser().absolute() if named else Path.home() / ".spcluster"


def find_cluster(environ: Mapping[str, str]) -> Connection:
    """The cluster that the environment names, or the one of the home directory.

    Raises:
        NotRunning: no cluster of this home directory runs.
        Unauthorized: there is a cluster, but no token to show it, or no permission to read it.
        BadInput: SPCLUSTER_URL is not an http(s) address.
    """
    home = home_directory(environ)
    url = environ.get("SPCLUSTER_URL") or _url_of(home)
    token = environ.get("SPCLUSTER_TOKEN") or _token_of(home, url)
    return Connection(checked_url(url), checked_token(token))


def checked_url(url: str) -> str:
    """The address without a trailing slash.

    Raises:
        BadInput: it is not an http(s) address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"`{url}` is not the address of a cluster", hint="it looks like http://127.0.0.1:7077")
    return url.rstrip("/")


def checked_token(token: str) -> str:
    """The token without the line end that files and copying add.

    Raises:
        Unauthorized: it has characters that no token has, and that HTTP could not carry.
    """
    stripped = token.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise Unauthorized(
            "what stands for the token is none: it is empty, or has spaces or special characters in it",
            hint="set SPCLUSTER_TOKEN to the one line that `spcluster user add` printed",
        )
    return stripped


def _url_of(home: Path) -> str:
    path = home / "cluster.json"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return str(written["url"])
    except FileNotFoundError:
        raise NotRunning(
            f"no cluster is running ({path} is not there)", hint=f"`spcluster up` starts one; {_OTHERS}"
        ) from None
    except PermissionError:
        raise Unauthorized(f"{path} may only be read by whoever started the cluster", hint=_OTHERS) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotRunning(
            f"{path} cannot be used ({type(error).__name__})",
            hint="`spcluster down` cleans up, `spcluster up` starts again",
        ) from None


def _token_of(home: Path, url: str) -> str:
    path = home / "token"
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        raise Unauthorized(
            f"there is no token for the cluster at {url}: SPCLUSTER_TOKEN is not set, {path} cannot be read",
            hint="an admin makes one with `spcluster user add NAME`; then export SPCLUSTER_TOKEN=...",
        ) from None
