"""Evaluation: what an artifact, as the runtime runs it, has lost against the original in float32."""
