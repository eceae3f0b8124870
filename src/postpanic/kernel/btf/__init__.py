"""BTF: the types of a kernel, as it carries them in its own memory."""

from postpanic.kernel.btf.ctype import format_c_type
from postpanic.kernel.btf.decode import Btf, Items, decode_btf
from postpanic.kernel.btf.layout import IntEncoding, Kind
from postpanic.kernel.btf.resolve import TypeResolver
from postpanic.kernel.btf.struct import Member, StructLayout

__all__ = [
    "Btf",
    "IntEncoding",
    "Items",
    "Kind",
    "Member",
    "StructLayout",
    "TypeResolver",
    "decode_btf",
    "format_c_type",
]
