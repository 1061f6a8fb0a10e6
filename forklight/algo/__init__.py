"""The mathematics of a step as pure torch functions: no Lightning, no transformers, no I/O."""
