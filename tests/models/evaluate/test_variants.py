"""Backends by name: which can certify here, what a report calls them, and whose libraries are named."""

from importlib import metadata

import pytest

from models.evaluate.variants import BackendRefused, Variant, backend_libraries, require_backends, variants
from service.errors import BackendUnavailable
from service.runtime import session


def test_the_first_backend_goes_without_saying() -> None:
    names = [variant.name for variant in variants(["onnxruntime", "openvino"], ["int8", "fp32"])]
    assert names == ["int8", "fp32", "int8 on openvino", "fp32 on openvino"]


def test_what_is_installed_passes() -> None:
    require_backends(["onnxruntime"], where="--backend")


@pytest.mark.parametrize(
    ("name", "says"),
    [("auto", "--backend: auto: a certificate is for one backend; name it"), ("abacus", "--backend: backend 'abacus'")],
)
def test_what_is_no_backend_is_refused(name: str, says: str) -> None:
    with pytest.raises(BackendRefused, match=says) as caught:
        require_backends(["onnxruntime", name], where="--backend")
    assert caught.value.exit_status == 2


def test_what_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise BackendUnavailable("backend absent: not installed here")

    known = session.BACKENDS["onnxruntime"]
    monkeypatch.setitem(session.BACKENDS, "absent", session.Backend(known.load, absent))
    with pytest.raises(BackendRefused, match=r"exits\.backends: backend absent: not installed here"):
        require_backends(["absent"], where="exits.backends")


def test_only_installed_libraries_are_named() -> None:
    found = backend_libraries(["onnxruntime", "abacus"])
    assert found == {"onnxruntime": metadata.version("onnxruntime")}
    assert Variant("onnxruntime", "int8") == variants(["onnxruntime"], ["int8"])[0]
