"""HTTP API for uploads and results."""
