"""Names of the files in an artifact folder. Imports nothing, for commands that only look whether a file is there."""

CONFIG_FILE, WEIGHTS_FILE, TEACHER_FILE = "config.json", "model.safetensors", "teacher.safetensors"
LATENCY_FILE, QUALITY_FILE = "latency.csv", "quality.json"
GRAPHS_FOLDER = "onnx"
