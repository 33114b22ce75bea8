"""The engines that make the noise: torch and ONNX Runtime."""
