# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The forms in which people keep dialogues about images, as the one that conversations.py reads.

| form | columns |
|---|---|
| LLaVA, ShareGPT | `conversations` of `from` and `value`; a `system` column opens them |
| OpenAI, transformers | `messages`, images inside their parts (`image`, `url`, `path`, `base64`, `image_url`) |
| questions and answers | `question` (`query`, `problem`) and `answer` (`response`) |
| Alpaca | `instruction`, `input`, `output` |
| the_cauldron | `texts` of `user` and `assistant` |
| captions | `caption` or `text` beside an image |
"""

# Columns of a question, by which the form is recognised, and of its answer.
QUESTIONS = {"question": "answer", "query": "response", "problem": "solution", "instruction": "output"}
INSIDE = ("image", "url", "path", "base64", "image_url")


def canonical(row: dict) -> dict:
    """The row with `conversations` or `messages`, and images beside them. Other forms are left as they are.

    Raises `ValueError` for a turn without question or answer, for two system texts, and for images in two places.
    """
    if isinstance(row.get("texts"), list):
        row = as_messages(row, ["texts"], messages_of(row["texts"], "user", "assistant"))
    for question, answer in QUESTIONS.items():
        if isinstance(row.get(question), str) and isinstance(row.get(answer), (int, float)):
            raise ValueError(
                f"{answer} must be text, got {row[answer]!r}; store the column as text (in JSON in quotes; not in a "
                "metadata.csv)."
            )
        if isinstance(row.get(question), str) and isinstance(row.get(answer), str):
            context = row.get("input") if question == "instruction" else None  # Alpaca's
            turn = {question: "\n".join(filter(None, (row[question], context))), answer: row[answer]}
            columns = [question, answer, *(["input"] if question == "instruction" else [])]
            row = as_messages(row, columns, messages_of([turn], question, answer))
    return images_beside(system_first(captioned(row)))


def as_messages(row: dict, columns: list[str], messages: list[dict]) -> dict:
    if row.get("messages"):
        raise ValueError(f"the sample has {columns[0]} and another dialogue; name one of them under `ignored`.")
    return without(row, *columns) | {"messages": messages}


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


def messages_of(turns: list, user: str, assistant: str) -> list[dict]:
    """Messages of turns that hold a question under one key and its answer under another."""
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or not {user, assistant} <= turn.keys():
            raise ValueError(f"a turn needs {user} and {assistant}, got {turn!r:.80}.")
        messages += [{"role": "user", "content": turn[user]}, {"role": "assistant", "content": turn[assistant]}]
    return messages


def captioned(row: dict) -> dict:
    """`text` beside an image, as in a metadata.jsonl of `imagefolder`, is its caption if nothing else is said."""
    has_image = row.get("image") or row.get("images")
    has_more = row.get("caption") or row.get("conversations") or row.get("messages")
    if has_image and not has_more and isinstance(row.get("text"), str):
        row = without(row, "text", "caption") | {"caption": row["text"]}
    return row


def system_first(row: dict) -> dict:
    """The text of a `system` column becomes the first turn."""
    system = row.get("system")
    for column, role, content in (("conversations", "from", "value"), ("messages", "role", "content")):
        turns = row.get(column)
        if isinstance(turns, list) and turns and isinstance(system, str) and system:
            if isinstance(turns[0], dict) and turns[0].get(role) == "system":
                raise ValueError("the sample has a system column and a system turn; keep one.")
            row = without(row, "system") | {column: [{role: "system", content: system}, *turns]}
    return row


def images_beside(row: dict) -> dict:
    """Images inside the parts of messages, moved to `images`; their places stay."""
    images, messages = [], []
    for message in row["messages"] if isinstance(row.get("messages"), list) else []:
        if not isinstance(message, dict) or not isinstance(message.get("content"), list):
            messages.append(message)
            continue
        parts = [part_and_image(part) for part in message["content"]]
        images += [image for _, image in parts if image is not None]
        messages.append(message | {"content": [part for part, _ in parts]})
    if not images:
        return row
    if row.get("image") or row.get("images"):
        raise ValueError("the sample has images inside its messages and beside them; keep one.")
    return row | {"messages": messages, "images": images}


def part_and_image(part) -> tuple:
    """A part of a message without its image, and the image, or None."""
    kind = part.get("type") if isinstance(part, dict) else None
    given = [key for key in INSIDE if part.get(key) is not None] if kind in ("image", "image_url") else []
    if not given:
        return part, None
    if len(given) > 1:
        raise ValueError(f"an image has {' and '.join(given)}, which mean the same; keep one.")
    image = part[given[0]]
    if isinstance(image, dict):
        image = image.get("url") or image  # OpenAI's
    if given[0] == "base64" and isinstance(image, str) and not image.startswith("data:"):
        image = "data:image;base64," + image
    return without(part, *given, "type", "detail") | {"type": "image"}, image
