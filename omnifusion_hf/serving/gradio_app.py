# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""A page to talk to a model in a browser: a Gradio chat, and beside it the views of the last image."""

import json
from contextlib import closing, contextmanager

from transformers.utils import logging

from ..inference import EXAMPLES, TINY, load
from ..markdown import code
from .conversation import MAX_IMAGES, SUFFIXES, Conversation, paths_of, text_of, text_part, user_turn


try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError:
    raise ValueError("the page needs Gradio: pip install 'omnifusion_hf[demo]'.") from None

from .hosts import LoopbackHosts, is_loopback


logger = logging.get_logger(__name__)

MAX_FILE_SIZE = "10mb"
KEEP_UPLOADS = (3600, 24 * 3600)  # seconds: every hour, uploads older than a day are deleted
ABOUT_TINY = """\
This is the package's **demo model**: 4.5 million parameters, trained for two hours on small drawn images. It names \
colours, shapes, digits, words of up to four characters and simple formulas, counts to five and says where things \
are, in images like the examples. It has seen no photographs, no grids and never two images in one chat: its \
answers there are guesses. Clear the chat before the next image.
"""
ABOUT = "This is {model}. A chat takes up to {images} images."
NOTHING_SEEN = "The model's views of the last image are drawn here, with the tokens of all images."
# System fonts, so that the page makes no request to other servers.
LOOK = {
    "primary_hue": "emerald",
    "neutral_hue": "stone",
    "font": ("ui-sans-serif", "system-ui", "sans-serif"),
    "font_mono": ("ui-monospace", "monospace"),
}
CSS = """
.examples { grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)) !important }
.example { padding: 8px 12px !important }
input[type=radio]:checked { background-color: var(--checkbox-background-color-selected) !important }
.message-buttons:has([aria-label="Share"]) { display: none } /* it would upload the image to the Hub */
"""


@contextmanager
def show_errors():
    """Shows errors as warnings on the page; a raised error would leave its question box locked."""
    try:
        yield
    except ValueError as error:
        gr.Warning(str(error))
    except Exception:
        logger.exception("A question failed.")
        gr.Warning("The model failed on this question; the log of the server says why.")


class ChatHandlers:
    """Handlers of the page's events."""

    def __init__(self, conversation: Conversation):
        self.conversation = conversation

    def ask(self, question: dict, chat: list[dict], view_strategy: str):
        """Yields box, chat, drawing and cost while the answer grows; a refused question stays in its box."""
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip()  # without a first yield Gradio would empty all of them
        with show_errors():
            chat = [*chat, user_turn(question["text"], question["files"])]
            messages = self.conversation.messages(chat)
            inputs = self.conversation.prompt(messages, view_strategy)
            locked = gr.MultimodalTextbox(value=None, interactive=False, submit_btn=False, stop_btn=True)
            yield locked, chat, *self._see(messages, view_strategy)
            reply = []
            with closing(self.conversation.answer(inputs)) as answer:
                for written in answer:
                    reply = [{"role": "assistant", "content": [text_part(written)]}] if written.strip() else []
                    yield gr.skip(), chat + reply, gr.skip(), gr.skip()
            if not reply:
                gr.Warning("The answer is empty.")

    def unlock(self, chat: list[dict]):
        """Enables the box; a question without an answer, because it was stopped or failed, returns to the box."""
        free = {"interactive": True, "submit_btn": True, "stop_btn": False}
        if not chat or chat[-1]["role"] == "assistant":
            return gr.MultimodalTextbox(**free), gr.skip()
        *chat, question = chat
        return gr.MultimodalTextbox(value={"text": text_of(question), "files": paths_of(question)}, **free), chat

    def redraw(self, chat: list[dict], view_strategy: str):
        with show_errors():
            return self._see(self.conversation.messages(chat), view_strategy)
        return gr.skip(), gr.skip()

    def _see(self, messages: list[dict], view_strategy: str):
        drawing, count = self.conversation.draw_last(messages, view_strategy)
        cost = NOTHING_SEEN if count is None else "**Visual tokens**<br>" + str(count).replace("\n", "<br>")
        return drawing, cost


def pick(example: gr.SelectData) -> dict:
    """An example as the value of the question box."""
    return {"text": example.value["text"], "files": [file["path"] for file in example.value["files"]]}


def examples() -> list[dict]:
    """The bundled images with their questions."""
    found = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    return [{"text": one["question"], "files": [str(EXAMPLES.parent / one["image"])]} for one in found]


def build_page(conversation: Conversation, about: str) -> gr.Blocks:
    """The page, without a server."""
    with gr.Blocks(title="OmniFusion", analytics_enabled=False, delete_cache=KEEP_UPLOADS) as page:
        gr.Markdown(f"## OmniFusion\n{about}")
        with gr.Row():
            with gr.Column(scale=3):
                # Answers are plain text: Markdown would change LaTeX and <tags>.
                chat = gr.Chatbot(
                    height="66vh", examples=examples(), show_label=False, render_markdown=False, buttons=["copy"],
                    allow_file_downloads=False,
                )  # fmt: skip
                box = gr.MultimodalTextbox(
                    file_count="multiple", file_types=sum(SUFFIXES.values(), []), label="Question", show_label=False,
                    placeholder="Add images with the clip, then ask",
                    max_plain_text_length=10**9,  # longer text would be pasted as a file, which is refused
                )  # fmt: skip
            with gr.Column(scale=2):
                chosen = conversation.processor.image_processor.view_strategy
                strategy = gr.Radio(["whole", "grid"], value=chosen, label="Views of an image")
                cost = gr.Markdown(NOTHING_SEEN, elem_id="cost")
                drawing = gr.Image(
                    interactive=False, format="png", show_label=False, buttons=["fullscreen"], elem_id="drawing"
                )
        connect(ChatHandlers(conversation), box, chat, strategy, [drawing, cost])
    return page


def connect(handlers: ChatHandlers, box: gr.MultimodalTextbox, chat: gr.Chatbot, strategy: gr.Radio, seen: list):
    """Connects events to handlers, with the components that each reads and changes."""
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    picked = chat.example_select(pick, None, box, **quiet)
    read, changed = [box, chat, strategy], [box, chat, *seen]
    progress = quiet | {"show_progress": "minimal", "show_progress_on": chat}  # the place in the queue, and the time
    answers = [
        event(handlers.ask, read, changed, concurrency_id="model", **progress) for event in (box.submit, picked.then)
    ]
    for answer in answers:
        answer.then(handlers.unlock, chat, [box, chat], **quiet)
    box.stop(None, None, None, cancels=answers, api_visibility="private")
    cleared = chat.clear(None, None, None, cancels=answers, api_visibility="private")
    cleared.then(lambda: ([], None, NOTHING_SEEN), None, [chat, *seen], **quiet)  # also removes a late piece
    strategy.change(handlers.redraw, [chat, strategy], seen, **quiet)


def start(model: str | None = None, host: str = "127.0.0.1", port: int | None = None, **loading) -> gr.Blocks:
    """Serves the page from another thread; `page.local_url` is its address, `page.close()` ends it.

    Args:
        model: folder or Hub id; default: the bundled demo model.
        host: the address to listen on; `"0.0.0.0"` admits other computers.
        port: default: the first free one from 7860.
        loading: of [`inference.load`].
    """
    about = ABOUT.format(model=code(model), images=MAX_IMAGES) if model else ABOUT_TINY
    page = build_page(Conversation(*load(model or TINY, **loading)), about)
    middleware = [Middleware(LoopbackHosts)] if is_loopback(host) else []
    page.launch(
        server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True,
        max_file_size=MAX_FILE_SIZE, enable_monitoring=False, run_history=False, ssr_mode=False,
        theme=gr.themes.Default(**LOOK), css=CSS, footer_links=[], app_kwargs={"middleware": middleware},
    )  # fmt: skip
    return page


def demo(model: str | None = None, host: str = "127.0.0.1", port: int | None = None, **loading):
    """Serves the page until it is interrupted; arguments as in [`start`]."""
    page = start(model, host, port, **loading)
    print(f"Talk to it at {page.local_url} (Ctrl+C ends it)", flush=True)
    page.block_thread()
