"""Jinja as `transformers` renders chat templates with it, in a budget that counts every operation and every byte.

Templates answer as jinja2 does because jinja2 parses, compiles and runs them. What a template may do is an allow-list:
of syntax (`syntax`), operators (`operators`), attributes and methods (`methods`), filters, tests and globals
(`filters`). Each has a cost that is spent before it runs; what is on no list is refused in words.

MiniJinja 3.1 has fuel that also counts bytes, and was not taken: it answers otherwise than jinja2 (`%` formats,
`varargs`, large floats, HTML escapes in `tojson`), often without an error.
"""
