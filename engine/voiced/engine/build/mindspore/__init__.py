"""Conversion for MindSpore Lite: offline work, never imported by the running engine."""
