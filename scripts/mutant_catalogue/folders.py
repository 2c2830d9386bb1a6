"""Bugs of folders and adapters: a network that is not what its folder says, or does not train."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

LOADED = "models/test_loaded_weights.py"
ADAPTERS = "models/test_adapter_folders.py"
MERGED = f"{ADAPTERS}::test_an_adapter_made_elsewhere_is_merged_to_what_peft_computes_and_exported_so"

FOLDERS = (
    Row(
        "a network is not what its folder says, or does not train",
        (
            "weights missing from a folder are refused by name; a merged adapter is what peft computes, and all of it"
            " trains"
        ),
        (
            Mutant(
                "what a folder lacks is random",
                "models/loaded_weights.py",
                "    if lacking:\n",
                "    if False:\n",
                (f"{LOADED}::test_weights_that_do_not_fit_the_config_are_refused_by_name",),
            ),
            Mutant(
                "merged weights stay frozen",
                "models/adapter_folders.py",
                "            parameter.requires_grad_(True)\n",
                "            pass\n",
                (MERGED,),
            ),
            Mutant(
                "an update of a tied output layer reaches the embedding",
                "models/adapter_folders.py",
                "    _untie_what_is_adapted(base)\n",
                "",
                (MERGED,),
            ),
            Mutant(
                "a network with next to nothing to train is accepted",
                "training/trainable.py",
                "            if len(shape) >= 2 and id(parameter) not in outside:\n",
                "            if True:\n",
                ("algorithms/test_trainable.py::test_next_to_nothing_to_train_is_an_error",),
            ),
        ),
    ),
)
