"""Sealing of data at rest, in published formats. No socket, no key provider, no clock of its own.

Import the module that is needed: `objects` and `entries` each load a cryptographic library.
"""
