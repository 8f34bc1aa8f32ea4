"""A module whose import takes long in a worker, where the environment says how long."""

import os
import time

time.sleep(float(os.environ.get("SLOW_IMPORT_S", "0")))


def one(response):
    return 1.0


def hang_once(response):
    if response == "hang":
        time.sleep(1000)
    return 1.0
