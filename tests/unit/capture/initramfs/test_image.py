"""Images of trees that were never installed: other versions and machines, modules, firmware, hooks."""

from __future__ import annotations

import lzma
import marshal
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.initramfs.compiling import compile_module
from postpanic.capture.initramfs.elf import read_elf
from postpanic.capture.initramfs.image import BuiltImage, ImageRequest, build_image
from postpanic.capture.initramfs.recording import record_texts
from postpanic.capture.initramfs.replaced import absent, encodings_idna, logging, numpy_overrides, numpy_typing
from postpanic.capture.initramfs.replaced import inspect as small_inspect
from postpanic.capture.initramfs.replaced import platform as small_platform
from postpanic.errors import FactAbsentError, UsageError
from postpanic.saver.plan import FilePlan, HookPlan, SavePlan
from postpanic.saver.plan_json import decode_plan
from tests.builders.kernel_module import make_module

MakeRoot = Callable[..., Path]
MINOR = sys.version_info.minor


def unpack(image: BuiltImage) -> dict[str, bytes]:
    """Read a cpio archive of the "newc" format."""
    files: dict[str, bytes] = {}
    place, data = 0, image.data
    while True:
        header = data[place : place + 110]
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        name = data[place + 110 : place + 110 + name_size - 1].decode()
        begin = (place + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return files
        files[name] = data[begin : begin + size]
        place = (begin + size + 3) & ~3


def read_table(content: bytes) -> dict[str | bytes, tuple[int, int, int]]:
    end = 8 + int.from_bytes(content[:8], "little")
    table: dict[str | bytes, tuple[int, int, int]] = marshal.loads(content[8:end])  # noqa: S302
    return table


@pytest.fixture
def modules_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "6.1.0-none"
    (directory / "kernel").mkdir(parents=True)
    (directory / "kernel/nic-driver.ko.xz").write_bytes(
        lzma.compress(make_module("firmware=nic/fw.bin", "firmware=nic/none.bin", depends="base"))
    )
    (directory / "kernel/base.ko").write_bytes(make_module())
    return directory


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_tree_of_another_version_and_machine(make_root: MakeRoot, modules_dir: Path, machine: str) -> None:
    image = build_image(
        ImageRequest(
            plan=SavePlan(targets=(FilePlan(),)),
            modules_dir=modules_dir,
            root=make_root(MINOR + 1, machine),
            compression="none",
        )
    )
    assert any("not the running version" in remark for remark in image.remarks)
    files = unpack(image)
    assert files["init"].startswith(f"#!/usr/bin/python3.{MINOR + 1} -".encode())
    assert read_elf(files[f"usr/bin/python3.{MINOR + 1}"], "").machine == f"EM_{machine.upper()}"
    assert read_elf(files[f"usr/lib/{machine}-linux-gnu/libblas.so.3"], "").needed == ()
    table = read_table(files["usr/lib/postpanic/modules"])
    assert table["postpanic.saver.init"][2] == 2
    assert table["numpy.core._multiarray_umath"][2] == 4
    assert "usr/lib/postpanic/numpy.core._multiarray_umath.so" in files
    assert f"usr/lib/python3.{MINOR + 1}/encodings/__init__.py" in files


def test_tree_of_the_running_version_is_compiled(make_root: MakeRoot, modules_dir: Path) -> None:
    request = ImageRequest(plan=SavePlan(), modules_dir=modules_dir, root=make_root(), compression="none")
    image = build_image(request)
    files = unpack(image)
    assert image.remarks == ()
    assert not [name for name in files if name.endswith(".py")]
    content = files["usr/lib/postpanic/modules"]
    table = read_table(content)
    begin = 8 + int.from_bytes(content[:8], "little")
    offset, size, kind = table["postpanic.saver.plan"]
    code = marshal.loads(content[begin + offset : begin + offset + size])  # noqa: S302
    assert kind == 0
    assert "SavePlan" in code.co_names
    # The methods of its data classes come by the hash of their text.
    assert sum(isinstance(key, bytes) for key in table) > 50
    assert build_image(request).sha256 == image.sha256


def test_modules_firmware_files_and_hooks(make_root: MakeRoot, modules_dir: Path) -> None:
    root = make_root()
    (root / "lib/firmware/nic").mkdir(parents=True)
    (root / "lib/firmware/nic/fw.bin.xz").write_bytes(lzma.compress(b"firmware"))
    (root / "usr/bin/notify").write_bytes(b"#!/usr/bin/notify\n")
    plan = SavePlan(before=(HookPlan(command=("/bin/own", "x")),), after=(HookPlan(command=("notify",)),))
    image = build_image(
        ImageRequest(
            plan=plan,
            modules_dir=modules_dir,
            modules={"nic-driver": "mode=2 debug"},
            root=root,
            files={"/bin/own": b"#!/init\n", "etc/key": b"k"},
            compression="none",
        )
    )
    files = unpack(image)
    assert image.plan.modules == ("/lib/modules/base.ko", "/lib/modules/nic_driver.ko mode=2 debug")
    assert decode_plan(files["etc/postpanic/plan.json"]) == image.plan
    assert files["lib/modules/nic_driver.ko"].startswith(b"\x7fELF")
    assert files["lib/firmware/nic/fw.bin"] == b"firmware"
    assert {"usr/bin/notify", "bin/own", "etc/key", "etc/passwd"} <= set(files)
    assert set(image.categories) == {"python", "libraries and programs", "modules", "firmware", "configuration"}


def test_what_cannot_go_in_is_one_error(make_root: MakeRoot, modules_dir: Path) -> None:
    root = make_root()
    with pytest.raises(FactAbsentError, match="no program telnet"):
        build_image(ImageRequest(plan=SavePlan(), modules_dir=modules_dir, root=root, programs=("telnet",)))
    with pytest.raises(UsageError, match="not a path inside"):
        build_image(ImageRequest(plan=SavePlan(), modules_dir=modules_dir, root=root, files={"../x": b""}))
    next(root.rglob("libc.so.6")).unlink()
    with pytest.raises(FactAbsentError, match=r"no library libc\.so\.6"):
        build_image(ImageRequest(plan=SavePlan(), modules_dir=modules_dir, root=root))


def test_compiled_module_does_the_same_without_its_comments() -> None:
    source = b'''"""Doc."""
from dataclasses import dataclass
@dataclass(frozen=True)
class Point:
    """Doc."""
    x: int
    y: "int" = 2
def double(value: int, *rest: int, key: str = "k") -> int:
    """Doc."""
def total(point: Point) -> int:
    """Doc."""
    assert False, "dropped"
    return point.x + point.y
'''
    # A data class looks for its module.
    names: dict[str, object] = {"__name__": __name__}
    exec(marshal.loads(compile_module("probe", source)), names)  # noqa: S102, S302
    total, double, point = names["total"], names["double"], names["Point"]
    assert callable(total)
    assert callable(double)
    assert callable(point)
    assert total(point(3)) == 5
    assert double(1) is None
    assert double.__annotations__ == total.__annotations__ == {}
    assert double.__doc__ is None
    assert point.__doc__ == "-"
    assert b"Doc." not in compile_module("probe", source)


def test_compiled_module_never_asks_what_annotations_are() -> None:
    source = b'''"""Doc."""
class Point:
    """Doc."""
    x: absent.Type = 1
def total(point: absent.Type, *rest: absent.Type) -> absent.Type:
    """Doc."""
    assert False, "dropped"
    return point.x
'''
    names: dict[str, object] = {}
    exec(marshal.loads(compile_module("probe", source)), names)  # noqa: S102, S302
    total, point = names["total"], names["Point"]
    assert callable(total)
    assert callable(point)
    assert total(point()) == 1
    assert point.__doc__ is None
    assert b"Doc." not in compile_module("probe", source)


def test_methods_of_data_classes_are_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "recorded_once.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    only_here: int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("dataclasses.exec", exec, raising=False)
    texts = record_texts(["recorded_once", "there_is_no_such_module"])
    assert any("only_here" in text and "def __init__" in text for text in texts)
    assert texts == sorted(texts)


def test_what_stands_in_for_modules() -> None:
    with pytest.raises(NotImplementedError, match=r"absent\.dump is not in this image"):
        absent.dump(1)
    assert small_platform.python_implementation() == platform.python_implementation()
    assert small_platform.machine() == platform.machine()
    assert small_platform.release() == platform.release()
    assert small_inspect.get_annotations(FilePlan)["kind"] == FilePlan.__annotations__["kind"]
    assert small_inspect.isclass(int)
    assert not small_inspect.isfunction(len)
    assert numpy_typing.NDArray.__class_getitem__(int) is numpy_typing.NDArray
    assert encodings_idna.getregentry().encode("host") == (b"host", 4)
    with pytest.raises(UnicodeEncodeError):
        encodings_idna.getregentry().encode("h\u00f6st")

    def dispatcher(value: object) -> tuple[object]:
        return (value,)

    assert numpy_overrides.array_function_dispatch(dispatcher, module="numpy")(len) is len
    assert numpy_overrides.array_function_from_dispatcher(len)(dispatcher) is len


def test_small_logging_says_what_is_worse_than_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("futures")
    logger.warning("nothing %s", 1)
    logger.error("bad %s", 2)
    assert capsys.readouterr().err == "futures: bad 2\n"
