"""Fixtures for every kind of test: dumps of real kernels, made when first asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import NoReturn

import pytest
from hypothesis import settings

from postpanic.errors import FactAbsentError, ProcessError
from postpanic.rehearse.kernels import Kernel
from tests.compat.crash_oracle import CrashOracle, fetch_oracle
from tests.vm.arm64_triage import PROGRAMS as ARM64_PROGRAMS
from tests.vm.arm64_triage import Arm64TriageLab
from tests.vm.lab import Crash, Lab, MemoryDumps, Recipe, default_cache_dir, find_missing_programs
from tests.vm.records import RECORDS, Evidence, make_evidence

# How long a test takes says nothing on a machine that others use too. What passed once passes again: other inputs are
# for whoever asks for them, by --hypothesis-profile=random.
settings.register_profile("untimed", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, derandomize=False)
settings.load_profile("untimed")

LAB_FIXTURES = {"arm64_triage_lab", "crashed", "crash_lab", "crash_oracle", "evidence", "fetch_kernel", "memory_dumped"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if LAB_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.vm)


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"the lab must work in continuous integration: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def crash_lab() -> Lab:
    missing = find_missing_programs()
    if missing:
        _give_up(f"programs of the lab are not installed: {', '.join(missing)}")
    return Lab(default_cache_dir())


@pytest.fixture(scope="session")
def fetch_kernel(crash_lab: Lab) -> Callable[[str], Kernel]:
    """Return a function that gets a kernel of the lab by its key."""

    def fetch(key: str) -> Kernel:
        try:
            return crash_lab.fetch_kernel(key)
        except (ProcessError, FactAbsentError) as exc:
            _give_up(f"kernel {key} is neither in the cache nor to be fetched: {exc}")

    return fetch


@pytest.fixture(scope="session")
def crashed(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel]) -> Callable[..., Crash]:
    """
    Return a function that gives the dump of a kernel: ``crashed("6.1")``, ``crashed("6.12", cpu="max,la57=on")``.

    What it returns has ``raw``, ``filtered``, ``saved``, ``console``, ``release``,
    ``vmlinux``, ``debug_modules_dir`` and ``make_variant(name)``.
    """

    def crash(kernel: str, *, scenario: str = Recipe.scenario, cpu: str = Recipe.cpu, options: str = "") -> Crash:
        fetch_kernel(kernel)
        try:
            crash_lab.makedumpfile  # noqa: B018 - what there is of it without a network is known from here on
        except (ProcessError, FactAbsentError) as exc:
            _give_up(f"the newest makedumpfile is neither in the cache nor to be fetched: {exc}")
        return crash_lab.crash(Recipe.choose(kernel, scenario, cpu=cpu, options=options))

    return crash


@pytest.fixture(scope="session")
def arm64_triage_lab(crash_lab: Lab) -> Arm64TriageLab:
    """Give the lab of small crashes on arm64."""
    missing = [name for name in ARM64_PROGRAMS if shutil.which(name) is None]
    if missing:
        _give_up(f"programs of the lab are not installed: {', '.join(missing)}")
    return Arm64TriageLab(crash_lab)


@pytest.fixture(scope="session")
def crash_oracle(crash_lab: Lab) -> CrashOracle:
    """Give the newest crash, which judges our commands."""
    try:
        return fetch_oracle(crash_lab.cache_dir)
    except (ProcessError, FactAbsentError) as exc:
        _give_up(f"the newest crash is neither in the cache nor to be fetched: {exc}")


@pytest.fixture(scope="session")
def memory_dumped(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel]) -> Callable[[str], MemoryDumps]:
    """Return a function that gives QEMU's own dumps of a panicked machine."""

    def dump(kernel: str) -> MemoryDumps:
        fetch_kernel(kernel)
        return crash_lab.dump_memory(Recipe(kernel))

    return dump


@pytest.fixture(scope="session")
def evidence(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel]) -> Callable[..., Evidence]:
    """Return a function that gives what a crash left beside dumps: ``evidence("erst")``, ``evidence("efi", "6.1")``."""

    def make(name: str, kernel: str = "") -> Evidence:
        fetch_kernel(kernel or RECORDS[name][1])
        try:
            return make_evidence(crash_lab, name, kernel)
        except FactAbsentError as exc:
            _give_up(f"what {name} needs is neither in the cache nor to be fetched: {exc}")

    return make


@pytest.fixture(scope="session")
def installed() -> Callable[[str], str]:
    """Return a function that gives the path of a program, or skips (fails in continuous integration)."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            _give_up(f"{name} is not installed")
        return found

    return find
