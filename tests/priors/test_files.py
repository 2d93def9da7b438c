import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import priors.files
from priors.files import read_safetensors, write_safetensors_atomically


def _write(path, value=1.0):
    shared = torch.full((3, 2), value)
    tensors = {"a": shared, "b": shared.T, "flag": torch.tensor(True)}
    write_safetensors_atomically(path, tensors, kind="Test", description={"note": "ü", "n": 3})


def test_round_trip_of_shared_and_transposed_tensors(tmp_path):
    path = tmp_path / "model.safetensors"
    _write(path)
    tensors, description = read_safetensors(path, kind="Test")
    assert torch.equal(tensors["a"], torch.ones(3, 2))
    assert torch.equal(tensors["b"], torch.ones(2, 3))
    assert bool(tensors["flag"])
    assert description["note"] == "ü"
    assert description["n"] == 3
    assert description["kind"] == "Test"


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    _write(path)

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(priors.files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        _write(path, value=2.0)
    monkeypatch.undo()
    assert torch.equal(read_safetensors(path)[0]["a"], torch.ones(3, 2))
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_safetensors(path)
    _write(path)
    content = path.read_bytes()
    for damaged in (b"", content[:20], content[:-5], b"PK\x03\x04 a pickle of some kind"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            read_safetensors(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not written by this package"):
        read_safetensors(path)
    for header in ("{}", "[]", '{"kind": "Test", "format": 1}', "3"):
        save_file({"a": torch.ones(2)}, path, metadata={"wideprior": header})
        with pytest.raises(ValueError, match="not written by this package"):
            read_safetensors(path)
    save_file({"a": torch.ones(2)}, path, metadata={"wideprior": "{"})
    with pytest.raises(ValueError, match="not valid JSON"):
        read_safetensors(path)


def test_every_changed_byte_of_the_tensors_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    _write(path)
    content = path.read_bytes()
    for place in range(len(content) - 49, len(content)):  # two of 24 bytes and a flag
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            read_safetensors(path)


def test_tensors_of_other_names_and_shapes_are_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    _write(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors, _ = read_safetensors(path)
    for changed in (
        {**tensors, "b": tensors["b"].reshape(3, 2)},
        {**tensors, "a": tensors["a"].view(torch.int32)},
        {"a": tensors["a"], "b": tensors["b"], "flags": tensors["flag"]},
    ):
        save_file(changed, path, metadata=metadata)
        with pytest.raises(ValueError, match="damaged"):
            read_safetensors(path)
    save_file(tensors, path, metadata=metadata)
    assert read_safetensors(path)[0].keys() == tensors.keys()


def test_files_without_a_digest_are_read(tmp_path):
    path = tmp_path / "model.safetensors"
    header = '{"kind": "Test", "format": 1, "version": "0.0.1"}'
    save_file({"a": torch.ones(2)}, path, metadata={"wideprior": header})
    assert torch.equal(read_safetensors(path)[0]["a"], torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_any_dtype_and_no_elements(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    tensors = {"one": torch.ones((), dtype=dtype), "none": torch.ones(0, 3, dtype=dtype)}
    write_safetensors_atomically(path, tensors, kind="Test", description={"digest": "an old one"})
    found, description = read_safetensors(path)
    assert "digest" not in description
    for name, value in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value)


def test_other_kinds_and_newer_formats_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    _write(path)
    with pytest.raises(ValueError, match="holds a Test, expected a PFN"):
        read_safetensors(path, kind="PFN")
    monkeypatch.setattr(priors.files, "FORMAT", 99)
    _write(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 99"):
        read_safetensors(path)


def test_what_is_not_json_or_has_no_folder_is_refused(tmp_path):
    with pytest.raises(TypeError):
        write_safetensors_atomically(
            tmp_path / "m", {}, kind="Test", description={"x": torch.ones(1)}
        )
    with pytest.raises(FileNotFoundError, match="folder"):
        _write(tmp_path / "absent" / "model.safetensors")
    assert os.listdir(tmp_path) == []
