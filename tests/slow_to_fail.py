"""A module that a worker cannot import, and finds that out late."""

import time

IMPORT_SECONDS = 6

time.sleep(IMPORT_SECONDS)
raise ImportError("on purpose")
