"""kernel.cu of grouped weights compiled by NVRTC for GPUs that need not be here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from slideconvert.kernels import nvrtc
from slideconvert.kernels.group_gemm.kernel import SOURCE

pytestmark = pytest.mark.skipif(bool(nvrtc.missing()), reason="NVRTC is not installed here")

KIND = {
    "PIECE": 16, "BITS": 4, "SHARE": 0, "FEW": 0, "TILES": 1, "X": 0, "OUT": 0, "BIAS": 3, "ROW_WARPS": 8,
    "COLUMN_WARPS": 1, "STAGES": 3, "BLOCKS": 2, "WARPGROUP": 0, "CLUSTER": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
def test_every_generation(target: str) -> None:
    for piece, bits, share, tiles, activations in ((4, 4, 0, 1, 0), (16, 4, 2, 8, 2), (8, 8, 0, 2, 3)):
        warps = {"ROW_WARPS": 4, "COLUMN_WARPS": 2} if tiles == 2 else {}
        kind = {**KIND, "PIECE": piece, "BITS": bits, "SHARE": share, "TILES": tiles, "X": activations, "BIAS": 1}
        assert nvrtc.machine_code(SOURCE, {**kind, **warps, "BLOCKS": 1}, target)[:4] == b"\x7fELF"
    for few, bits, share, activations in ((1, 4, 0, 0), (2, 4, 2, 3), (2, 8, 1, 2)):
        kind = {**KIND, "FEW": few, "BITS": bits, "SHARE": share, "X": activations, "BIAS": 2}
        assert nvrtc.machine_code(SOURCE, kind, target)[:4] == b"\x7fELF"


def test_products_of_warpgroups() -> None:
    for piece, bits, share, tiles, activations in ((4, 4, 0, 4, 0), (16, 4, 2, 8, 2), (8, 8, 0, 8, 3)):
        kind = {**KIND, "PIECE": piece, "BITS": bits, "SHARE": share, "TILES": tiles, "X": activations, "BIAS": 1}
        for cluster in (1, 3):
            code = nvrtc.machine_code(SOURCE, {**kind, "BLOCKS": 1, "WARPGROUP": 1, "CLUSTER": cluster}, "sm_90a")
            assert code[:4] == b"\x7fELF"


def test_machine_code_is_kept(tmp_path: Path) -> None:
    code = nvrtc.machine_code(SOURCE, KIND, "sm_90")
    kept = list((tmp_path / "slidesparse").iterdir())
    assert len(kept) == 1 and kept[0].read_bytes() == code + hashlib.sha256(code).digest()
    kept[0].write_bytes(b"kept" + hashlib.sha256(b"kept").digest())
    assert nvrtc.machine_code(SOURCE, KIND, "sm_90") == b"kept"
    assert nvrtc.machine_code(SOURCE, {**KIND, "TILES": 2}, "sm_90") != b"kept"


def test_a_gpu_newer_than_the_compiler_gets_its_newest_code() -> None:
    assert nvrtc.architecture((9, 0)) == "sm_90"
    assert nvrtc.architecture((99, 0)).startswith("compute_1")
    with pytest.raises(nvrtc.NvrtcError, match="as old as sm_20"):
        nvrtc.architecture((2, 0))


def test_an_error_for_code_that_does_not_compile_names_the_reason(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("int x = SIZE + nothing;")
    with pytest.raises(nvrtc.NvrtcError, match=r'(?s)wrong.cu does not compile.*-DSIZE=3.*"nothing" is undefined'):
        nvrtc.machine_code(source, {"SIZE": 3}, "sm_90")
