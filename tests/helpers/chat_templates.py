"""Chat templates of LLMs."""

CHATML = """
{%- if messages[0]['role'] != 'system' %}<|im_start|>system
You help.<|im_end|>
{% endif %}
{%- for message in messages %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""
