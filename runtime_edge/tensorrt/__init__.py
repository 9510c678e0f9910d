"""TensorRT engines: how they are built, by the compiler and on the device, and where their plans are kept."""
