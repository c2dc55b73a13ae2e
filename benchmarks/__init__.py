"""Measure elastic serving: a rush against the real TorchServe, its trace and its figures."""
