"""Names of the engines that are compared, and the shapes that they are timed on."""

OURS = {"torch": ("fp32",), "onnx": ("fp32", "int8")}
"""Our backends and their precisions."""
NAMES = (*OURS, "eager", "compile", "onnxruntime", "openvino", "gemm")
SHAPES = "1x16,8x16,1x128,8x128,32x32"
QUICK_NAMES, QUICK_SHAPES, QUICK_LEVELS = NAMES[:-1], "1x16,8x128", (50, 10)
