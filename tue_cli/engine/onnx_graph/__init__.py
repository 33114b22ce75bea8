"""The noise's step as an ONNX graph, and its proof."""
