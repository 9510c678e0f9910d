"""Quantization: passes that replace a weight by codes behind DequantizeLinear."""
