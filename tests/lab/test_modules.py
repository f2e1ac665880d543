"""Modules and what they need."""

import gzip
import lzma

import pytest

from kvmarch.errors import LabError
from kvmarch.lab.modules import load_order, module_name, read_module, wanted_modules


def module(depends):
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


@pytest.fixture
def folder(tmp_path):
    deep = tmp_path / "kernel" / "arch"
    deep.mkdir(parents=True)
    (deep / "kvm-amd.ko.xz").write_bytes(lzma.compress(module("kvm,ccp")))
    (deep / "kvm.ko.gz").write_bytes(gzip.compress(module("irq_bypass")))
    (deep / "irq-bypass.ko").write_bytes(module(""))
    (deep / "ccp.ko").write_bytes(module("built_in"))
    (deep / "other.ko").write_bytes(module("kvm"))
    return tmp_path


def test_what_is_needed_comes_first_and_packed_ones_are_unpacked(folder):
    order = load_order(folder, ["kvm_amd"])

    assert list(order) == ["irq-bypass", "kvm", "ccp", "kvm-amd"]
    assert order["kvm-amd"] == module("kvm,ccp")


def test_a_module_that_is_no_file_is_part_of_the_kernel(folder):
    assert load_order(folder, ["kvm-hv"]) == {}
    assert load_order(None, ["kvm"]) == {}


def test_only_what_is_needed_is_wanted(folder):
    names = [module_name(path) for path in wanted_modules(folder, ["kvm"])]

    assert names == ["irq-bypass", "kvm"]


def test_modules_that_need_each_other_end(folder):
    (folder / "a.ko").write_bytes(module("b"))
    (folder / "b.ko").write_bytes(module("a"))

    assert list(load_order(folder, ["a"])) == ["b", "a"]


def test_a_damaged_module_is_named(folder):
    (folder / "kernel" / "arch" / "kvm.ko.gz").write_bytes(b"nothing packed")

    with pytest.raises(LabError, match=r"kvm\.ko\.gz: cannot be unpacked"):
        load_order(folder, ["kvm"])


def test_without_zstd_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")

    with pytest.raises(LabError, match="install zstd"):
        read_module(b"(\xb5/\xfd", ".zst", "kvm.ko.zst")
