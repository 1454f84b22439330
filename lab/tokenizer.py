"""The miniature world's tokenizer: byte-level BPE whose merges come only from the wording of the questions.

Capitals and digits never merge, so a written word is a sequence of characters; each LaTeX command is one token; every
text can be encoded as bytes. The dialog's fixed first line and the first words of questions are one token each,
because they occur in every sample. No tokens are added at the beginning or the end.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .canvas import COLOURS, GREEK, SHAPES
from .questions import SIDES, TEMPLATES, plural


COMMANDS = ("\\frac", "\\sqrt", "\\sum", *GREEK)
OPENINGS = (
    "This is a dialog with AI assistant.\n",
    "What",
    "Which",
    "Where",
    "How",
    "Count",
    "Describe",
    "Write",
    "Read",
    "On",
)
VOCABULARY = 442  # with the five special tokens of the assembled model just below a multiple of 64


def wording() -> list[str]:
    """All words of questions and answers in lower case, without the texts that images show."""
    questions = [t.format("objects", "objects").partition(" ") for templates in TEMPLATES.values() for t in templates]
    things = [f"a {c} {s}, an {c} {s} and the {c} {plural(s)} {c} objects" for c in COLOURS for s in SHAPES]
    answers = (*SIDES, *COLOURS, *SHAPES, *(f" {s}" for s in SIDES))
    return [*(space + rest for _, space, rest in questions for _ in range(4)), *things, *answers * 40]


def build_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(COMMANDS) - len(OPENINGS),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(wording(), trainer)
    tokenizer.add_tokens([AddedToken(c, normalized=False) for c in (*COMMANDS, *OPENINGS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
