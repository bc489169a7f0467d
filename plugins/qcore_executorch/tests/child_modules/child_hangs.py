"""Imported by a runner's child in tests: hangs in native code, holding the interpreter's lock."""

import ctypes

ctypes.PyDLL(None).sleep(600)
