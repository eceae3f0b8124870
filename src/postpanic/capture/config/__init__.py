"""``/etc/postpanic.toml``: what is to be captured, and where it is saved."""

from postpanic.capture.config.model import CaptureConfig, Config, InterfaceConfig, NetworkConfig, PanicConfig
from postpanic.capture.config.read import CONFIG_PATH, decode_config, default_config, read_config
from postpanic.capture.config.targets import FileTarget, HttpTarget, NfsTarget, RawTarget, SshTarget, TargetConfig
from postpanic.capture.config.values import DeviceName

__all__ = [
    "CONFIG_PATH",
    "CaptureConfig",
    "Config",
    "DeviceName",
    "FileTarget",
    "HttpTarget",
    "InterfaceConfig",
    "NetworkConfig",
    "NfsTarget",
    "PanicConfig",
    "RawTarget",
    "SshTarget",
    "TargetConfig",
    "decode_config",
    "default_config",
    "read_config",
]
