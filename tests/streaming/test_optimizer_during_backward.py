"""Updates that begin before `step()`: the bits of plain PyTorch, really beside backward; everything else is refused."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from streaming.models import CASES
from streaming.twins import Blocks, assert_equal, assert_same_run, batch, mean_square, train
from superpipe_cluster.errors import BadInput, Unstreamable
from superpipe_cluster.streaming import Streamer, VirtualDevice, stream

AdamW, SGD = torch.optim.AdamW, torch.optim.SGD
EARLY: dict[str, Any] = {"where": "on_host", "during_backward": True}


def _seen(kind: type[torch.optim.Optimizer], began: Callable[[], object]) -> type[torch.optim.Optimizer]:
    """`kind`, which tells of each update; every unit has a plain optimizer of its own."""

    class Seen(kind):
        def step(self, closure=None):
            began()
            return super().step(closure)

    Seen.__module__ = kind.__module__
    return Seen


# ---- the bits ----------------------------------------------------------------------------------------------


def _same_early_run(
    kind: type[torch.optim.Optimizer], build: Callable[[], nn.Module], loss_of: Any, **options: Any
) -> None:
    """Five steps; from the second on, some update begins without `step()`."""

    def program(model, make_optimizer):
        began = threading.Event()
        if make_optimizer.__name__ == "optimizer":
            optimizer = make_optimizer(_seen(kind, began.set), **EARLY, **options)
        else:
            optimizer = make_optimizer(kind, **options)
            began.set()
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
        losses = []
        for step in range(5):
            loss = loss_of(model, step)
            loss.backward()
            losses.append(loss.detach().clone())
            assert step == 0 or began.wait(60)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=step != 2)
            if make_optimizer.__name__ == "optimizer":
                optimizer.finish()
                began.clear()
        state = optimizer.state_dict()["state"].values()
        return losses, [[one.clone() for one in values.values() if one is not None] for values in state]

    stats = assert_same_run(program, build)
    assert stats.loads > stats.units


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("gpt2-tied", AdamW, {"lr": 0.01}),
        ("gpt2-tied", SGD, {"lr": 0.01, "momentum": 0.9}),
        ("called-twice", AdamW, {"lr": 0.01}),
        ("unused-and-frozen", SGD, {"lr": 0.01, "momentum": 0.9}),
        ("checkpointed-span", AdamW, {"lr": 0.01}),
    ],
)
def test_the_bits_of_a_plain_optimizer(name: str, kind: Any, options: dict[str, float]) -> None:
    case = CASES[name]
    _same_early_run(kind, case.build, lambda model, step: case.loss(model, step)[1], **options)


_SLOW = VirtualDevice(link_bytes_per_s=4e6)


@pytest.mark.parametrize("extra", [{"device": _SLOW}, {"activations": "recompute"}, {"host": "disk"}])
def test_with_other_ways_of_streaming(extra: dict[str, Any]) -> None:
    def program(model, make_optimizer):
        is_streamed = make_optimizer.__name__ == "optimizer"
        groups = [
            {"params": list(model.layers[:3].parameters()), "lr": 0.1},
            {"params": [model.layers[4][0].weight, *model.layers[5].parameters()], "weight_decay": 0.5},
        ]
        optimizer = make_optimizer(AdamW, groups, lr=torch.tensor(0.01), **(EARLY if is_streamed else {}))
        losses = train(model, optimizer, 3)
        optimizer.add_param_group({"params": list(model.inside.parameters()), "betas": (0.5, 0.9)})
        model.layers[1][2].bias.requires_grad_(False)
        return losses + train(model, optimizer, 3)

    stats = assert_same_run(program, **extra)
    assert stats.loads > stats.units


def test_masters_that_are_stepped_early() -> None:
    torch.manual_seed(0)
    early, late = (Blocks().to(torch.bfloat16) for _ in range(2))
    late.load_state_dict(early.state_dict())
    results = []
    for model, options in ((early, EARLY), (late, {"where": "on_host"})):
        with stream(model, k=2, poison=True) as streamer:
            optimizer = streamer.optimizer(AdamW, lr=1e-3, master_weights=torch.float32, **options)
            loss_of = lambda model, step: model(batch(step).bfloat16()).square().mean()  # noqa: E731
            results.append((train(model, optimizer, 4, loss_of), optimizer.state_dict()["state"]))
            assert streamer.stats().loads > streamer.stats().units
    assert_equal(*results)
    assert_equal(early.state_dict(), late.state_dict())


def test_a_closure_and_a_step_with_old_gradients() -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.1, **(EARLY if make_optimizer.__name__ == "optimizer" else {}))

        def closure():
            optimizer.zero_grad()
            loss = mean_square(model, 0)
            loss.backward()
            return loss

        losses = [optimizer.step(closure).detach() for _ in range(3)]
        optimizer.step()
        return losses

    assert_same_run(program)


@pytest.mark.parametrize("during_backward", [False, True])
def test_gradients_that_are_written_while_they_leave_for_an_update(during_backward: bool) -> None:
    def program(model, make_optimizer):
        is_streamed = make_optimizer.__name__ == "optimizer"
        extra = {"where": "on_host", "during_backward": during_backward} if is_streamed else {}
        optimizer = make_optimizer(SGD, lr=0.1, momentum=0.9, **extra)
        for step in range(3):
            mean_square(model, step).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

    assert assert_same_run(program, k=4, device=_SLOW).loads > 0


def test_gradients_that_the_program_holds_are_left_to_the_step() -> None:
    torch.manual_seed(0)
    plain = Blocks()
    model = copy.deepcopy(plain)
    held: list[torch.Tensor | None] = []
    for one in (plain, model):  # before streaming, so that they come before its own
        one.layers[2][0].weight.register_post_accumulate_grad_hook(lambda p: held.append(p.grad))

    def run(one: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(3):
            mean_square(one, step).backward()
            gradient = held.pop()
            assert gradient is not None
            gradient.mul_(2)
            optimizer.step()
            optimizer.zero_grad()

    run(plain, SGD(plain.parameters(), lr=0.1))
    with stream(model, k=2, poison=True) as streamer:
        run(model, streamer.optimizer(SGD, lr=0.1, **EARLY))
        assert streamer.stats().loads > streamer.stats().units
    assert_equal(plain.state_dict(), model.state_dict())


# ---- beside backward ---------------------------------------------------------------------------------------


class _Pause(torch.autograd.Function):
    """Backward stops here until `may_go_on()` returns."""

    @staticmethod
    def forward(ctx, x, may_go_on):
        ctx.may_go_on = may_go_on
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.may_go_on()
        return gradient, None


class Pausing(Blocks):
    """Backward pauses between the third block and the second."""

    may_go_on = staticmethod(lambda: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for at, layer in enumerate(self.layers):
            x = x + layer(x)
            if at == 1:
                x = _Pause.apply(x, self.may_go_on)
        return self.outside(x)


@pytest.mark.parametrize("k", [2, 6, None])
def test_an_update_begins_while_backward_waits_for_it(k: int | None) -> None:
    """Backward cannot go on before an update has begun, and the update cannot end before backward has."""
    log: list[str] = []
    began, ended = threading.Event(), threading.Event()
    waits = False

    def update() -> None:
        if waits:
            log.append("update")
            began.set()
            assert ended.wait(60)

    def may_go_on() -> None:
        if waits:
            assert began.wait(60)
            log.append("backward")

    torch.manual_seed(0)
    plain = Pausing()
    model = copy.deepcopy(plain)
    model.may_go_on = may_go_on  # type: ignore[method-assign]
    expected = train(plain, SGD(plain.parameters(), lr=0.1), 4)
    with stream(model, k=k, poison=True) as streamer:
        optimizer = streamer.optimizer(_seen(SGD, update), lr=0.1, **EARLY)
        actual = train(model, optimizer, 3)
        optimizer.finish()
        waits = True
        loss = mean_square(model, 3)
        loss.backward()
        actual.append(loss.detach().clone())
        optimizer.step()  # waits for nothing either
        assert log == ["update", "backward"]
        ended.set()
        optimizer.zero_grad()
        assert_equal(plain(batch()).detach(), model(batch()).detach())
        assert streamer.stats().loads > streamer.stats().units
    assert_equal(expected, actual)
    assert_equal(plain.state_dict(), model.state_dict())


# ---- what is refused ---------------------------------------------------------------------------------------


def _clip(model, optimizer):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def _unscale(model, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)


def _replace(model, optimizer):
    model.layers[3][0].weight.grad = torch.ones(32, 16)
    optimizer.step()


def _clear(model, optimizer):
    model.zero_grad()
    optimizer.step()


def _schedule(model, optimizer):
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] / 2
    try:
        optimizer.step()
    finally:
        for group, lr in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = lr


#: What the program does between backward and step, what the error says, and whether `step()` can still be called after
#: it: not where gradients or options are not known any more.
BETWEEN: dict[str, tuple[Callable[[Any, Any], object], str, bool]] = {
    "clip the norm": (_clip, "gradients of .* clipping", True),
    "clip values": (
        lambda model, _: torch.nn.utils.clip_grad_value_(model.parameters(), 0.1), "gradients of", True,
    ),
    "unscale": (_unscale, "gradients of .* GradScaler", True),
    "write a gradient": (lambda model, _: model.outside.weight.grad.mul_(2), "gradients of outside", True),
    "read a gradient": (lambda model, _: model.outside.weight.grad.tolist(), "gradients of outside", True),
    "clear gradients": (lambda _, optimizer: optimizer.zero_grad(), "zero_grad", True),
    "accumulate": (lambda model, _: mean_square(model, 9).backward(), "model was called", True),
    "evaluate": (lambda model, _: model.eval()(batch()), "model was called", True),
    "call a part": (lambda model, _: model.outside(batch()), "weights of outside", True),
    "save the model": (lambda model, _: model.state_dict(), "weights of", True),
    "save the optimizer": (lambda _, optimizer: optimizer.state_dict(), "state_dict", True),
    "step with another": (
        lambda model, _: SGD(model.parameters(), lr=0.1).step(), "gradients of|weights of", True,
    ),
    "replace a gradient": (_replace, "replaced or cleared", False),
    "clear them elsewhere": (_clear, "replaced or cleared", False),
    "change the lr": (_schedule, r"option \(as lr\)", False),
}  # fmt: skip


class Pair:
    """A plain model and its streamed twin after `steps` equal steps, and then one backward."""

    def __init__(
        self, steps: int, build: Callable[[], nn.Module] = Blocks, loss_of: Any = mean_square
    ) -> None:
        torch.manual_seed(0)
        self.plain = build()
        self.model = copy.deepcopy(self.plain)
        self.loss_of = loss_of
        self.plain_optimizer = AdamW(self.plain.parameters(), lr=0.01)
        self.streamer: Streamer = stream(self.model, k=2, poison=True)
        self.optimizer = self.streamer.optimizer(AdamW, lr=0.01, **EARLY)
        self.train(steps)

    def train(self, steps: int) -> None:
        expected = train(self.plain, self.plain_optimizer, steps, self.loss_of)
        assert_equal(expected, train(self.model, self.optimizer, steps, self.loss_of))

    def backward(self) -> None:
        for model in (self.plain, self.model):
            self.loss_of(model, 7).backward()

    def step(self) -> None:
        for optimizer in (self.plain_optimizer, self.optimizer):
            optimizer.step()
            optimizer.zero_grad()

    def finish(self) -> None:
        """Everything is as in the plain twin, and goes on like that."""
        assert_equal(self.plain.state_dict(), {n: one.clone() for n, one in self.model.state_dict().items()})
        self.train(2)
        assert self.streamer.stats().loads > self.streamer.stats().units
        assert self.streamer.stats().peak_units <= 2
        self.streamer.close()
        assert_equal(self.plain.state_dict(), self.model.state_dict())


def _refused(pair: Pair, name: str, begun: str) -> Unstreamable:
    between, says, _ = BETWEEN[name]
    with pytest.raises(Unstreamable, match=f"(?s){says}.*{begun}") as refusal:
        between(pair.model, pair.optimizer)
    assert "during_backward=False" in str(refusal.value.hint)
    return refusal.value


def test_in_the_first_step_nothing_is_updated_before_it_is_refused() -> None:
    pair = Pair(steps=0)
    for name, (_, _, is_whole) in BETWEEN.items():
        pair.backward()
        _refused(pair, name, "Nothing has been updated")
        if is_whole:
            pair.step()
        else:
            for model in (pair.plain, pair.model):
                model.zero_grad()
    pair.finish()


def test_later_it_is_said_what_has_been_updated_and_the_step_can_be_ended() -> None:
    pair = Pair(steps=2)
    for name in [name for name, (_, _, is_whole) in BETWEEN.items() if is_whole]:
        pair.backward()
        for _ in range(2):  # it stays refused
            refusal = _refused(pair, name, "8 of 8 units have been updated")
            assert "step()" in str(refusal.hint)
        pair.step()
    pair.finish()


def test_a_step_that_cannot_be_ended_needs_a_checkpoint() -> None:
    pair = Pair(steps=2)
    for name in [name for name, (_, _, is_whole) in BETWEEN.items() if not is_whole]:
        weights, saved = copy.deepcopy(pair.model.state_dict()), copy.deepcopy(pair.optimizer.state_dict())
        pair.backward()
        _refused(pair, name, "8 of 8 units have been updated already, and no whole step")
        for refused in (pair.optimizer.step, pair.optimizer.state_dict, lambda: pair.model(batch())):
            with pytest.raises(Unstreamable):
                refused()
        pair.optimizer.load_state_dict(saved)
        pair.model.load_state_dict(weights)
        for model in (pair.plain, pair.model):
            model.zero_grad()
        pair.train(2)
    pair.finish()


def test_it_can_be_switched_off_in_the_middle() -> None:
    pair = Pair(steps=2)
    pair.backward()
    pair.optimizer.update_in_step()
    _refused(pair, "clip the norm", "8 of 8 units have been updated")
    pair.step()
    pair.backward()
    for model in (pair.plain, pair.model):
        _clip(model, None)
        mean_square(model, 8).backward()
    pair.step()
    pair.finish()


class Heads(Blocks):
    """With a second head that the first loss does not reach, and both halves of which the second loss does."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def both(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self(x)
        return first.square().mean(), self.other(first.detach()).square().mean()


class Reads(Blocks):
    """The first operator reads the last layer's weight, with no gradient: backward reads it when that is complete."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        x = x + torch.nn.functional.linear(x, self.outside.weight.detach()).sum()
        return super().forward(x)


class Reentrant(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for layer in self.layers:
            x = x + checkpoint(layer, x, use_reentrant=True)
        return self.outside(x)


def _twice(model):
    loss = mean_square(model, 7)
    loss.backward(retain_graph=True)
    loss.backward()


def _two_losses(model):
    for loss in model.both(batch(7)):
        loss.backward()


BACKWARDS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], object], str]] = {
    "twice through one graph": (Blocks, _twice, "second backward"),
    "two graphs": (Heads, _two_losses, "second backward"),
    "weights read late": (
        Reads,
        lambda model: mean_square(model, 7).backward(),
        "weights of outside .* complete",
    ),
    "within backward": (Reentrant, lambda model: mean_square(model, 7).backward(), "use_reentrant=True"),
}


@pytest.mark.parametrize("name", BACKWARDS)
def test_backwards_in_parts_are_refused_before_anything_is_updated(name: str) -> None:
    build, backward, says = BACKWARDS[name]
    pair = Pair(0, build)
    with pytest.raises(Unstreamable, match=f"(?s){says}.*Nothing has been updated") as refusal:
        backward(pair.model)
    assert "during_backward=False" in str(refusal.value.hint)
    pair.model.zero_grad()
    assert_equal(pair.plain.state_dict(), {n: one.clone() for n, one in pair.model.state_dict().items()})
    optimizer = pair.streamer.optimizer(AdamW, lr=0.01, where="on_host")
    for model, stepper in ((pair.plain, pair.plain_optimizer), (pair.model, optimizer)):
        for _ in range(2):
            backward(model)
            stepper.step()
            stepper.zero_grad()
    pair.streamer.close()
    assert_equal(pair.plain.state_dict(), pair.model.state_dict())


@pytest.mark.parametrize("name", ["twice through one graph", "two graphs"])
def test_backwards_in_parts_that_come_later_spoil_the_step(name: str) -> None:
    build, backward, says = BACKWARDS[name]
    pair = Pair(2, build)
    weights, saved = copy.deepcopy(pair.model.state_dict()), copy.deepcopy(pair.optimizer.state_dict())
    with pytest.raises(Unstreamable, match=f"(?s){says}.*no whole step"):
        backward(pair.model)
    for refused in (pair.optimizer.step, pair.optimizer.state_dict, lambda: mean_square(pair.model, 0)):
        with pytest.raises(Unstreamable, match="no whole step"):
            refused()
    pair.optimizer.load_state_dict(saved)
    pair.model.load_state_dict(weights)
    pair.model.zero_grad()
    pair.finish()


def test_streaming_that_ends_between_backward_and_step_says_so_once() -> None:
    pair = Pair(2)
    pair.backward()
    with pytest.raises(Unstreamable, match="ended between backward and step"):
        pair.streamer.close()
    assert torch.isfinite(pair.model(batch())).all(), "the model is a plain one again"
    pair = Pair(2)
    pair.backward()
    with pytest.raises(Unstreamable, match="model was called"):
        pair.model(batch())
    pair.streamer.close()
    pair = Pair(0)
    pair.backward()
    pair.streamer.close()  # nothing was updated
    assert_equal(pair.plain.state_dict(), pair.model.state_dict())


# ---- others beside it --------------------------------------------------------------------------------------


def test_two_optimizers_that_share_a_unit() -> None:
    def program(model, make_optimizer):
        extra = EARLY if make_optimizer.__name__ == "optimizer" else {}
        lower = make_optimizer(
            SGD, [*model.layers[:3].parameters(), model.layers[3][0].weight], lr=0.1, **extra
        )
        rest = [model.layers[3][2].weight, *model.layers[4:].parameters()]
        upper = make_optimizer(AdamW, rest, lr=0.01, **extra)
        losses = []
        for step in range(4):
            loss = mean_square(model, step)
            loss.backward()
            losses.append(loss.detach().clone())
            lower.step()
            upper.step()
            model.zero_grad()
        return losses

    assert_same_run(program)


@pytest.mark.parametrize("where", ["on_device", "on_host"])
def test_another_optimizer_may_not_step_the_same_weights_first(where: Any) -> None:
    pair = Pair(0)
    other = pair.streamer.optimizer(SGD, lr=0.1, where=where)
    pair.optimizer = pair.streamer.optimizer(AdamW, lr=0.01, **EARLY)
    pair.train(2)
    pair.backward()
    with pytest.raises(Unstreamable, match="have been updated already"):
        other.step()
    pair.step()
    pair.finish()


def test_an_update_that_fails_is_told_before_the_next_one_begins() -> None:
    fails = False

    def update() -> None:
        if fails:
            raise ArithmeticError("on purpose")

    model = Blocks()
    with stream(model, k=2, poison=True) as streamer:
        optimizer = streamer.optimizer(_seen(SGD, update), lr=0.1, **EARLY)
        train(model, optimizer, 2)
        optimizer.finish()
        before = copy.deepcopy(model.state_dict())
        fails = True
        mean_square(model, 0).backward()
        with pytest.raises(ArithmeticError, match="on purpose"):
            _step_and_train(model, optimizer)
        with contextlib.suppress(ArithmeticError):
            optimizer.finish()  # those that were not over when the first was told
        fails = False
        assert_equal(before, copy.deepcopy(model.state_dict()))
        model.zero_grad()
        train(model, optimizer, 2)


def _step_and_train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()
    mean_square(model, 0).backward()


def test_it_needs_an_optimizer_on_the_host() -> None:
    with stream(Blocks(), k=2) as streamer, pytest.raises(BadInput, match="during backward"):
        streamer.optimizer(AdamW, during_backward=True)
