"""Measured speed: sides in turns, medians with intervals, and the bound.

- `protocol`: how times become ratios
"""
