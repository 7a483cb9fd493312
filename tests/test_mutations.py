"""The planting of mistakes itself: what is replaced, and what is refused."""

import pytest
from common.mutations import mutated

SOURCE = """
def scaled(x):
    y = x * (a - b)  # a comment
    y += f(
        x, "text"
    )
    return y

def other(x):
    y = x
    return y
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("f( x,'text' )", "0", "y += 0"),
        ("(a - b)", "a", "y = x * a\n"),
        ("a - b", "a + b", "y = x * (a + b)"),
        ("y += f(x, 'text')", "pass", "y = x * (a - b)\n    pass\n    return y"),
        ("y += f(x, 'text')\nreturn y", "return x", "y = x * (a - b)\n    return x\n"),
    ],
)
def test_comments_and_layout_make_no_difference(old, new, expected):
    assert expected in mutated(SOURCE, old, new)


def test_only_a_part_is_changed():
    assert mutated(SOURCE, "return y", "return x", "other").count("return y") == 1


@pytest.mark.parametrize(("old", "times"), [("return y", 2), ("a * b", 0), ("y = x * (a - b)\nreturn y", 0)])
def test_what_is_not_there_once_is_refused(old, times):
    with pytest.raises(LookupError, match=f"is there {times} times"):
        mutated(SOURCE, old, "pass")


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(LookupError, match="defines no 'third'"):
        mutated(SOURCE, "return y", "return x", "third")


def test_half_an_expression_is_refused():
    with pytest.raises(SyntaxError):
        mutated(SOURCE, "f(x,", "g(x,")
