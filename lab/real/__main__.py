"""Downloads, converts and verifies the parts, and writes the benchmarks; each step once."""

from . import easy_vqa, emoji, encoder, llm


for step in (encoder.convert, llm.convert, easy_vqa.write, emoji.write):
    print(step())
