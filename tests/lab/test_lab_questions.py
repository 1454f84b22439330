"""lab/questions.py: answers are right, questions unambiguous, and no turn reveals a later answer."""

from random import Random

from lab import questions
from lab.scenes import Thing, render_scene
from lab.world import render


SCENE = [Thing("circle", "red", 40, 100, 20), Thing("star", "red", 100, 30, 20), Thing("circle", "blue", 150, 90, 20)]


def test_questions_about_attributes_have_a_unique_answer_and_counts_count():
    found = {(t.topic, t.answer, t.about) for t in questions.attribute_turns(Random(0), SCENE)}
    assert found == {("colour", "red", ("red star",)), ("shape", "circle", ("blue circle",))}
    turns, words = questions.count_turns(Random(0), SCENE), ("circles", "stars", "red", "blue", "objects")
    answers = {next(w for w in words if w in t.question): t.answer for t in turns if t.answer != "0"}
    assert answers == dict(zip(words, "21213")) and any(t.answer == "0" for t in turns)


SIDES = {(50, 100): "left", (150, 110): "right", (105, 50): "above", (100, 150): "below", (150, 150): None}
PLACES = {(20, 20): "top left", (96, 30): "top", (96, 96): "middle", (170, 90): "right", (60, 96): None}


def test_a_side_and_a_place_are_named_only_if_they_are_clear():
    star = Thing("star", "blue", 100, 100, 20)
    assert {centre: questions.side(Thing("circle", "red", *centre, 20), star) for centre in SIDES} == SIDES
    assert {centre: questions.place(Thing("circle", "red", *centre, 20)) for centre in PLACES} == PLACES


def test_a_caption_names_everything_from_left_to_right():
    assert questions.caption(SCENE[::-1]) == "a red circle, a red star and a blue circle"
    assert questions.caption(SCENE, axis="y") == "a red star, a blue circle and a red circle"
    assert questions.caption([Thing("star", "orange", 9, 9, 5)]) == "an orange star"
    assert questions.plural("cross") == "crosses" and questions.plural("star") == "stars"


def test_no_turn_repeats_what_an_earlier_one_revealed():
    for seed in range(100):
        rng = Random(seed)
        turns, known = questions.conversation(rng, render_scene(rng)), set()
        assert turns
        for turn in turns:
            assert turn.topic not in ("colour", "shape") or not known & set(turn.about)
            known |= set(turn.about)


def test_look_ups_begin_with_the_colours_of_all_unique_shapes():
    for index in range(50):
        things = render("train", "scene", index).facts["things"]
        turns, shapes = questions.look_up_turns(Random(index), things), [thing.shape for thing in things]
        if not turns[0].topic.startswith("caption"):
            alone = sorted(thing.colour for thing in things if shapes.count(thing.shape) == 1)
            assert [turn.topic for turn in turns[: len(alone)]] == ["colour"] * len(alone)
            assert sorted(turn.answer for turn in turns if turn.topic == "colour") == alone


def test_relations_are_mostly_captions_and_positions_unlike_other_conversations():
    def share(turns_of) -> float:
        scenes = [render("train", "scene", index).facts["things"] for index in range(100)]
        topics = [turn.topic for seed, things in enumerate(scenes) for turn in turns_of(Random(seed), things)]
        return sum(topic.startswith(("caption", "position")) for topic in topics) / len(topics)

    assert share(questions.relation_turns) > 0.5 > share(questions.scene_turns)
