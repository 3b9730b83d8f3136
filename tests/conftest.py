"""Nothing in the tests may reach for the network: a model or data set that is not here is a planned case."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
