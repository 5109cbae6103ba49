"""What a card gets for an added certificate, and where it goes."""

from models.evaluate.quality import StudentQuality
from models.report.addition import Addition, section, with_section
from models.report.card import Card, GateResult, render
from service.runtime.student import Student


def test_the_section_says_what_was_added_and_what_it_rests_on(student: Student, quality: StudentQuality) -> None:
    certificate = student.manifest.certificates[-1].model_copy(update={"backend": "elsewhere"})
    gates = (GateResult("company, int8 on elsewhere", "same answer in any batch", "scores within 1e-07", True),)
    text = section(student.manifest, Addition(certificate, quality, gates, "Added to version 3 on a day."))
    assert text.startswith("## Also certified: int8 on elsewhere\n\nAdded to version 3 on a day. Same graphs")
    assert "**int8 on elsewhere.** For this version" in text
    assert "Measured once, on the 300 rows of the test split." in text
    assert "| risk 0.05 |" in text
    assert "| company, int8 on elsewhere |" in text
    assert not text.endswith("\n")


def test_it_stands_after_the_promises(student: Student, quality: StudentQuality) -> None:
    card = render(Card(student.manifest, (quality,)))
    once = with_section(card, "## Also certified: a")
    twice = with_section(once, "## Also certified: b")
    places = [twice.index(f"## {title}") for title in ("What the exits", "Also certified: a", "Also certified: b", "Q")]
    assert places == sorted(places)
    assert twice.replace("## Also certified: a\n\n", "").replace("## Also certified: b\n\n", "") == card


def test_a_card_of_another_shape_gets_it_at_its_end() -> None:
    assert with_section("# mine\n", "## Also") == "# mine\n\n## Also\n"
