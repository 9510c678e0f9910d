"""The frontend: a transformers model, traced on meta tensors, becomes one graph in the IR dialect."""
