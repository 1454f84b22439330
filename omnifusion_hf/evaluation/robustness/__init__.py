# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""What scores do not show: robustness to changed images, kinds of errors, differences between groups of images.

`inspect` is the entrance. Its flow: inspection.py evaluates a model on questions, if one is given, or reads answers;
measure.py evaluates it again under every condition, with images changed by perturbations.py or attacked by attack.py,
and sums up; plots.py draws; errors.py and groups.py look at the answers about unchanged images.
"""

from .inspection import Inspection, inspect


__all__ = ["Inspection", "inspect"]
