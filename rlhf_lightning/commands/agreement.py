"""rlhf-agreement: who agrees with whom, who is biased, and export of the labels to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.config.feedback_checks import check_agreement, check_store
from rlhf_lightning.runs.places import check_place
from rlhf_lightning.runs.run_folder import choose_run_dir, write_config, write_summary
from rlhf_lightning.stopping import held
from rlhf_lightning.store_url import checked_url


def main() -> None:
    """Run rlhf-agreement."""
    run_hydra_command("rlhf-agreement", "agreement", agreement)


def agreement(config: dict[str, Any]) -> None:
    """Import, measure, print, write the page, and export; report wrong input before anything changes."""
    check_agreement(config)
    imports, exports = config["import"], config["export"]
    if not imports:
        check_store(config["feedback"]["store"])
    else:
        checked_url(config["feedback"]["store"])
    folder = choose_run_dir({**config, "name": "agreement"})
    check_place(folder, config)

    from rlhf_lightning.feedback import FeedbackStore

    imported = _read(config) if imports else []  # before opening the store, which creates it
    with FeedbackStore(config["feedback"]["store"]) as store:
        if imports:
            from rlhf_lightning.feedback import import_into

            print(f"imported: {len(imported)} tasks, {import_into(store, imported, print)} new answers")
        if store.count_judgements() or not (imports or exports):
            _measure(config, store, folder)
        if exports:
            _export(config, store)


def _read(config: Mapping[str, Any]) -> Any:
    from rlhf_lightning.feedback.exporting import read_labels
    from rlhf_lightning.feedback.interchange import Names

    names, responses = config["names"], config["names"]["responses"]
    renamed = Names(**{**names, "responses": None if responses is None else tuple(responses)})
    return read_labels(config["import"], config["format"], renamed)


def _measure(config: Mapping[str, Any], store: Any, folder: Path) -> None:
    from rlhf_lightning.feedback import flat_agreement, measure_agreement, write_agreement
    from rlhf_lightning.feedback.agreement_table import terminal_tables
    from rlhf_lightning.process.printing import Terminal

    report = measure_agreement(store, config["labelers"], config["draws"], config["seed"])
    with held():
        write_config(folder, config)
        files = write_agreement(folder, report, store)
        write_summary(folder, flat_agreement(report))
    for part in terminal_tables(report):
        Terminal().print(part)
    for file in files:
        print(f"report: {file}")


def _export(config: Mapping[str, Any], store: Any) -> None:
    from rlhf_lightning.feedback import export_project, export_rows

    if config["format"] == "rows":
        settings = (config["kind"], config["method"], config["held_out"], config["labelers"], config["seed"])
        for name, count in export_rows(store, config["export"], *settings).items():
            print(f"exported: {Path(config['export']) / name}, {count} rows")
    else:
        for place, count in export_project(store, config["export"], config["format"], config["labelers"]).items():
            print(f"exported: {place}, {count} tasks")
