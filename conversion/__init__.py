"""Converters of published weights, one module per source. Only this folder reads pickles."""
