"""Structured pruning: what is cut out of a graph, and the pass that cuts it."""
