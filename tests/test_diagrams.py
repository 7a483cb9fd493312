"""The two pictures are drawn from the source, and can be read in every viewer."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from tutorials import diagrams
from tutorials.source_imports import ORDER, PACKAGE, ROOT, imported_modules, modules, part_of

SVG = "{http://www.w3.org/2000/svg}"
MODULES = modules()
PICTURES = {"architecture.svg": diagrams.architecture, "block.svg": diagrams.block}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_what_the_source_says(name):
    up_to_date = (ROOT / name).read_text(encoding="utf-8") == PICTURES[name]()
    assert up_to_date, f"{name} is out of date: run python -m tutorials.diagrams"


def test_the_architecture_shows_every_file_and_every_import():
    words = "".join(ElementTree.fromstring(diagrams.architecture()).itertext())
    for path in MODULES.values():
        assert (path.parent.name if path.stem == "__init__" else path.stem) in words
    direct = diagrams.direct_imports(MODULES)
    assert ("kernels", "functional") in direct
    assert ("dispatch", "kernels") in direct
    reached = {part: {part} for part in ORDER}
    for part in ORDER:  # from the bottom, so that what is imported has been done
        reached[part].update(*(reached[other] for own, other in direct if own == part))
    for module in filter(None, MODULES):
        assert {part_of(name) for name in imported_modules(module, MODULES)} <= reached[part_of(module)]


def test_a_new_folder_is_refused_until_it_has_a_layer(monkeypatch):
    new = modules() | {"vision": PACKAGE / "models/__init__.py"}
    monkeypatch.setattr(diagrams, "modules", lambda: new)
    with pytest.raises(ValueError, match="vision: in LAYERS or in the package, but not in both"):
        diagrams.architecture()


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_runs_into_another_or_out_of_the_picture(name):
    picture = ElementTree.fromstring(PICTURES[name]())
    width, height = map(float, picture.get("viewBox").split()[2:])
    boxes = [extent(element) for element in picture.iter(SVG + "text")]
    assert len(boxes) > 10
    for place, (left, top, right, bottom) in enumerate(boxes):
        assert 0 < left < right < width
        assert 0 < top < bottom < height
        for other in boxes[:place]:
            beside = right + 4 <= other[0] or other[2] + 4 <= left
            apart = beside or bottom <= other[1] or other[3] <= top
            assert apart, f"{name}: two texts overlap at {left:.0f}, {top:.0f}"


def extent(element):
    """Return where a text of a picture begins and ends: left, top, right, bottom."""
    family = element.get("font-family").partition(",")[0]
    font = FontProperties(family=family, weight=element.get("font-weight"))
    drawn = TextPath((0, 0), element.text, size=float(element.get("font-size")), prop=font).get_extents()
    x, y = float(element.get("x")), float(element.get("y"))
    left = x - drawn.width * {"start": 0, "middle": 0.5, "end": 1}[element.get("text-anchor")]
    return left, y - drawn.y1, left + drawn.width, y - drawn.y0


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_say_in_every_viewer_what_they_say_in_a_browser(name):
    """Some viewers draw no markers, hide a short line under its arrowhead, and swallow leading spaces."""
    picture = ElementTree.parse(ROOT / name).getroot()
    tags = [element.tag.partition("}")[2] for element in picture.iter()]
    assert "marker" not in tags
    assert not any(text.text.startswith(" ") for text in picture.iter(SVG + "text"))
    arrows = [group for group in picture.iter(SVG + "g") if group.get("class") == "arrow"]
    assert len(arrows) >= 8
    for shaft, head in arrows:
        *_, before, end = corners(shaft)
        tip, left, right = corners(head)
        base = (left + right) / 2
        np.testing.assert_allclose(end, base, atol=0.1)
        length = np.linalg.norm(tip - base)
        assert np.linalg.norm(end - before) >= length
        np.testing.assert_allclose(
            tip - base, (end - before) * length / np.linalg.norm(end - before), atol=0.1
        )


def corners(path):
    """Return the corners (n, 2) of a path of straight lines between given points."""
    return np.array([point.split() for point in re.split("[ML]", path.get("d").rstrip("Z"))[1:]], float)
