"""The noise as ONNX graphs: layers and their gradients, one step, and its proof against torch."""
