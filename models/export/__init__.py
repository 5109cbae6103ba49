"""Export: torch stages to standard ONNX graphs, bundles around them, and the import of finished encoders."""
