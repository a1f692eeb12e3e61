"""From a request to who is asking: bearer token in, user out; and the service that all routes speak to.

Owns the FastAPI dependencies, and for how long somebody who was let in is let in unasked. Which user may do what is in
`access.py`; which token is whose, the service knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from superpipe_cluster.api.service import Service
from superpipe_cluster.errors import Unauthorized
from superpipe_cluster.store.interface import User

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="The token that `spcluster up` stored for the admin, or that `spcluster user add` printed.",
)

#: Seconds for which the service's word on a token is good. Asking it takes a thread, and that more time than the rest
#: of a short answer.
_GOOD_FOR_S = 5.0


class Guests:
    """Who was let in a moment ago. Used by the server's one thread.

    Args:
        monotonic: a clock of seconds that never goes back.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        #: Token -> whose it is, and when the service said so.
        self._users: dict[str, tuple[User, float]] = {}

    def known(self, token: str) -> User | None:
        """Whose token this is, if the service was asked a moment ago."""
        user, at_s = self._users.get(token, (None, 0.0))
        return user if self._monotonic() - at_s < _GOOD_FOR_S else None

    def let_in(self, token: str, user: User) -> None:
        """Keep what the service has just said."""
        self._users[token] = user, self._monotonic()


async def service_of(request: Request) -> Service:
    """The service that this application was built over; async, for a thread would take longer than the answer."""
    return request.app.state.service


AService = Annotated[Service, Depends(service_of)]


async def user_of(
    request: Request,
    service: AService,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> User:
    """Who is asking.

    Raises:
        Unauthorized: no bearer token in the request, or nobody's.
    """
    if credentials is None:
        raise Unauthorized(
            "no token was sent",
            hint="send `Authorization: Bearer <token>`; the command line takes it from SPCLUSTER_TOKEN",
        )
    guests: Guests = request.app.state.guests
    token = credentials.credentials
    user = guests.known(token)
    if user is None:
        user = await run_in_threadpool(service.authenticate, token)
        if user is not None:
            guests.let_in(token, user)
    if user is None:
        raise Unauthorized(
            "the cluster does not know this token",
            hint="it may be of an earlier cluster; an admin makes a new one with `spcluster user add NAME`",
        )
    return user


AUser = Annotated[User, Depends(user_of)]
