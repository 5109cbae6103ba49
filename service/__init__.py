"""The online half: serves student bundles over HTTP. Never imports torch."""

import os

# subtle: before anything imports onnxruntime, which otherwise writes a device id and reports its use
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
