"""The same sessions with this project, with Celery and Redis, and with Temporal: `make bench-orchestration`."""
