"""Serving with TorchServe: an adapter around elasticlm's model and schedule.

elastic_handler.py is what TorchServe calls; settings, requests, load and answers know nothing of it.
"""
