"""What a run tells about itself: metrics file, TensorBoard, progress line, loss curve.

Everything here is given plain, already reduced Python numbers: no torch, no ranks, no groups.
"""
