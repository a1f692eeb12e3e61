"""Routes about people: who has a token, and giving one to somebody new. For admins.

Owns the HTTP side only; tokens are made and hashed by the service.
"""

from __future__ import annotations

from fastapi import APIRouter

from superpipe_cluster.api.access import require_admin
from superpipe_cluster.api.auth import AService, AUser
from superpipe_cluster.api.views import NewUserView, UserList, UserRequest, UserView

router = APIRouter(tags=["users"])


@router.post("/v1/users", status_code=201, summary="Let somebody in", response_model=NewUserView)
def add_user(body: UserRequest, user: AUser, service: AService) -> NewUserView:
    """Create a user. The answer is the only place where their token ever appears."""
    require_admin(user)
    token = service.add_user(user, body.name, body.role)
    return NewUserView(name=body.name, role=body.role, token=token)


@router.get("/v1/users", summary="Everybody with a token", response_model=UserList)
def users(user: AUser, service: AService) -> UserList:
    """The users, by name."""
    require_admin(user)
    return UserList(users=tuple(UserView(name=who.name, role=who.role) for who in service.users(user)))
