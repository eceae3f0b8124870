"""The debugger: drgn set up on a dump. The only importer of drgn."""
