"""Embedded stand-ins for the machines that pipelines work on, so that anybody can run these for real on one computer.

What belongs here: making, keeping and removing such machines. No pipeline imports it; the
command line and tests do.
"""
