"""Serve elastic models with TorchServe.

TorchServe calls elastic_handler.py. This package adapts elasticlm.serving, which does not depend on TorchServe.
"""
