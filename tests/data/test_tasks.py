"""Generated tasks: all questions there are, the right answers, and some for validation only."""

import numpy as np
import pytest

from minitransformer.data import TASKS
from minitransformer.errors import InputError
from minitransformer.recipes import load_recipe
from minitransformer.recipes.material import load_material

SIZES = {"sort": (729, 182, 6, 6), "addition": (10_000, 1000, 4, 3)}  # in all, validation, prompt, answer


@pytest.fixture(scope="module", params=SIZES)
def task(request):
    """The name of a task, and the task."""
    return request.param, TASKS[request.param]()


def texts(task, dataset):
    """Return (prompt, answer) of every example, read from what is predicted."""
    pairs = []
    for ids, targets in zip(dataset.ids, dataset.targets, strict=True):
        answer = targets[targets != -100]
        prompt = ids[: len(ids) + 1 - len(answer)]
        pairs.append((task.tokenizer.decode(prompt.tolist()), task.tokenizer.decode(answer.tolist())))
    return pairs


def right_answer(name, prompt):
    if name == "sort":
        return "".join(sorted(prompt))
    return f"{int(prompt[:2]) + int(prompt[2:]):03}"


def test_every_question_has_its_right_answer_and_is_in_one_part(task):
    name, task = task
    train, validation = texts(task, task.train), texts(task, task.validation)
    count, validation_count, prompt_length, answer_length = SIZES[name]
    assert (len(train), len(validation)) == (count - validation_count, validation_count)
    prompts = {prompt for prompt, _ in train + validation}
    assert len(prompts) == count
    assert {len(prompt) for prompt in prompts} == {prompt_length}
    assert all(answer == right_answer(name, prompt) for prompt, answer in train + validation)
    assert task.answer_length == answer_length


def test_published_examples():
    assert ("201102", "001122") in both_parts("sort")
    assert {("8550", "135"), ("0000", "000"), ("9999", "198"), ("0709", "016")} <= both_parts("addition")


def both_parts(name):
    task = TASKS[name]()
    return {*texts(task, task.train), *texts(task, task.validation)}


def test_only_the_answer_is_predicted_and_each_token_from_those_before(task):
    name, task = task
    _, _, prompt_length, answer_length = SIZES[name]
    for dataset in (task.train, task.validation):
        batch = dataset.collate(dataset.places())
        predicted = batch["targets"] != -100
        assert batch["ids"].shape[1] == prompt_length + answer_length - 1
        assert not predicted[:, : prompt_length - 1].any()
        assert predicted[:, prompt_length - 1 :].all()
        np.testing.assert_array_equal(
            batch["targets"][:, prompt_length - 1 : -1], batch["ids"][:, prompt_length:]
        )
        assert predicted.sum() == answer_length * len(dataset.ids)


def test_the_validation_part_is_mixed_and_always_the_same(task):
    name, task = task
    validation = [prompt for prompt, _ in texts(task, task.validation)]
    assert validation == [prompt for prompt, _ in texts(task, TASKS[name]().validation)]
    prompts = sorted(validation + [prompt for prompt, _ in texts(task, task.train)])
    share = np.mean(np.array(validation) < prompts[len(prompts) // 2])
    assert 0.4 < share < 0.6


def test_the_prompt_that_is_shown_is_a_question_whose_answer_is_another_text(task):
    name, task = task
    assert len(task.prompt) == SIZES[name][2]
    assert right_answer(name, task.prompt) != task.prompt


def test_a_recipe_of_a_task_has_the_task_and_room_for_it(task):
    name, task = task
    recipe = load_recipe(name)
    material = load_material(recipe)
    assert recipe.config(10).context_length == material.train.lengths.max()
    assert material.answer_length == task.answer_length
    assert texts(material, material.validation) == texts(task, task.validation)
    short = load_recipe(name, ["context_length=5"])
    with pytest.raises(InputError, match=f"context_length is 5; the examples of '{name}' have"):
        load_material(short)
    with pytest.raises(InputError, match="makes its own examples; leave out --data"):
        load_material(recipe, ["text"])
