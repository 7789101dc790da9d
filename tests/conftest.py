"""Settings for all tests, made before torch is imported."""

import os

# Tests start several processes on two cores; more threads than cores slow all of them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
