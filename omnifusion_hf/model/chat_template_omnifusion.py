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
"""Chat formats as Jinja templates: the release's own, and any LLM's own with images where the message has them.

In both, user text is data (special tokens that somebody types stay text) and the answers are marked for the labels.
What a message says is read in one way: adjacent text is joined, then escaped. `messages_as_data` is that way for any
template, with errors that name the message; the templates have it once more, for whoever uses them alone.
"""

import json
import re
from collections.abc import Mapping

from .configuration_omnifusion import SPECIAL_TOKENS


# This private-use character breaks special tokens in text, so that the tokenizer does not see them; the tokenizer's
# normalizer then removes it, and plain text is left.
ESCAPE = "\ue0f5"

ROLE_NAMES = ("system", "user", "assistant")
ROLES = "Roles are user, assistant and (first only) system."
CONTENT = (
    "Messages hold text, those of the user also images: `content` is a string or a list of "
    '{"type": "text", "text": …} and {"type": "image", …}.'
)
NO_TOOLS = "The chat format has no place for tools and documents; write them into the text of a message."
# What these hold would be lost where it is not read; other strings and numbers, such as a `name`, do no harm.
CARRIERS = {
    "content",
    "value",
    "text",
    "image",
    "images",
    "image_url",
    "audio",
    "video",
    "tool_calls",
    "function_call",
}

# A text that begins as a token ends, or ends as one begins, is also kept apart from what the template writes next.
# Serving engines look for a loop over `message.content`: without one they would join a message's parts themselves.
READ = """\
{%- macro typed(text) -%}
{%- set ns = namespace(text=text) -%}
{%- for token in TOKENS -%}
{%- set ns.text = ns.text | replace(token, token[0] + 'ESCAPE' + token[1:] + 'ESCAPE') -%}
{%- endfor -%}
{{- 'ESCAPE' if LASTS | select('in', text[:REACH]) | list -}}
{{- ns.text -}}
{{- 'ESCAPE' if FIRSTS | select('in', text[-REACH:]) | list -}}
{%- endmacro -%}
{%- macro read(message, index) -%}
{%- set ns = namespace(text='') -%}
{%- set refused = 'message ' ~ index ~ ' (' ~ message.role ~ '): ' -%}
{%- if message.role not in ROLE_NAMES -%}{{- raise_exception(refused + 'ROLES') -}}{%- endif -%}
{%- if message.tool_calls -%}{{- raise_exception(refused + 'tool_calls are not taken. CONTENT') -}}{%- endif -%}
{%- if message.content is string -%}
{{- typed(message.content) -}}
{%- else -%}
{%- for part in message.content | default([], true) -%}
{%- if part.type == 'text' and part.text is string -%}
{%- set ns.text = ns.text + part.text -%}
{%- elif part.type == 'image' and message.role == 'user' and not part.text -%}
{{- typed(ns.text) -}}{{- '<image>' -}}
{%- set ns.text = '' -%}
{%- else -%}
{{- raise_exception(refused + 'CONTENT') -}}
{%- endif -%}
{%- else -%}
{{- raise_exception(refused + 'CONTENT') -}}
{%- endfor -%}
{{- typed(ns.text) -}}
{%- endif -%}
{%- endmacro -%}
{%- if tools or documents -%}{{- raise_exception('NO_TOOLS') -}}{%- endif -%}
"""

# The format of the release v1.1 (images that open a message stand before its role mark), with EOS after every answer
# unless `append_eos=False` is passed. BOS, where the LLM wants one, is put in by `chat_template_for` alone.
RELEASE = """\
{%- if messages[0].role != 'system' -%}{{- 'This is a dialog with AI assistant.\\n' -}}{%- endif -%}
{%- for message in messages -%}
{%- set text = read(message, loop.index0) -%}
{%- if message.role == 'user' -%}
{%- set ns = namespace(opened=false) -%}
{%- for piece in text.split('<image>') -%}
{%- if not loop.first -%}{{- '<image>' -}}{%- endif -%}
{%- if not ns.opened and (piece or loop.last) -%}{{- '<user>' -}}{%- set ns.opened = true -%}{%- endif -%}
{{- piece -}}
{%- endfor -%}
{%- elif message.role == 'assistant' -%}
{{- '<bot>' -}}
{%- generation -%}
{{- text + ('' if append_eos is false else eos_token) -}}
{%- endgeneration -%}
{%- elif loop.first -%}
{{- text + '\\n' -}}
{%- else -%}
{{- raise_exception('message ' ~ loop.index0 ~ ' (' ~ message.role ~ '): ROLES') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<bot>' -}}{%- endif -%}
"""

# Templates of LLMs expect every content to be a string, and would print a list of parts as Python does. Beside it they
# may print other strings of a message, such as its `name`; what is no string does not reach them.
FLATTEN = """\
{%- set flattened = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set ns = namespace(message={'role': message.role, 'content': read(message, loop.index0)}) -%}
{%- for name, value in message.items() if value is string and name not in ns.message -%}
{%- set ns.message = dict(ns.message, **{name: typed(value)}) -%}
{%- endfor -%}
{%- set flattened.messages = flattened.messages + [ns.message] -%}
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


def special_tokens(tokenizer) -> list[str]:
    """What text must not become: the special tokens of an LLM and ours, longest first."""
    own = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = {*SPECIAL_TOKENS.values(), *tokenizer.all_special_tokens, *own}
    return sorted(tokens, key=lambda token: (-len(token), token))


def escape(text: str, tokens: list[str]) -> str:
    """`text` in which, and at whose ends, a tokenizer with the normalizer of `add_special_tokens` sees none of
    `tokens`, longest first; it reads the same characters. The templates' `typed` is the same."""
    escaped, reach = text, len(tokens[0]) - 1
    for token in tokens:  # the second character keeps a token that overlaps itself, as "##" in "###", from being left
        escaped = escaped.replace(token, token[0] + ESCAPE + token[1:] + ESCAPE)
    before = any(token[-1] in text[:reach] for token in tokens)
    behind = any(token[0] in text[-reach:] for token in tokens)
    return before * ESCAPE + escaped + behind * ESCAPE


def messages_as_data(conversation: list, tokens: list[str], place: str = "") -> list:
    """A conversation, or a list of them, in which no text can become one of `tokens`, however it was cut into parts.

    Raises `ValueError` that names the message which is something else than text and, from the user, images.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(f"{place}A conversation is a list of messages, got {conversation!r:.80}.")
    if isinstance(conversation[0], (list, tuple)):
        return [messages_as_data(each, tokens, f"conversation {i}, ") for i, each in enumerate(conversation)]
    return [_message_as_data(message, f"{place}message {i}", tokens) for i, message in enumerate(conversation)]


def _as_dict(given):
    """A message or part as a dict, also where it is an object with these attributes, as clients of servers have it."""
    is_object = not isinstance(given, Mapping) and hasattr(given, "__dict__")
    return {name: value for name, value in vars(given).items() if value is not None} if is_object else given


def _message_as_data(message: dict, place: str, tokens: list[str]) -> dict:
    message = _as_dict(message)
    if not isinstance(message, Mapping) or message.get("role") not in ROLE_NAMES:
        raise ValueError(f"{place} is {message!r:.80}. It must be a dict with a role. {ROLES}")
    place, content = f"{place} ({message['role']})", message.get("content")
    if not isinstance(content, (str, list, tuple)) or content in ([], ()):
        raise ValueError(f"{place} has the content {content!r:.80}. {CONTENT}")
    _check_nothing_lost(message, ("role", "content"), place)
    if not isinstance(content, str):
        content = _joined(content, place, message["role"] == "user")
        content = [
            part | {"text": escape(part["text"], tokens)} if part["type"] == "text" else part for part in content
        ]
    texts = {name: escape(value, tokens) for name, value in message.items() if isinstance(value, str)}
    return {**message, "content": content, **texts, "role": message["role"]}


def _joined(content: list, place: str, may_hold_images: bool) -> list[dict]:
    """A message's parts, of which no two texts stand side by side."""
    parts = []
    for part in map(_as_dict, content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            _check_nothing_lost(part, ("type", "text"), place)
            text = parts.pop()["text"] if parts and parts[-1]["type"] == "text" else ""
            parts.append({"type": "text", "text": text + part["text"]})
        elif kind in ("image", "image_url") and may_hold_images:
            _check_nothing_lost(part, ("type", "image", "image_url", "url", "path", "base64"), place)
            parts.append({name: value for name, value in part.items() if value is not None})
        else:
            only = "Only user messages hold images. " if kind == "image" else ""
            raise ValueError(f"{place} has the part {part!r:.80}. {only}{CONTENT}")
    return parts


def _check_nothing_lost(given: Mapping, read: tuple[str, ...], place: str):
    for name, value in given.items():
        empty = value is None or isinstance(value, (str, list, tuple, dict)) and not value
        harmless = isinstance(value, (str, int, float)) and name not in CARRIERS
        if name not in read and not empty and not harmless:
            raise ValueError(f"{place}: `{name}` would be lost. {CONTENT}")


def chat_template_for(tokenizer, kind: str = "release") -> str:
    """The chat format for an LLM.

    Args:
        tokenizer: the LLM's own, before OmniFusion's special tokens are added.
        kind: `"release"`, with the LLM's BOS in front where it was trained with one; or `"own"`, the LLM's own
            template (its BOS and system text with it).

    Raises `ValueError` for another kind, or for an LLM that has no template of its own.
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
    read = re.sub(r"\b[A-Z_]+\b", lambda name: values[name[0]], READ)
    if kind == "release":
        return ("{{- bos_token -}}" if adds_bos(tokenizer) else "") + read + RELEASE.replace("ROLES", ROLES)
    if kind != "own":
        raise ValueError(f"chat template `{kind}` is unknown; use `release` or `own`.")
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if not own:
        raise ValueError(f"{tokenizer.name_or_path} has no chat template of its own; use `release`.")
    if re.search(r"{%-?\s*generation\s*-?%}", own):
        return read + FLATTEN + own
    # The empty expressions keep whitespace at both ends of the LLM's template from being trimmed by our tags.
    start = "{% macro own(messages, add_generation_prompt) %}{{ '' }}"
    return read + FLATTEN + start + own.removesuffix("\n") + MARK_ANSWERS


__all__ = ["ESCAPE", "NO_TOOLS", "chat_template_for", "escape", "messages_as_data", "special_tokens"]
