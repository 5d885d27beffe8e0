"""What conversions without calibration write, pinned by sha256: no change of this repository's structure changes it.

Only arithmetic that IEEE 754 fixes goes into these weights (absolute values, maxima, one division, rounding), so that
they are the same on every CPU. A hash changes only together with the format or the numbers, and CHANGELOG.md says so.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.conftest import MAGNITUDE, Cli
from tests.helpers.demo import DEMO

Chain = tuple[tuple[str, ...], ...]
"""The options of commands that follow each other, each on the output of the one before, the first on the demo model."""


def convert(*options: str) -> Chain:
    return (("convert", *MAGNITUDE, *options),)


GOLDEN: dict[str, tuple[Chain, str]] = {
    "int8 2_4 slide": (
        convert("--scheme", "int8", "--pattern", "2_4", "--layout", "slide"),
        "72e018f4a47412e7878460b7dff93b98655209ef7a050acf72a8a398ce83d66e",
    ),
    "int8 2_4 dense": (
        convert("--scheme", "int8", "--pattern", "2_4", "--layout", "dense"),
        "7f45e825279ad7970af36a1ebec47be98921a5fe099bbdb29dcf49ff24a4c9e2",
    ),
    "int8 2_6 slide": (
        convert("--scheme", "int8", "--pattern", "2_6", "--layout", "slide"),
        "318879038abb1c2b79b47c29e84919aecd46379d36df7c4e1d624737d92f9ca7",
    ),
    "int8 2_6 dense": (
        convert("--scheme", "int8", "--pattern", "2_6", "--layout", "dense"),
        "4770b758491d10a13b4ee43a89921a6047bed2ca04baa8a1a9120413c3c20506",
    ),
    "int8 2_8 slide": (
        convert("--scheme", "int8", "--pattern", "2_8", "--layout", "slide"),
        "82720ec30cc26fe6bb53e5d370284c18b025890415e425bf38f771cee8e63d44",
    ),
    "int8 2_8 dense": (
        convert("--scheme", "int8", "--pattern", "2_8", "--layout", "dense"),
        "4b2e6c2f80e15e8cd166b1276498b4453b60b6762bedaff630b09e9039a1ee69",
    ),
    "int8 2_10 slide": (
        convert("--scheme", "int8", "--pattern", "2_10", "--layout", "slide"),
        "cff6762bdb5fdcc52e106fb707f80e40ef130045aa7f1cbe2e6cbc9e8325b164",
    ),
    "int8 2_10 dense": (
        convert("--scheme", "int8", "--pattern", "2_10", "--layout", "dense"),
        "ec8dd91a261d92b54ceb3e946e436d9afcc1ed733724d7806e3ad36e9074b6f3",
    ),
    "int8 2_inf slide": (
        convert("--scheme", "int8", "--pattern", "2_inf", "--layout", "slide"),
        "b323fd55321d7df50242c40e2b257f7a0c00020907afc08a8b07ad6870be17e0",
    ),
    "int8 2_inf dense": (
        convert("--scheme", "int8", "--pattern", "2_inf", "--layout", "dense"),
        "bbb42c5f4c3dcc32cde3efd5dde494876b1ff61708ffa79cb8390ebb1f4c1fad",
    ),
    "fp8 2_4 slide": (
        convert("--scheme", "fp8", "--pattern", "2_4", "--layout", "slide"),
        "c13ca757c220a842a1fd0d73d847d2e1087e7851d940dfccf346cc81cca780b4",
    ),
    "fp8 2_4 dense": (
        convert("--scheme", "fp8", "--pattern", "2_4", "--layout", "dense"),
        "b19bd509988ec80ddbe5267b130dbdb935306025dc97578ce43da4dc8c35cf6a",
    ),
    "fp8 2_6 slide": (
        convert("--scheme", "fp8", "--pattern", "2_6", "--layout", "slide"),
        "6bbfa2197fbba853c797f07624c19122cc43e5c58e11ceca5131468aab591d46",
    ),
    "fp8 2_6 dense": (
        convert("--scheme", "fp8", "--pattern", "2_6", "--layout", "dense"),
        "7e2bf7c042d866dce9a3ddc28166bea22f2b0db072e53844bd2df442e5f6f455",
    ),
    "fp8 2_8 slide": (
        convert("--scheme", "fp8", "--pattern", "2_8", "--layout", "slide"),
        "1f77651308d3854946a20d09316a383427547203e4a0b0dfc3cad13c43cd26d8",
    ),
    "fp8 2_8 dense": (
        convert("--scheme", "fp8", "--pattern", "2_8", "--layout", "dense"),
        "312fe611f73957afd9658ccf48018d0f3b03da671d506dd01b04138dedfb8e44",
    ),
    "fp8 2_10 slide": (
        convert("--scheme", "fp8", "--pattern", "2_10", "--layout", "slide"),
        "ba2a22064dd36d9632c47acada86c43d224f3c045cb745b67a40af4d57f8f707",
    ),
    "fp8 2_10 dense": (
        convert("--scheme", "fp8", "--pattern", "2_10", "--layout", "dense"),
        "9baec74222d3732e0e071e75611499849fbb997a8aa373ea9ad954ce816c92b5",
    ),
    "fp8 2_inf slide": (
        convert("--scheme", "fp8", "--pattern", "2_inf", "--layout", "slide"),
        "5c2591c21f249eb2f580272130dd023758b0e08a3ee481a7c606f2741a8f4e68",
    ),
    "fp8 2_inf dense": (
        convert("--scheme", "fp8", "--pattern", "2_inf", "--layout", "dense"),
        "76b44275f12a55b95b3dedcf390e568458fde31d5e029e34b8903dfd1a9378cf",
    ),
    "bf16 2_8": (
        convert("--scheme", "bf16", "--pattern", "2_8", "--layout", "dense"),
        "d8f887ad4fd814308ece5020b0156f6a50860cef1fbf7e66be865bdf0a040ca5",
    ),
    "three steps": (
        (("sparsify", *MAGNITUDE, "--pattern", "2_8"), ("quantize", "--scheme", "int8"), ("slide",)),
        "82720ec30cc26fe6bb53e5d370284c18b025890415e425bf38f771cee8e63d44",
    ),
    "there and back": (
        (*convert(), ("relayout", "--layout", "dense"), ("relayout", "--layout", "slide")),
        "82720ec30cc26fe6bb53e5d370284c18b025890415e425bf38f771cee8e63d44",
    ),
    "w4a16 symmetric": (
        (("quantize", "--scheme", "w4a16", "--symmetric", "--group-size", "32"),),
        "fd0706401a1e824413594b7f2594b2095017d40538b3cc3b7d9123e9f3143331",
    ),
    "w8a16 asymmetric": (
        (("quantize", "--scheme", "w8a16", "--group-size", "16"),),
        "403416b2a26bd1ef46a002b629e62e49bdb043411d3b24e19e6468310ab45978",
    ),
}


def sha256(folder: Path) -> str:
    """Of the weight file."""
    (weights,) = folder.glob("*.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(("chain", "digest"), GOLDEN.values(), ids=GOLDEN)
def test_the_bytes_stay(cli: Cli, tmp_path: Path, chain: Chain, digest: str) -> None:
    source = DEMO
    for step, (command, *options) in enumerate(chain):
        out = tmp_path / str(step)
        outcome = cli(command, source, out, *options)
        assert outcome.code == 0, outcome.err
        source = out
    assert sha256(source) == digest
