"""Bugs that let a stranger's file act: on a terminal, through a link, as a program, or on a secret."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

LINKS = "commands/test_planted_links.py"
LIMITS = "data/test_template_limits.py"

STRANGERS = (
    Row(
        "a file from a stranger acts",
        "nothing from outside controls a terminal, leads out of its folder, runs code, or reveals a secret",
        (
            Mutant(
                "what libraries print is not checked",
                "guarded_streams.py",
                "else for_terminal(shown(text)))",
                "else text)",
                ("test_guarded_streams.py::test_what_is_printed_is_harmless",),
            ),
            Mutant(
                "log files get raw records",
                "guarded_streams.py",
                "made.msg, made.args = for_terminal(shown(message)), None",
                "pass",
                ("test_guarded_streams.py::test_handlers_made_before_and_files_get_harmless_records",),
            ),
            Mutant(
                "invisible letters pass",
                "outside_text.py",
                "\\U000e0000-\\U000e00ff",
                "",
                ("test_outside_text.py::test_a_terminal_gets_no_control_character",),
            ),
            Mutant(
                "a list under a secret key is shown",
                "secret_text.py",
                "key if is_secret_key(key) else str(name)",
                "str(name)",
                ("commands/test_redaction.py::test_everything_under_such_a_key_is_hidden",),
            ),
            Mutant(
                "the index of a sharded checkpoint may be a program",
                "compat/torch_names.py",
                "if name in allowed or described or isinstance(found, torch.dtype):",
                "if True:",
                ("compat/test_sharded_checkpoints.py::test_no_function_is_reached_through_a_module_of_the_index",),
            ),
            Mutant(
                "weights may lie outside the folder",
                "models/foreign_folders.py",
                "        if outside:\n",
                "        if False:\n",
                ("models/test_foreign_folders.py::test_weights_outside_the_folder_are_refused",),
            ),
            Mutant(
                "lines are added through a link",
                "durable.py",
                'getattr(os, "O_NOFOLLOW", 0)',
                "0",
                ("test_durable.py::test_lines_are_not_added_through_a_link",),
            ),
            Mutant(
                "an exported adapter takes along what its links lead to",
                "commands/export.py",
                "dirs_exist_ok=True, ignore=_left_out)",
                "dirs_exist_ok=True)",
                (f"{LINKS}::test_nothing_that_a_link_leads_to_is_sent_or_exported",),
            ),
            Mutant(
                "a power in a template is computed",
                "data/template_limits.py",
                "    if _has_power(template):\n",
                "    if False:\n",
                (f"{LIMITS}::test_other_stars_are_not_powers", f"{LIMITS}::test_a_small_power_is_refused_as_well"),
            ),
            Mutant(
                "plugins of Hydra are looked for in the working folder",
                "working_folder.py",
                'return _HYDRA in file and frame.f_code.co_name == "_locate"',
                "return _HYDRA in file",
                ("test_working_folder.py::test_plugins_of_hydra_are_not_looked_for_there",),
            ),
        ),
    ),
)
