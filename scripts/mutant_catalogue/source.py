"""Bugs in what is read from the source of classes: keys, ranges, declarations."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

SECTIONS = "source/test_sections.py::test_functions_dataclasses_and_classes_of_libraries_are_read_too"
WRONG = "source/test_sections.py::test_a_wrong_key_or_value_of_a_class_from_outside_is_refused"
IN_PYTHON = "test_value_checks.py::test_a_call_in_python_gets_the_line_that_the_command_prints"

SOURCE = (
    Row(
        "keys, ranges and declarations of a class differ from its source",
        (
            "a wrong key or value of any class is refused before the class is imported, and in Python with the same "
            "words"
        ),
        (
            Mutant(
                "keys that a constructor gives the one above it are taken from configs too",
                "source/constructors.py",
                "if name not in known and name not in given}",
                "if name not in known}",
                (SECTIONS,),
            ),
            Mutant(
                "null is a value of every setting",
                "source/annotations.py",
                "return Any if Any in parts else",
                "return Any if Any in parts or None in parts else",
                (WRONG,),
            ),
            Mutant(
                "constructors check nothing",
                "value_checks.py",
                "            if name in given:",
                "            if name not in names.parameters:",
                (IN_PYTHON,),
            ),
            Mutant(
                "what a class inherits is not declared",
                "source/declarations.py",
                "    for each in filter(None, found.lineage()):\n        for name, value in",
                "    for each in [found]:\n        for name, value in",
                ("source/test_declarations.py::test_a_class_from_outside_inherits_what_ours_declares",),
            ),
            Mutant(
                "values that another algorithm's file gives count as given",
                "config/shipped_values.py",
                "if not (other and key",
                "if not (False and key",
                ("commands/test_effects.py::test_every_rule_has_a_case",),
            ),
        ),
    ),
)
