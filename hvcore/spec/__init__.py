"""Byte layouts, enumerations and register declarations, with the section of the specification.  No behaviour of a machine."""
