"""
Arm the machine: build the image if it is stale, load it, verify the load, set the panic policy.

Each step can be repeated. The new image takes the old one's place only when it
is loaded and nothing is wrong with the load; when it cannot be loaded the old
one is loaded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.arming.image import BuiltFile, build
from postpanic.capture.arming.prepare import Prepared, prepare
from postpanic.capture.arming.state import (
    ArmedState,
    StatePaths,
    hold_state,
    identify_file,
    identify_files,
    read_state,
    sync_directory,
    write_atomically,
    write_state,
)
from postpanic.capture.config import Config, PanicConfig
from postpanic.capture.host import Host
from postpanic.capture.kexec.legacy import LegacyOptions
from postpanic.capture.kexec.load import LoadOutcome, LoadRequest, load
from postpanic.capture.kexec.refusals import check_before
from postpanic.capture.kexec.verify import Expected, Verification, verify
from postpanic.capture.policy import PolicyChange, apply_policy
from postpanic.capture.resolve import NetworkFinder
from postpanic.errors import NotReadyError, OutputError, PostpanicError

__all__ = ["ArmOutcome", "arm", "find_stale", "policy_of"]

_SYSCTLS = {
    **{name: f"kernel.{name}" for name in ("panic", "panic_on_oops", "panic_on_warn", "panic_on_rcu_stall", "sysrq")},
    **{name: f"kernel.{name}" for name in ("softlockup_panic", "hardlockup_panic", "hung_task_panic")},
    "hung_task_timeout_secs": "kernel.hung_task_timeout_secs",
    "panic_on_oom": "vm.panic_on_oom",
}


@dataclass(frozen=True)
class ArmOutcome:
    """
    What was done, and what it was done by.

    Attributes
    ----------
    prepared : Prepared
    stale : tuple of str
        Why the image was built; empty if the one that was there is good.
    image : Path
        Where it is.
    built : BuiltFile or None
        What is in it, if it was built now.
    load : LoadOutcome or None
        How it was loaded, if it was.
    reload_reason : str
        Why.
    verification : Verification
        Of what is loaded.
    policy : tuple of PolicyChange
        What became of the sysctls.
    """

    prepared: Prepared
    image: Path
    verification: Verification
    stale: tuple[str, ...] = ()
    built: BuiltFile | None = None
    load: LoadOutcome | None = None
    reload_reason: str = ""
    policy: tuple[PolicyChange, ...] = ()
    method: str = ""


def policy_of(config: PanicConfig) -> dict[str, int]:
    """Give the sysctls that the configuration asks for."""
    found = {name: getattr(config, key) for key, name in _SYSCTLS.items()}
    return {name: int(value) for name, value in found.items() if value is not None}


def arm(
    config: Config,
    host: Host,
    *,
    kernel: str = "",
    force: bool = False,
    find_network: NetworkFinder | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ArmOutcome:
    """
    Make the machine ready to capture its crash.

    Parameters
    ----------
    kernel : str
        Release or path, instead of the configuration's.
    force : bool
        Build and load even if nothing has changed.
    say : callable
        Is told what takes a while.

    Raises
    ------
    NotReadyError
        If it cannot be made ready; what was loaded before is loaded still, unless the error says otherwise.
    UsageError
        If the configuration asks for what there is not.
    OutputError
        If image or state cannot be written.
    """
    check_before(host, legacy=config.capture.kexec == "legacy")
    prepared = prepare(config, host, kernel=kernel, find_network=find_network)
    with hold_state(StatePaths.of(host)):
        return _arm(config, host, prepared, force=force, say=say)


def _arm(config: Config, host: Host, prepared: Prepared, *, force: bool, say: Callable[[str], None]) -> ArmOutcome:
    paths = StatePaths.of(host)
    state = read_state(paths.state)
    stale = ("--force",) if force else tuple(find_stale(prepared, state, paths.image))
    built: BuiltFile | None = None
    if stale:
        say("building the image")
        built = build(config, prepared, host)
        write_atomically(paths.new_image, built.content)
    image = paths.new_image if built else paths.image
    run = _Loading(config, host, prepared, paths, state, image, built.content if built else image)
    try:
        reason, outcome, verification = run.load_and_verify(is_new=built is not None, say=say)
    finally:
        with suppress(OSError):
            paths.new_image.unlink()
    method = outcome.method if outcome else state.method if state else ""
    inputs = identify_files(built.inputs) if built else state.inputs if state else {}
    write_state(paths.state, run.describe(method, inputs))
    policy = apply_policy(host, policy_of(config.panic), paths.policy)
    return ArmOutcome(
        prepared, paths.image, verification, stale, built, outcome, reason, policy=tuple(policy), method=method
    )


def find_stale(prepared: Prepared, state: ArmedState | None, image: Path) -> list[str]:
    """Say why the image must be built; nothing if it need not."""
    if not image.exists():
        return ["there is no image yet"]
    if state is None:
        return ["nothing is known of the image that is there"]
    if identify_file(image) != state.image:
        return ["the image was changed since it was built"]
    reasons = [
        f"{name} changed" for name, digest in prepared.fingerprint.items() if state.fingerprint.get(name) != digest
    ]
    changed = [path for path, identity in state.inputs.items() if identify_file(path) != identity]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        reasons.append(f"{changed[0]}{more} changed")
    return reasons


class _Loading:
    """Loads an image, and makes sure that there is something good to fall back on."""

    def __init__(
        self,
        config: Config,
        host: Host,
        prepared: Prepared,
        paths: StatePaths,
        state: ArmedState | None,
        image: Path,
        content: Path | bytes,
    ) -> None:
        self._config = config
        self._host = host
        self._prepared = prepared
        self._paths = paths
        self._state = state
        self._image = image
        self._expected = Expected(prepared.kernel.image, content, prepared.command_line.text)

    def load_and_verify(
        self, *, is_new: bool, say: Callable[[str], None]
    ) -> tuple[str, LoadOutcome | None, Verification]:
        """Load what is to be loaded, if it is not; only what is verified, or cannot be, takes the old image's place."""
        if is_new:
            reason = "the image is new"
        else:
            reason, verification = self._inspect()
            if not reason:
                return "", None, verification
        say("loading it")
        try:
            outcome = load(self._host, self._request())
            verification = verify(self._host, self._expected, handed=outcome.handed)
            if verification.outcome == "bad":
                reasons = "; ".join(verification.reasons)
                raise NotReadyError(f"what was loaded is not what was meant to be: {reasons}")
        except PostpanicError as exc:
            self._restore(exc)
            raise
        if is_new:
            self._keep_image()
        return reason, outcome, verification

    def describe(self, method: str, inputs: Mapping[str, str]) -> ArmedState:
        """Say what is to be remembered."""
        return ArmedState(
            fingerprint=self._prepared.fingerprint,
            inputs=dict(inputs),
            image=identify_file(self._paths.image),
            kernel=str(self._prepared.kernel.image),
            kernel_identity=identify_file(self._prepared.kernel.image),
            command_line=self._prepared.command_line.text,
            boot_id=self._read_boot_id(),
            method=method,
        )

    def _inspect(self) -> tuple[str, Verification]:
        """Look at what is loaded now, and say why it will not do."""
        verification = verify(self._host, self._expected)
        state = self._state
        if not self._host.read_crash_loaded():
            return "nothing is loaded", verification
        if state is None or state.command_line != self._prepared.command_line.text:
            return "the command line changed", verification
        if self._config.capture.kexec not in {"auto", state.method}:
            return f"it was loaded by {state.method}", verification
        if verification.outcome == "bad":
            return "what is loaded is not it: " + "; ".join(verification.reasons), verification
        return "" if state.boot_id == self._read_boot_id() else "something else has loaded it", verification

    def _request(self) -> LoadRequest:
        return LoadRequest(
            kernel=self._prepared.kernel.image,
            initrd=self._image,
            command_line=self._prepared.command_line.text,
            method=self._config.capture.kexec,
            legacy=self._legacy_options(),
        )

    def _legacy_options(self) -> LegacyOptions:
        capture = self._config.capture
        return LegacyOptions(
            reset_vga=capture.reset_vga,
            console_vga=capture.console_vga,
            core_headers=capture.core_headers,
            hotplug=capture.hotplug,
            extra=capture.kexec_options,
        )

    def _keep_image(self) -> None:
        try:
            self._image.replace(self._paths.image)
            sync_directory(self._paths.directory)
        except OSError as exc:
            raise OutputError(
                f"cannot be renamed to {self._paths.image.name}: {(exc.strerror or str(exc)).lower()}",
                where=str(self._image),
            ) from exc

    def _restore(self, exc: PostpanicError) -> None:
        """Load what was loaded before, and say in the error what became of it."""
        state = self._state
        if state is None or state.boot_id != self._read_boot_id():
            return
        if identify_file(self._paths.image) != state.image or identify_file(state.kernel) != state.kernel_identity:
            return
        request = LoadRequest(
            kernel=Path(state.kernel),
            initrd=self._paths.image,
            command_line=state.command_line,
            method="legacy" if state.method == "legacy" else "file",
            legacy=self._legacy_options(),
        )
        try:
            before = verify(self._host, Expected(request.kernel, request.initrd, request.command_line))
            if before.outcome == "bad":
                load(self._host, request)
                before = verify(self._host, Expected(request.kernel, request.initrd, request.command_line))
        except PostpanicError:
            return
        if before.outcome != "bad":
            exc.message = exc.message.removesuffix("; the capture kernel that was loaded before is gone")
            exc.message += "; what was loaded before is loaded still"

    def _read_boot_id(self) -> str:
        return self._host.read_text("proc/sys/kernel/random/boot_id") or ""
