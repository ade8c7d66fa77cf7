"""The items of benchmarks/device_check.py: one module each, with `run(context)`."""
