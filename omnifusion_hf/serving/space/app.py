# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The page as a Hub Space: the variable MODEL names the model; the default is the bundled model."""

import os

from omnifusion_hf.serving.gradio_app import demo


demo(os.environ.get("MODEL"), host="0.0.0.0", port=7860)  # the address that the Hub expects
