# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The page as a Hub Space: the Space's variable MODEL names the model, without it the bundled demo model answers."""

import os

from omnifusion_hf.serving.gradio_app import demo


demo(os.environ.get("MODEL"), host="0.0.0.0", port=7860)  # where the Hub looks for it
