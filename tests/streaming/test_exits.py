"""Ways out of a streamed model that are no operators: arrays, pointers, pickles, printing, copies."""

from __future__ import annotations

import copy
import ctypes
import io

import numpy as np
import pytest
import torch

from streaming.twins import Blocks, assert_equal, assert_same_run, batch, train
from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming import stream


def _reloaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _first_number(tensor: torch.Tensor) -> float:
    return ctypes.cast(tensor.data_ptr(), ctypes.POINTER(ctypes.c_float))[0]


@pytest.mark.parametrize(
    "way_out",
    [
        lambda p: torch.from_numpy(p.detach().cpu().numpy().copy()),
        lambda p: torch.from_numpy(np.asarray(p.detach()).copy()),
        lambda p: p.tolist(),
        lambda p: repr(p),
        lambda p: str(p.data),
        lambda p: copy.deepcopy(p),
        lambda p: copy.deepcopy(p.data),
        lambda p: _reloaded(p),
        lambda p: _reloaded(p.data.t()) if p.dim() == 2 else None,
        _first_number,
    ],
    ids=[
        "numpy", "asarray", "tolist", "repr", "str", "deepcopy", "deepcopy-data", "save", "save-view", "pointer",
    ],
)  # fmt: skip
def test_every_parameter_by(way_out) -> None:
    def program(model, make_optimizer):
        train(model, make_optimizer(torch.optim.AdamW, lr=0.1), 2)
        return [way_out(p) for p in model.parameters()]

    assert_same_run(program)


def test_pointers_into_host_copies_stay_good_and_writes_arrive() -> None:
    model = Blocks()
    with stream(model, k=2, poison=True):
        pointers = [ctypes.cast(p.data_ptr(), ctypes.POINTER(ctypes.c_float)) for p in model.parameters()]
        assert [pointer[0] for pointer in pointers] == [p.view(-1)[0].item() for p in model.parameters()]
        ctypes.cast(model.inside.bias.data_ptr(), ctypes.POINTER(ctypes.c_float))[0] = 3.0
        assert model.inside.bias[0] == 3.0


def test_arrays_of_a_state_dict_are_current_and_read_only() -> None:
    model = Blocks()
    with stream(model, k=2, poison=True) as streamer:
        held = model.state_dict()
        train(model, streamer.optimizer(torch.optim.AdamW, lr=0.1))
        for name, parameter in model.named_parameters():
            array = held[name].numpy()
            assert torch.equal(torch.from_numpy(array.copy()), parameter.detach())
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


@pytest.mark.parametrize("copied", [copy.deepcopy, _reloaded])
def test_copies_of_the_model_are_plain_models_of_their_own(copied) -> None:
    model = Blocks()
    with stream(model, k=2, poison=True) as streamer:
        train(model, streamer.optimizer(torch.optim.AdamW, lr=0.1))
        twin = copied(model)
        assert torch.equal(twin(batch()), model(batch()))
        with stream(twin, k=3, poison=True) as second:
            twin.inside.weight.data.mul_(2)
            twin(batch())
            assert second.stats().peak_units <= 3
            assert second.stats().loads >= 8
        assert not torch.equal(twin(batch()), model(batch()))
        assert_equal(dict(model.state_dict()), dict(_reloaded(model.state_dict())))


def test_what_would_share_the_memory_is_refused() -> None:
    model = Blocks()
    with stream(model, k=2) as streamer:
        with pytest.raises(Unstreamable, match="share_memory_"):
            model.share_memory()
        with pytest.raises(Unstreamable, match="dlpack"):
            torch.from_dlpack(model.inside.weight.detach())
        with pytest.raises(Unstreamable, match="resize_"):
            model.inside.weight.data.resize_(40, 40)
        with pytest.raises(Unstreamable, match="copied"):
            copy.deepcopy(streamer.optimizer(torch.optim.SGD, lr=0.1))
    model.share_memory()


def test_torch_has_its_own_methods_again_afterwards() -> None:
    before = (torch.Tensor.numpy, torch.Tensor.__repr__, torch.nn.Module._save_to_state_dict)
    with stream(Blocks(), k=2):
        assert torch.Tensor.numpy is not before[0]
    assert (torch.Tensor.numpy, torch.Tensor.__repr__, torch.nn.Module._save_to_state_dict) == before
    assert "numpy" not in vars(torch.Tensor)
