"""Reports on a run: metrics file, TensorBoard, progress line, loss curve, trackers.

All input is plain, already reduced Python numbers: no torch, no ranks, no groups.
"""
