"""Units of physics and chemistry, formulas of chemistry, open intervals, full hours."""

import re

from rl_lightning.rewards.grading import compare, normalize, units
from tests.checks import holds_only_for
from tests.graders import graded

NOTHING = re.compile(r"(?!)()")
SAME = [
    (r"5\,\Omega", "5"),
    ("5 ohms", r"5\ \Omega"),
    (r"5\,\mathrm{k\Omega}", r"5\text{ k}\Omega"),
    (r"5\,\mu\text{m}", "5 µm"),
    (r"5\,\mathrm{\mu m}", "5"),
    ("500 nm", r"500\,\text{nm}"),
    ("500nm", r"500\,\text{nm}"),
    ("3 kN", "3"),
    ("3kN", r"3\text{ kN}"),
    ("13.6 eV", r"13.6\ \mathrm{eV}"),
    ("5 kcal", "5"),
    ("5 T", r"5\,\mathrm{T}"),
    ("0.10 M", r"0.1\text{ M}"),
    (r"3\,\text{Å}", "3 angstroms"),
    ("18", r"\pounds 18"),
    (r"\frac{3}{4}", r"\nicefrac{3}{4}"),
    ("Fe^{3+}", r"\mathrm{Fe}^{3+}"),
    ("C_6H_{12}O_6", r"\mathrm{C_6H_{12}O_6}"),
    (r"\mathrm{H_2O}", r"\text{H}_2\text{O}"),
    ("SO_4^{2-}", r"\mathrm{SO_4^{2-}}"),
    ("[0,1)", "[0,1["),
    ("]2,5]", "(2, 5]"),
    (r"(-\infty,2]\cup[3,\infty)", r"]-\infty; 2] \cup [3; +\infty["),
    (r"(-\infty,2]\cup[3,\infty)", "(-inf, 2] U [3, inf)"),
    (r"(-\infty,2]\cup[3,\infty)", r"(-\infty, 2] \text{ or } [3, \infty)"),
    ("[[1,2],[3,4]]", "[[1, 2], [3, 4]]"),
    ("5 PM", "5:00 p.m."),
    ("5:00 PM", "17:00"),
    ("x=5", "=5"),
]
DIFFERENT = [
    (r"5\text{ mW}", r"5\text{ MW}"),
    (r"5\text{ mHz}", r"5\text{ MHz}"),
    (r"5\text{ Mg}", r"5\text{ mg}"),
    (r"5\,\Omega", r"5\,k\Omega"),
    ("500 nm", "500 μm"),
    (r"5\,\mu\text{m}", "5 m"),
    ("3kN", r"3\text{ N}"),
    ("5 T", r"5\,\mathrm{F}"),
    # Letters that may be variables.
    (r"2\Omega", "2"),
    (r"5\mu", "5"),
    (r"\frac{3}{2} kT", r"\frac{3}{2}"),
    (r"\frac{3}{2}kT", "1.5"),
    ("2nm", "2"),
    ("2mV", "2"),
    ("CO_2", r"\text{CO}_3"),
    ("SO_4^{2-}", r"\mathrm{SO_3^{2-}}"),
    ("[0,1)", "]0,1["),
    ("]2,5[", "[2,5]"),
    ("(1,2),(3,4)", r"(1,2)\cup(3,4)"),
    ("[[1,2],[3,4]]", "[[1,2],[3,5]]"),
    ("5:00 PM", "5 AM"),
    ("5", "5 PM"),
    ("6", "=5"),
]


@holds_only_for(
    graded(),
    names=graded((units, "_UNITS", {name: unit for name, unit in units._UNITS.items() if name not in units._PREFIXED})),
    ohms=graded((units, "_OHM", NOTHING)),
    micro=graded((units, "_MICRO", NOTHING)),
    letters=graded((units, "_UNITS_IN_TEXT", {})),
    upright=graded((compare, "upright", lambda text: text)),
    unions=graded((compare, "is_interval", lambda text: False)),
    left=graded((normalize, "_OPEN_LEFT", NOTHING)),
    right=graded((normalize, "_OPEN_RIGHT", NOTHING)),
    letter=graded((normalize, "_UNION", NOTHING)),
)
def test_the_same_answer(grade):
    assert [pair for pair in SAME if not grade(*pair)] == []


@holds_only_for(
    graded(),
    always=lambda answer, response: True,
    cases=graded((units, "_UNITS", {name: unit.lower() for name, unit in units._UNITS.items()})),
    products=graded((units, "_PREFIXED", set()), (units, "_PRODUCTS", ())),
)
def test_another_answer(grade):
    assert [pair for pair in DIFFERENT if grade(*pair)] == []
