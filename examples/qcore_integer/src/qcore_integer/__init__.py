"""A qcore backend with a compiler, a file format and an interpreter of its own."""
