"""Other tools' configuration, as ours: what each setting becomes, and what has no counterpart."""

from postpanic.capture.imports.draft import Draft, Setting
from postpanic.capture.imports.files import PLACES, import_file, import_host
from postpanic.capture.imports.toml_text import encode_toml

__all__ = ["PLACES", "Draft", "Setting", "encode_toml", "import_file", "import_host"]
