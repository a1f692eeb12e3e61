"""From a request to who is asking: bearer token in, user out; and the service that all routes speak to.

Owns the FastAPI dependencies. Which user may do what is in `access.py`; which token is whose, the service
knows.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from superpipe_cluster.api.service import Service
from superpipe_cluster.errors import Unauthorized
from superpipe_cluster.store.interface import User

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="The token that `spcluster up` stored for the admin, or that `spcluster user add` printed.",
)


async def service_of(request: Request) -> Service:
    """The service that this application was built over; async, for a thread would take longer than the answer."""
    return request.app.state.service


AService = Annotated[Service, Depends(service_of)]


def user_of(
    service: AService, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
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
    user = service.authenticate(credentials.credentials)
    if user is None:
        raise Unauthorized(
            "the cluster does not know this token",
            hint="it may be of an earlier cluster; an admin makes a new one with `spcluster user add NAME`",
        )
    return user


AUser = Annotated[User, Depends(user_of)]
