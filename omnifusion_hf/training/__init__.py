# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Training (paper section 2).

A sample passes four objects between its file and a batch, and each knows only the one before it:

1. rows (readers.py): one row of a file, a table or a shard;
2. conversations (conversations.py; streams in mixture.py): the row as chat messages, images not yet opened;
3. a mixture of several sources (mixture.py), if there is more than one;
4. encoded samples: token ids, labels and views (preprocessing.py) or cached features (feature_cache.py).

The collator pads or packs encoded samples (collators.py). stages.py says which parts train, trainer.py trains them,
and train.py is the whole command.
"""
