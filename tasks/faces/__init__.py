"""Faces: frames, detection, alignment, embedding, comparison. Knows neither Prefect nor SQL."""
