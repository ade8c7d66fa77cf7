"""The ops as Triton kernels: for CUDA devices without our compiled kernels.

One file for each op; each is imported when its op first needs it, and registers functions with the
signatures of the op's schemas. fp32 arithmetic, no atomics, a fixed order of every sum: the bits
depend on the values alone, not on the device or the run. A row of a norm is held in one block, so
it may have up to 2^20 columns; other widths and all row counts are free.

With `TRITON_INTERPRET=1` in the environment before the first import, Triton runs them on the CPU,
slowly: for tests.
"""
