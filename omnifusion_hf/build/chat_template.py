# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Chat formats as Jinja templates: the release's own, and any LLM's own with images where the message has them.

In both, user text is data (special tokens that a user types stay text) and answers are marked for the labels. Adjacent
text of a message is joined, then escaped, as in `messages_as_data`, which checks messages for any template. The parts:

- `read.jinja`: a message's text with `<image>` for each image. Words in capitals are replaced by this file. Text that
  ends as a token begins, or begins as one ends, is also kept apart from the text around it. The loop over
  `message.content` is needed: without one, serving engines join a message's parts before the template.
- `omnifusion.jinja`: the format of the release v1.1 (images that open a message come before its role mark), with EOS
  after every answer unless `append_eos=False`.
- `flatten.jinja`: before an LLM's own template, which expects content to be a string. It may also print other strings
  of a message, such as its `name`; values that are not strings do not reach it.
- `mark_answers.jinja`: after an LLM's own template, which marks no answers. An answer is the text between the rendered
  prompt and the rendered conversation that ends with it. If these do not begin the whole text (templates that rewrite
  earlier turns), the text is right, but the answer is not marked, and training refuses the sample.
"""

import json
import re
from importlib.resources import files

from ..model.processing_omnifusion import CONTENT, ESCAPE, NO_TOOLS, ROLE_NAMES, ROLES, special_tokens


def template(name: str) -> str:
    return (files(__package__) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def adds_bos(tokenizer) -> bool:
    """Whether the tokenizer puts a BOS before every text."""
    return tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]


def chat_template_for(tokenizer, kind: str = "omnifusion") -> str:
    """The chat format for an LLM.

    Args:
        tokenizer: the LLM's own, before OmniFusion's special tokens are added.
        kind: `"omnifusion"`, the format of the authors' release v1.1 after the LLM's BOS, if the LLM adds one; or
            `"own"`, the LLM's own template with its BOS and system text.

    Raises `ValueError` for another kind, or for an LLM without a template of its own.
    """
    tokens = special_tokens(tokenizer)
    lists = {
        "TOKENS": tokens,
        "LASTS": sorted({token[-1] for token in tokens}),
        "FIRSTS": sorted({token[0] for token in tokens}),
        "REACH": len(tokens[0]) - 1,
        "ROLE_NAMES": ROLE_NAMES,
    }
    values = {name: json.dumps(value, ensure_ascii=False) for name, value in lists.items()}
    values |= {"ESCAPE": ESCAPE, "ROLES": ROLES, "CONTENT": CONTENT, "NO_TOOLS": NO_TOOLS}
    read = re.sub(r"\b[A-Z_]+\b", lambda name: values[name[0]], template("read"))
    if kind == "omnifusion":
        return (
            ("{{- bos_token -}}" if adds_bos(tokenizer) else "")
            + read
            + template("omnifusion").replace("ROLES", ROLES)
        )
    if kind != "own":
        raise ValueError(f"chat template `{kind}` is unknown; use `omnifusion` or `own`.")
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if not own:
        raise ValueError(f"{tokenizer.name_or_path} has no chat template of its own; use `omnifusion`.")
    if re.search(r"{%-?\s*generation\s*-?%}", own):
        return read + template("flatten") + own
    # The empty expressions protect whitespace at both ends of the LLM's template from our tags.
    start = "{% macro own(messages, add_generation_prompt) %}{{ '' }}"
    return read + template("flatten") + start + own.removesuffix("\n") + template("mark_answers")
