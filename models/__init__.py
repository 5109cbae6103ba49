"""The offline half: makes students from teachers. Needs the `offline` extra (torch and friends)."""

import service as service  # subtle: first, for what it does about onnxruntime's telemetry
