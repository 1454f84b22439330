"""Converters: one module a source. Nothing outside this folder reads a pickle."""
