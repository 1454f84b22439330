# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""A page to talk to a model in a browser: a Gradio chat, and beside it the views of the last image."""

from ..inference import TINY, load
from ..markdown import code
from .conversation import MAX_IMAGES, MAX_NEW_TOKENS, SUFFIXES, Conversation
from .examples import read_examples


try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError:
    raise ValueError("the page needs Gradio: pip install 'omnifusion_hf[demo]'.") from None

from .chat_handlers import NOTHING_SEEN, ChatHandlers, add_corner, look, pick
from .hosts import LoopbackHosts, is_loopback


MAX_FILE_SIZE = "10mb"
MOST_NEW_TOKENS = 4096  # of an LLM without a limit
KEEP_UPLOADS = (3600, 24 * 3600)  # seconds: every hour, uploads older than a day are deleted
ABOUT_TINY = """\
This is the package's **bundled model**: 4.5 million parameters, trained for hours on small drawn images. It \
names colours, shapes, digits, words of up to four characters and simple formulas, counts to five and says where \
things are, in images like the examples. It has seen no photographs, no grids and never two images in one chat: its \
answers there are guesses. Clear the chat before the next image.
"""
ABOUT = "This is {model}. A chat takes up to {images} images."
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


# The chat in the form of the processor's messages, images by name, written to a file by the browser.
DOWNLOAD = """chat => {
  const name = path => path.split(/[\\\\/]/).pop()
  const part = one => one.type === "text" ? one : {type: "image", image: name(one.file.path)}
  const messages = []
  for (const {role, content} of chat) {
    if (messages.at(-1)?.role !== role) messages.push({role, content: []})
    messages.at(-1).content.push(...content.map(part))
  }
  const file = new Blob([JSON.stringify(messages, null, 1)], {type: "application/json"})
  Object.assign(document.createElement("a"), {href: URL.createObjectURL(file), download: "chat.json"}).click()
}"""


def build_page(conversation: Conversation, about: str, examples: list[dict]) -> gr.Blocks:
    """The page, without a server."""
    with gr.Blocks(title="OmniFusion", analytics_enabled=False, delete_cache=KEEP_UPLOADS) as page:
        gr.Markdown(f"## OmniFusion\n{about}")
        with gr.Row():
            with gr.Column(scale=3):
                # Answers are plain text: Markdown would change LaTeX and <tags>.
                chat = gr.Chatbot(
                    height="66vh", examples=examples, show_label=False, render_markdown=False, buttons=["copy"],
                    allow_file_downloads=False, editable="user",
                    group_consecutive_messages=False,  # in a group with an image, Gradio 6.31 does not send an edit
                )  # fmt: skip
                box = gr.MultimodalTextbox(
                    file_count="multiple", file_types=sum(SUFFIXES.values(), []), label="Question", show_label=False,
                    placeholder="Add images with the clip, then ask",
                    max_plain_text_length=10**9,  # longer text would be pasted as a file, which is refused
                )  # fmt: skip
                download = gr.Button("Download the chat", size="sm")
            with gr.Column(scale=2):
                settings, image = controls(conversation)
                cost = gr.Markdown(NOTHING_SEEN, elem_id="cost")
                drawing = gr.Image(
                    interactive=False, format="png", show_label=False, buttons=["fullscreen"], elem_id="drawing"
                )
        handlers = ChatHandlers(conversation)
        connect(handlers, box, chat, settings, [drawing, cost])
        connect_regions(handlers, box, chat, settings, image, [drawing, cost])
        download.click(None, chat, None, js=DOWNLOAD, api_visibility="private")
        add_endpoint(handlers, box, settings)
    return page


def controls(conversation: Conversation) -> tuple[list, gr.Image]:
    """The components of `chat_handlers.Settings`, and the image on which regions are drawn."""
    most = conversation.context_length or MOST_NEW_TOKENS
    chosen = conversation.processor.image_processor.view_strategy
    strategy = gr.Radio(["whole", "grid"], value=chosen, label="Views of an image")
    with gr.Accordion("Regions of the last image", open=False):
        image = gr.Image(interactive=False, show_label=False, buttons=[], elem_id="regions")
        regions = gr.Textbox(
            "", label="Regions, one a line: left, top, right, bottom in pixels", lines=2, max_lines=8,
            info="Or click on two opposite corners in the image.",
        )  # fmt: skip
    with gr.Accordion("Answers", open=False):
        system = gr.Textbox("", label="Instructions before the chat", visible=conversation.takes_system_prompt())
        temperature = gr.Slider(0, 2, value=0, step=0.05, label="Temperature; 0: always the same answer")
        length = gr.Slider(1, most, value=min(MAX_NEW_TOKENS, most), step=1, label="Most tokens of an answer")
    return [strategy, regions, system, temperature, length], image


QUIET = {"show_progress": "hidden", "api_visibility": "private"}
ANSWERS = {"concurrency_id": "model", "show_progress": "minimal", "api_visibility": "private"}


def connect(handlers: ChatHandlers, box: gr.MultimodalTextbox, chat: gr.Chatbot, settings: list, seen: list):
    """Connects events of the chat to handlers, with the components that each reads and changes."""
    picked = chat.example_select(pick, None, [box, settings[1]], **QUIET)
    progress = ANSWERS | {"show_progress_on": chat}  # the place in the queue, and the time
    changed = [box, chat, *seen]
    answers = [event(handlers.ask, [box, chat, *settings], changed, **progress) for event in (box.submit, picked.then)]
    answers += [
        event(handler, [chat, *settings], changed, **progress)
        for event, handler in ((chat.retry, handlers.retry), (chat.edit, handlers.edit))
    ]
    for answer in answers:
        answer.then(handlers.unlock, chat, [box, chat], **QUIET)
    chat.undo(handlers.undo, chat, [box, chat], **QUIET)
    box.stop(None, None, None, cancels=answers, api_visibility="private")
    cleared = chat.clear(None, None, None, cancels=answers, api_visibility="private")
    cleared.then(lambda: ([], None, NOTHING_SEEN), None, [chat, *seen], **QUIET)  # also removes a late piece


def connect_regions(handlers: ChatHandlers, box, chat, settings: list, image: gr.Image, seen: list):
    """Connects the controls of views and regions; the drawing follows them."""
    strategy, regions, *_ = settings
    shown = gr.State()  # the path of the image on which regions are drawn
    for changed in (box, chat):
        changed.change(look, [box, chat, shown], [shown, image, regions], queue=False, **QUIET)
    clicked = image.select(add_corner, regions, regions, **QUIET)
    for event in (strategy.change, regions.submit, regions.blur, clicked.then):
        event(handlers.redraw, [box, chat, *settings], seen, trigger_mode="always_last", **QUIET)


def add_endpoint(handlers: ChatHandlers, box: gr.MultimodalTextbox, settings: list):
    """`/answer`, for clients that are programs."""
    answer = gr.Textbox(visible=False, label="answer")
    endpoint = gr.Button(visible=False)
    endpoint.click(handlers.answer, [box, *settings], answer, api_name="answer", concurrency_id="model")


def start(
    model: str | None = None, host: str = "127.0.0.1", port: int | None = None, examples: str | None = None, **loading
) -> gr.Blocks:
    """Serves the page from another thread; `page.local_url` is its address, `page.close()` ends it.

    Args:
        model: folder or Hub id; default: the bundled model.
        host: the address to listen on; `"0.0.0.0"` admits other computers.
        port: default: the first free one from 7860.
        examples: a folder or JSONL file, as in [`read_examples`].
        loading: of [`inference.load`].
    """
    shown = read_examples(examples)
    about = ABOUT.format(model=code(model), images=MAX_IMAGES) if model else ABOUT_TINY
    page = build_page(Conversation(*load(model or TINY, **loading)), about, shown)
    middleware = [Middleware(LoopbackHosts)] if is_loopback(host) else []
    page.launch(
        server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True,
        max_file_size=MAX_FILE_SIZE, enable_monitoring=False, run_history=False, ssr_mode=False,
        theme=gr.themes.Default(**LOOK), css=CSS, footer_links=[], app_kwargs={"middleware": middleware},
    )  # fmt: skip
    return page


def demo(
    model: str | None = None, host: str = "127.0.0.1", port: int | None = None, examples: str | None = None, **loading
):
    """Serves the page until it is interrupted; arguments as in [`start`]."""
    page = start(model, host, port, examples, **loading)
    print(f"Talk to it at {page.local_url} (Ctrl+C ends it)", flush=True)
    page.block_thread()
