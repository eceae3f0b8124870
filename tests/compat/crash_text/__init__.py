"""
crash's text as values: a parser for each command that we are compared with.

The parsers are strict. A line that one does not understand is an
:class:`UnknownLineError`, so that nothing that crash says is passed over.
"""
