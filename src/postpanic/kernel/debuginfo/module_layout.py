"""Where things are in ``struct module`` and its companions, asked of the kernel's BTF once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from postpanic.errors import CorruptError
from postpanic.kernel.btf import Btf, Kind, StructLayout

__all__ = ["ModuleLayout"]

_LARGEST_OFFSET = 1 << 20
_LARGEST_COUNT = 64
NONE = -1


@dataclass(frozen=True, slots=True)
class ModuleLayout:
    """
    Offsets and sizes in bytes; -1 where the kernel has no such member.

    Newest layouts first: memory ranges in ``module.mem`` (6.4, ac3b43283923) or
    in ``core_layout``; a section's address in ``bin_attribute.private`` (6.14,
    4b2c11e4aaf7) or in ``module_sect_attr.address`` behind the attribute; notes
    in an attribute group (6.14) or in an array.
    """

    size: int
    list: int
    name: int
    name_size: int
    kallsyms: int
    sect_attrs: int
    notes_attrs: int
    build_id: int
    build_id_size: int
    percpu: int
    percpu_size: int
    ranges: tuple[tuple[int, int], ...]
    """Offsets of base and size of each memory range."""
    kallsyms_size: int
    symtab: int
    num_symtab: int
    strtab: int
    typetab: int
    attribute_size: int
    attribute_name: int
    attribute_data_size: int
    attribute_private: int
    section_address: int
    """From the start of a section's attribute."""
    section_group: int
    note_group: int
    note_count: int
    note_array: int

    @classmethod
    def from_btf(cls, btf: Btf) -> Self:
        """
        Ask the kernel's BTF.

        Raises
        ------
        FactAbsentError
            If it has no ``struct module`` or lacks what every kernel has.
        """
        module = btf.find_struct("module")
        kallsyms = btf.find_struct("mod_kallsyms")
        attribute = btf.find_struct("bin_attribute")
        section_address = attribute.offset_of("private")
        if btf.detect("module_sect_attr", Kind.STRUCT) is not None:
            section_address = btf.find_struct("module_sect_attr").offset_of("address")
        sections = _detect_struct(btf, "module_sect_attrs")
        notes = _detect_struct(btf, "module_notes_attrs")
        return cls(
            size=module.size_bytes,
            list=module.offset_of("list"),
            name=module.offset_of("name"),
            name_size=module.size_of("name"),
            kallsyms=module.offset_of("kallsyms"),
            sect_attrs=_offset(module, "sect_attrs"),
            notes_attrs=_offset(module, "notes_attrs"),
            build_id=_offset(module, "build_id"),
            build_id_size=module.size_of("build_id") if module.has("build_id") else 0,
            percpu=_offset(module, "percpu"),
            percpu_size=_offset(module, "percpu_size"),
            ranges=_ranges(btf, module),
            kallsyms_size=kallsyms.size_bytes,
            symtab=kallsyms.offset_of("symtab"),
            num_symtab=kallsyms.offset_of("num_symtab"),
            strtab=kallsyms.offset_of("strtab"),
            typetab=_offset(kallsyms, "typetab"),
            attribute_size=attribute.size_bytes,
            attribute_name=attribute.offset_of("attr.name"),
            attribute_data_size=attribute.offset_of("size"),
            attribute_private=attribute.offset_of("private"),
            section_address=section_address,
            section_group=_offset(sections, "grp.bin_attrs", "grp.bin_attrs_new"),
            note_group=_offset(notes, "grp.bin_attrs", "grp.bin_attrs_new"),
            note_count=_offset(notes, "notes"),
            note_array=_offset(notes, "attrs"),
        )

    def to_json(self) -> dict[str, object]:
        """Give the numbers as they are kept in a cache."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> Self:
        """
        Take the numbers from a cache.

        Raises
        ------
        CorruptError
            If they are not such numbers.
        """
        names = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or set(values) != names:
            raise CorruptError("the layout of struct module has other members than expected")
        numbers = dict(values)
        ranges = numbers.pop("ranges")
        if not isinstance(ranges, list) or len(ranges) > _LARGEST_COUNT:
            raise CorruptError("the layout of struct module has no list of memory ranges")
        pairs = tuple(tuple(pair) if isinstance(pair, list) else () for pair in ranges)
        flat = [*numbers.values(), *(value for pair in pairs for value in pair)]
        if any(type(value) is not int or not NONE <= value < _LARGEST_OFFSET for value in flat):
            raise CorruptError("the layout of struct module holds what is no offset")
        if any(len(pair) != len(("base", "size")) for pair in pairs):
            raise CorruptError("a memory range of struct module is no pair")
        return cls(ranges=pairs, **numbers)


def _detect_struct(btf: Btf, name: str) -> StructLayout | None:
    return btf.find_struct(name) if btf.detect(name, Kind.STRUCT) is not None else None


def _offset(struct: StructLayout | None, *names: str) -> int:
    for name in names:
        if struct is not None and struct.has(name):
            return struct.offset_of(name)
    return NONE


def _ranges(btf: Btf, module: StructLayout) -> tuple[tuple[int, int], ...]:
    if module.has("mem"):
        memory = btf.find_struct("module_memory")
        first = module.offset_of("mem")
        starts = list(range(first, first + module.size_of("mem"), max(memory.size_bytes, 1)))[:_LARGEST_COUNT]
    else:
        memory = btf.find_struct("module_layout")
        starts = [module.offset_of("core_layout")]
    return tuple((at + memory.offset_of("base"), at + memory.offset_of("size")) for at in starts)
