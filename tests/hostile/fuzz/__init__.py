"""The fuzzer of bundles: `make fuzz`, or `python -m tests.hostile.fuzz --help`.

A case is one number: from it follow the bundle, its mutations, who signed it, and the command that receives it.
"""
