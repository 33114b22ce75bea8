"""What computes the noise: torch or ONNX Runtime."""
