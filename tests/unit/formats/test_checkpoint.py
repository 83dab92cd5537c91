"""Checkpoints come back bit for bit, or are refused."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from acorn_svc.errors import BadModel, Conflict, TooManyBytes
from acorn_svc.formats.checkpoint import Checkpoint, read_state, write_state
from acorn_svc.training.state import FitState

PIXELS = np.zeros((4, 5, 3), np.uint8)


def make_state() -> FitState:
    generator = np.random.default_rng(0)
    arrays = {
        "parameters": generator.standard_normal((7, 3)).astype(np.float32),
        "moments": generator.standard_normal((2, 3)),
        "random": generator.integers(0, 256, 13, np.uint8),
        "indices": np.array([0, 2**63], np.uint64),
        "leaf": np.array([True, False, True]),
        "step": np.array(-5, np.int64),
        "none": np.empty((0, 4), np.float16),
        "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    }
    return FitState(arrays, {"step": 5, "psnr": None, "config": {"rates": [0.1, 1e-300]}})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.state"
    write_state(path, make_state())
    return path


def test_a_state_comes_back_bit_for_bit(path: Path) -> None:
    before, after = make_state(), read_state(path)
    assert after.meta == before.meta
    assert after.arrays.keys() == before.arrays.keys()
    for name, array in before.arrays.items():
        assert after.arrays[name].dtype == array.dtype
        assert after.arrays[name].shape == array.shape
        assert after.arrays[name].tobytes() == array.tobytes()


def test_arrays_can_be_written_to(path: Path) -> None:
    assert all(array.flags.writeable for array in read_state(path).arrays.values())


def test_the_safetensors_library_opens_it(path: Path) -> None:
    tensors = safetensors.numpy.load_file(path)
    assert np.array_equal(tensors["parameters"], make_state().arrays["parameters"])


def test_every_prefix_and_every_changed_byte_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for position in range(len(data)):
        path.write_bytes(data[:position])
        with pytest.raises(BadModel):
            read_state(path)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(BadModel):
            read_state(path)
        data[position] ^= 1 << position % 8


def test_a_reserved_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the envelope's own"):
        write_state(tmp_path / "x", FitState({"digest": np.zeros(1)}, {}))


def test_a_state_larger_than_allowed_is_refused(path: Path) -> None:
    with pytest.raises(TooManyBytes):
        read_state(path, max_bytes=100)


def test_a_write_replaces_the_file_and_leaves_no_other(path: Path) -> None:
    write_state(path, FitState({}, {"step": 6}))
    assert read_state(path).meta == {"step": 6}
    assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_knows_its_image(tmp_path: Path) -> None:
    path = tmp_path / "x.acorn.state"
    checkpoint = Checkpoint(path, PIXELS)
    assert checkpoint.read() is None
    checkpoint.write(make_state())
    again = Checkpoint(path, PIXELS).read()
    assert again is not None
    assert again.meta == make_state().meta
    for other in (PIXELS + np.uint8(1), PIXELS.reshape(5, 4, 3), PIXELS.astype(np.uint16)):
        with pytest.raises(Conflict):
            Checkpoint(path, other).read()
    checkpoint.remove()
    assert not checkpoint.exists()
