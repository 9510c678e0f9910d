"""Evaluation: the loss of an artifact, as the runtime runs it, against the original in float32."""
