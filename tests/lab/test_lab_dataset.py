"""lab/dataset.py: conversations in the trainer's format, in an order with little padding."""

from random import Random

from lab import dataset
from lab.questions import Turn
from omnifusion_hf.training.conversations import to_messages


TURNS = [Turn("digit", "Which digit is shown?", "4"), Turn("count", "How many objects are there?", "1")]


def test_a_sample_is_a_conversation_that_the_trainer_reads():
    messages = to_messages(dataset.llava_sample("0000/digit7", TURNS))
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"][0] == {"type": "image", "image": "0000/digit7.png"}
    assert messages[3]["content"] == [{"type": "text", "text": "1"}]


def test_shards_of_different_mixtures_have_different_numbers():
    shards = [set(part.shards) for plan in dataset.PLANS.values() for part in plan]
    assert len(set.union(*shards)) == sum(map(len, shards))


def test_batches_have_similar_lengths_and_no_sample_is_lost():
    lengths = [1 + i % 40 for i in range(dataset.BATCH * dataset.POOL * 2)]
    samples = [dataset.llava_sample(str(i), [Turn("word", "Read.", "A" * n)]) for i, n in enumerate(lengths)]
    ordered = dataset.in_batches(list(samples), Random(0))
    assert sorted(int(s["id"]) for s in ordered) == list(range(len(samples)))
    assert padded(ordered) < 1.1 * sum(lengths) < padded(samples)  # right: control, in the given order


def padded(samples: list[dict]) -> int:
    sizes = [len(s["conversations"][1]["value"]) for s in samples]
    batches = [sizes[i : i + dataset.BATCH] for i in range(0, len(sizes), dataset.BATCH)]
    return sum(max(batch) * len(batch) for batch in batches)
