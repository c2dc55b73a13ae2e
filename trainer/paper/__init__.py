"""The paper's tables and figures: which systems they compare, the commands that make them, and what came out."""
