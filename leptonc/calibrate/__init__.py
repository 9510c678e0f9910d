"""What real text makes of a model's activations: texts, layer-by-layer execution, statistics, and what follows."""
