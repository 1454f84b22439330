# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Training (paper section 2) on transformers' own Trainer.

sources -> data -> encoding -> collator or packing -> train; stages says what trains.
"""
