# Copyright 2026 The omnifusion_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Chat formats as Jinja templates: the release's own, and any LLM's own with pictures where the message has them.

In both, user text is data (special tokens that somebody types stay text) and the answers are marked for the labels.
"""

import json
import re

from .configuration_omnifusion import SPECIAL_TOKENS


# The template puts this private-use character inside any special token that a user typed, so that the tokenizer does
# not see the token; the tokenizer's normalizer then removes it, and plain text is left.
ESCAPE = "\ue0f5"

TYPED = """\
{%- macro typed(text) -%}
{%- set ns = namespace(text=text) -%}
{%- for token in TYPED_TOKENS -%}
{%- set ns.text = ns.text | replace(token, token[0] + 'ESCAPE' + token[1:]) -%}
{%- endfor -%}
{{- ns.text -}}
{%- endmacro -%}
""".replace("ESCAPE", ESCAPE)

# The format of the release v1.1 (pictures that open a message stand before its role mark), with EOS after every answer
# unless `append_eos=False` is passed. BOS, where the LLM wants one, is put in by `chat_template_for` alone.
RELEASE = """\
{%- macro plain(content) -%}
{%- if content is string -%}{{- typed(content) -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type != 'text' -%}
{{- raise_exception('Only user messages hold pictures, got a part of type ' + part.type) -}}
{%- endif -%}
{{- typed(part.text) -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0].role == 'system' -%}
{{- plain(messages[0].content) + '\\n' -}}
{%- else -%}
{{- 'This is a dialog with AI assistant.\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- set ns = namespace(opened=false) -%}
{%- set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content -%}
{%- for part in parts -%}
{%- if part.type == 'image' -%}
{{- '<image>' -}}
{%- elif part.type == 'text' -%}
{%- if not ns.opened -%}{{- '<user>' -}}{%- set ns.opened = true -%}{%- endif -%}
{{- typed(part.text) -}}
{%- else -%}
{{- raise_exception('A user message holds parts of type text and image, got ' + part.type) -}}
{%- endif -%}
{%- endfor -%}
{%- if not ns.opened -%}{{- '<user>' -}}{%- endif -%}
{%- elif message.role == 'assistant' -%}
{{- '<bot>' -}}
{%- generation -%}
{{- plain(message.content) + ('' if append_eos is false else eos_token) -}}
{%- endgeneration -%}
{%- elif message.role != 'system' or not loop.first -%}
{{- raise_exception('Roles are user, assistant and (first only) system, got ' + message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<bot>' -}}{%- endif -%}
"""

# Templates of LLMs expect every content to be a string, and would print a list of parts as Python does.
FLATTEN = """\
{%- macro flat(message) -%}
{%- if message.content is string -%}{{- typed(message.content) -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}{{- typed(part.text) -}}
{%- elif part.type == 'image' and message.role == 'user' -%}{{- '<image>' -}}
{%- else -%}
{{- raise_exception('Messages hold text, those of the user also pictures; got a part of type ' + part.type) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set flattened = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content -%}{%- set message = dict(message, content=flat(message)) -%}{%- endif -%}
{%- set flattened.messages = flattened.messages + [message] -%}
{%- endfor -%}
{%- set messages = flattened.messages -%}
"""

# An LLM's template marks no answers. An answer is what the whole text has between the prompt for it and its end, both
# rendered by themselves. Where these are no beginnings of the whole text (templates that rewrite earlier turns), the
# text is right all the same, but the answer stays unmarked, and training refuses the sample.
MARK_ANSWERS = """\
{{ '' }}{% endmacro %}
{%- set whole = own(messages, add_generation_prompt) -%}
{%- set shown = namespace(until=0) -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' and not loop.first -%}
{%- set prompt = own(messages[:loop.index0], true) -%}
{%- set answered = own(messages[:loop.index], false) -%}
{%- if whole.startswith(answered) and answered.startswith(prompt) -%}
{{- whole[shown.until:prompt | length] -}}
{%- generation -%}{{- whole[prompt | length:answered | length] -}}{%- endgeneration -%}
{%- set shown.until = answered | length -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{{- whole[shown.until:] -}}
"""


def adds_bos(tokenizer) -> bool:
    """Whether the tokenizer puts a BOS in front of every text by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]


def chat_template_for(tokenizer, kind: str = "release") -> str:
    """The chat format for an LLM.

    Args:
        tokenizer: the LLM's own, before OmniFusion's special tokens are added.
        kind: `"release"`, with the LLM's BOS in front where it was trained with one; or `"own"`, the LLM's own
            template (its BOS and system text with it).

    Raises `ValueError` for another kind, or for an LLM that has no template of its own.
    """
    own_tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = sorted({*SPECIAL_TOKENS.values(), *own_tokens}, key=lambda token: (-len(token), token))
    typed = TYPED.replace("TYPED_TOKENS", json.dumps(tokens, ensure_ascii=False))
    if kind == "release":
        return ("{{- bos_token -}}" if adds_bos(tokenizer) else "") + typed + RELEASE
    if kind != "own":
        raise ValueError(f"chat template `{kind}` is unknown; use `release` or `own`.")
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if not own:
        raise ValueError(f"{tokenizer.name_or_path} has no chat template of its own; use `release`.")
    if re.search(r"{%-?\s*generation\s*-?%}", own):
        return typed + FLATTEN + own
    # The empty expressions keep whitespace at both ends of the LLM's template from being trimmed by our tags.
    start = "{% macro own(messages, add_generation_prompt) %}{{ '' }}"
    return typed + FLATTEN + start + own.removesuffix("\n") + MARK_ANSWERS


__all__ = ["ESCAPE", "chat_template_for"]
