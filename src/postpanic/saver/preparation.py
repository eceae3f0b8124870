"""What has to be there before a target can be opened: modules, devices, the network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from postpanic.dumps.sink import Sink
from postpanic.errors import OutputError, PostpanicError
from postpanic.saver.blocks import BlockFinder
from postpanic.saver.devices import DeviceBinder
from postpanic.saver.plan import NetworkPlan, SavePlan, TargetPlan
from postpanic.saver.targets.base import Target
from postpanic.saver.targets.opening import make_target

__all__ = ["Preparation"]

_LOCAL = frozenset({"file", "raw"})
_NETWORK_FACTOR = 3.0
"""An interface that waits for its link, then for a lease, then for a router."""


class Preparation:
    """
    Makes the machine ready, as little as the plan needs.

    The network comes up in a thread of its own, so that local targets do not
    wait for it.
    """

    def __init__(self, plan: SavePlan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._binder = DeviceBinder(plan.devices)
        self._network_done = threading.Event()
        self._network_error: PostpanicError | None = None

    def start(self) -> None:
        """Load modules, bind devices, start the network; what fails is said, and costs what needs it."""
        from postpanic.saver.modules import load_modules

        plan = self._plan
        self._binder.hold_back()
        # A saver before this one may have loaded them: the file of what is loaded only takes memory.
        modules = [line for line in plan.modules if Path(line.split(" ", 1)[0]).exists()]
        for result in load_modules(modules, after_each=self._binder.hold_back):
            if result.is_loaded:
                Path(result.path).unlink(missing_ok=True)
            else:
                self._say(f"module {result.path.rsplit('/', 1)[-1]}: {result.error}")
        self._binder.bind()
        for failure in self._binder.failures:
            self._say(failure)
        if plan.network is not None:
            threading.Thread(target=self._set_up_network, args=(plan.network,), name="network", daemon=True).start()

    def make_target(self, plan: TargetPlan) -> Target:
        """Make a target that waits for what it needs when it is opened."""
        target = make_target(plan, BlockFinder(self._binder.bind), wait_s=self._plan.devices.wait_s)
        return target if plan.kind in _LOCAL else _Connected(target, self._wait_for_network)

    def _set_up_network(self, network: NetworkPlan) -> None:
        from postpanic.saver.network.setup import set_up_network

        try:
            set_up_network(network, self._say)
            self._network_error = None
        except PostpanicError as exc:
            self._network_error = exc
        except Exception as exc:  # noqa: BLE001 - costs the targets beyond it, and nothing else
            self._network_error = OutputError(f"internal error: {type(exc).__name__}: {exc}", where="network")
        finally:
            self._network_done.set()

    def _wait_for_network(self) -> None:
        network = self._plan.network
        if network is None:
            return
        if not self._network_done.wait(network.wait_s * _NETWORK_FACTOR):
            raise OutputError("the network is not up yet", where="network")
        if self._network_error is not None:
            error = self._network_error
            # The next attempt tries the network again too: a switch may take its time.
            self._network_done.clear()
            threading.Thread(target=self._set_up_network, args=(network,), name="network", daemon=True).start()
            raise OutputError(error.message, where=error.where or "network", hint=error.hint)


class _Connected:
    """A target that waits for the network before it is opened."""

    def __init__(self, target: Target, wait: Callable[[], None]) -> None:
        self._target = target
        self._wait = wait
        self.name = target.name

    def open(self, dump_name: str) -> None:
        """Wait for the network, then open the target."""
        self._wait()
        self._target.open(dump_name)

    @property
    def place(self) -> str:
        """Where the dump is."""
        return self._target.place

    @property
    def takes_small_files(self) -> bool:
        """Whether there is a place for anything but the dump."""
        return self._target.takes_small_files

    def put(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self._target.put(name, content)

    def open_dump(self, name: str) -> Sink:
        """Start the dump."""
        return self._target.open_dump(name)

    @property
    def dump_files(self) -> tuple[str, ...]:
        """Names of the files that make up the dump."""
        return self._target.dump_files

    def read_back(self) -> str | None:
        """Give a path under which the dump can be opened."""
        return self._target.read_back()

    def room_bytes(self) -> int | None:
        """Tell how much more can be written."""
        return self._target.room_bytes()

    def commit(self) -> None:
        """Give the dump its final name."""
        self._target.commit()

    def rotate(self) -> list[str]:
        """Delete old dumps."""
        return self._target.rotate()

    def close(self) -> None:
        """Let go."""
        self._target.close()
