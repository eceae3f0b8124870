"""The kdump-compressed format: layout, codecs and reader."""
