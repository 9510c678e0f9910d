"""Recovery of what compression lost: a graph of the dialect runs on torch, and learns from the original.

Torch is imported by the modules in here and by nothing that imports this package alone.
"""
