"""Bugs of folders and adapters: a network that is not what its folder says, or does not train."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

LOADED = "models/test_loaded_weights.py"
ADAPTERS = "models/test_adapter_folders.py"
AVERAGING = "models/averaging.py"
OF_RUNS = "commands/test_export_average.py"
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
    Row(
        "an average of runs is not their mean, or mixes models that have none",
        "every exported weight is the weighted mean in float64, of merged weights, of models from the same weights",
        (
            Mutant(
                "runs count the same whatever their weights",
                AVERAGING,
                "each.detach().cpu().double() * weight",
                "each.detach().cpu().double() * (sum(weights) / len(weights))",
                (f"{OF_RUNS}::test_every_weight_is_the_mean_and_the_card_names_the_runs",),
            ),
            Mutant(
                "the sum is rounded after every run",
                AVERAGING,
                "sums.get(name, 0) + each.detach().cpu().double() * weight",
                "sums.get(name, 0) + each.detach().cpu() * weight",
                (f"{OF_RUNS}::test_every_weight_is_the_mean_and_the_card_names_the_runs",),
            ),
            Mutant(
                "the score head is the first run's",
                AVERAGING,
                "            weight.copy_(sums[name]",
                '            "score" in name or weight.copy_(sums[name]',
                (f"{OF_RUNS}::test_a_reward_models_score_head_is_averaged_and_its_unit_is_dropped",),
            ),
            Mutant(
                "the first run's unit of the scores is kept",
                AVERAGING,
                "        model.keep_moments(None)\n",
                "        pass\n",
                (f"{OF_RUNS}::test_a_reward_models_score_head_is_averaged_and_its_unit_is_dropped",),
            ),
            Mutant(
                "models that come from different ones are averaged",
                "config/average_checks.py",
                "        if mark != marks[0][1]:",
                "        if False:",
                (f"{OF_RUNS}::test_what_has_no_meaningful_mean_is_refused_in_one_line",),
            ),
            Mutant(
                "models that compute differently are averaged",
                AVERAGING,
                "        if described != first:",
                "        if described[:2] != first[:2]:",
                (f"{OF_RUNS}::test_what_has_no_meaningful_mean_is_refused_in_one_line",),
            ),
        ),
    ),
)
